"""Kill a run at random moments, start the same command again, compare all."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from pathlib import Path

from faults.kills import Uninterrupted, all_commands, at_save_calls, interrupted
from faults.runs import Command, World
from faults.tally import Clock, Tally


def at_random_moments(
    commands: list[Command], number: int, count: int, known: Uninterrupted, folder: Path, seed: int
) -> Tally:
    """Send a signal from outside after a random time; every second run gets two."""
    name = signal.Signals(number).name
    generator = random.Random(f"{name}{seed}")
    with Clock(Tally(f"{name} at a random moment, trainer and distiller", unit="kills")) as tally:
        attempt = 0
        while tally.tried < count:
            command = commands[attempt % len(commands)]
            whole, seconds, _ = known.of(command)
            statuses: list[int] = []
            moments = [generator.uniform(0.0, seconds) for _ in range(1 + attempt % 2)]

            def kill(output: Path, moment: float, command: Command = command, seen: list = statuses) -> int:
                seen.append(command.run(output, signal_after=(number, moment)))
                return seen[-1]

            faults = [lambda output, moment=moment: kill(output, moment) for moment in moments]
            problem = interrupted(command, folder / f"{attempt}", whole, faults, stopped=number != signal.SIGKILL)
            for status in statuses:
                if status != 0:
                    tally.count(problem)
            attempt += 1
    return tally


def long_form(folder: Path, seed: int = 0) -> Iterator[Tally]:
    """90 kills at random moments, and 10 of a run that draws pictures."""
    world = World(folder / "world")
    commands, known = all_commands(world), Uninterrupted(folder / "uninterrupted")
    for number, count in ((signal.SIGKILL, 60), (signal.SIGTERM, 30), (signal.SIGUSR1, 10)):
        yield at_random_moments(commands, number, count, known, folder / str(number), seed)
    drawn = at_save_calls([world.trainer("drawn")], "SIGKILL after a call", 10, known, folder / "drawn", seed)
    drawn.kind = "SIGKILL after a call of a save, trainer that draws pictures"
    yield drawn
