"""Kill a run inside its saves, start the same command again, compare all."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from faults.injection import KILLS, SaveCalls, last_call
from faults.runs import PLAIN_CASES, STUDENTS, TRAINER_CASES, Command, World, difference, last_lines
from faults.tally import Clock, Tally

ROOT = Path(__file__).resolve().parents[2]


class Uninterrupted:
    """Runs that nothing disturbed: their folders, how long they took, and how many calls their saves made."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, tuple[Path, float, int]] = {}

    def of(self, command: Command) -> tuple[Path, float, int]:
        """Output folder, seconds, calls of `SAVE_CALLS`."""
        if command.name not in self._known:
            output = self._folder / command.name / "out"
            assert command.run(output) == 0, last_lines(output, 20)
            shutil.rmtree(output.parent)
            calls, started = SaveCalls(), time.monotonic()
            assert command.run(output, calls.install) == 0, last_lines(output, 20)
            self._known[command.name] = output, time.monotonic() - started, calls.made
        return self._known[command.name]


def interrupted(
    command: Command, folder: Path, whole: Path, faults: list[Callable[[Path], int]], stopped: bool = False
) -> str | None:
    """Disturb one run by each fault in turn, finish it, and compare; returns what went wrong, or None.

    Args:
        command: to run.
        folder: for its output; removed when all is well.
        whole: output of the uninterrupted run.
        faults: each runs the command on an output folder in its own way and returns the status.
        stopped: see `difference`.
    """
    output = folder / "out"
    statuses = [fault(output) for fault in faults]
    problem = command.finish(output)
    leftovers = [path.name for path in output.rglob(".incomplete-*")]
    if problem is None and leftovers:
        problem = f"leftovers {leftovers}"
    problem = problem or difference(output, whole, stopped)
    shutil.rmtree(folder, ignore_errors=problem is not None)
    return None if problem is None else f"{command.name}, statuses {statuses}: {problem}"


def at_save_calls(
    commands: list[Command], kind: str, count: int, known: Uninterrupted, folder: Path, seed: int
) -> Tally:
    """Kill at calls drawn from all that the saves of a run make; every second run is killed twice."""
    generator = random.Random(f"{kind}{seed}")
    with Clock(Tally(f"{kind} of a save, trainer and distiller", unit="kills")) as tally:
        number = 0
        while tally.tried < count:
            command = commands[number % len(commands)]
            whole, _, calls = known.of(command)
            statuses: list[int] = []
            drawn = [generator.randint(1, calls) for _ in range(1 + number % 2)]

            def kill(output: Path, place: int, command: Command = command, seen: list = statuses) -> int:
                fault = KILLS[kind]
                seen.append(command.run(output, SaveCalls(place, last_call(fault, place), fault).install))
                return seen[-1]

            faults = [lambda output, place=place: kill(output, place) for place in drawn]
            problem = interrupted(command, folder / f"{number}", whole, faults, stopped="SIGTERM" in kind)
            # A restart makes fewer calls than a whole run: a place beyond its end disturbs nothing and counts nothing.
            for status in statuses:
                if status != 0:
                    tally.count(problem)
            number += 1
    return tally


def all_commands(world: World) -> list[Command]:
    """Every case of the trainer but the slow one that draws, runs in phases, and every student of the distiller."""
    cases = [case for case in TRAINER_CASES if case != "drawn"]
    phases = [world.plain(*flags) for flags in PLAIN_CASES]
    return [*map(world.trainer, cases), *map(world.distiller, STUDENTS), *phases]


def long_form(folder: Path, seed: int = 0) -> Iterator[Tally]:
    """130 kills inside saves."""
    world = World(folder / "world")
    commands, known = all_commands(world), Uninterrupted(folder / "uninterrupted")
    counts = {"SIGKILL before a call": 40, "SIGKILL after a call": 40, "SIGKILL with a file half written": 30}
    counts["SIGTERM at a call"] = 20
    for kind, count in counts.items():
        yield at_save_calls(commands, kind, count, known, folder / kind, seed)
