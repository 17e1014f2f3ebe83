"""Let the disk of a run fail, fill it, or take it away; give it back, start the same command again, compare all."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from faults.injection import FAILURES, LACKS, SaveCalls, failing, limit_file_size
from faults.kills import Uninterrupted, all_commands, interrupted
from faults.runs import Command, World, difference, last_lines
from faults.tally import Clock, Tally


def failing_calls(
    commands: list[Command], kind: str, count: int, known: Uninterrupted, folder: Path, seed: int
) -> Tally:
    """Let one call of a save fail, or all from one on: the run may end or go on, but nothing may be lost by it."""
    generator = random.Random(f"{kind}{seed}")
    with Clock(Tally(f"{kind} at a call of a save, trainer and distiller")) as tally:
        for number in range(count):
            command = commands[number % len(commands)]
            whole, _, calls = known.of(command)
            first = generator.randint(1, calls)
            last = first if number % 2 else calls * 2
            before = SaveCalls(first, last, failing(FAILURES[kind])).install
            fault = [lambda output, before=before, command=command: command.run(output, before)]
            tally.count(interrupted(command, folder / f"{number}", whole, fault))
    return tally


def limited_files(commands: list[Command], count: int, known: Uninterrupted, folder: Path, seed: int) -> Tally:
    """The kernel itself refuses to let files grow: also what is written outside Python fails then."""
    generator = random.Random(seed)
    with Clock(Tally("files limited by the kernel (EFBIG), trainer and distiller")) as tally:
        for number in range(count):
            command = commands[number % len(commands)]
            size = generator.randint(100, 120_000)
            fault = [lambda output, size=size, command=command: command.run(output, limit_file_size(size))]
            tally.count(interrupted(command, folder / f"{number}", known.of(command)[0], fault))
    return tally


def lacking(commands: list[Command], kind: str, known: Uninterrupted, folder: Path) -> Tally:
    """The file system lacks something: the run ends as on one that has it, and may say so."""
    with Clock(Tally(f"a file system {kind}, trainer and distiller")) as tally:
        for number, command in enumerate(commands):
            output = folder / f"{number}" / "out"
            statuses = [command.run(output, LACKS[kind]) for _ in range(2)]
            problem = difference(output, known.of(command)[0], ordered=False)
            tally.count(f"statuses {statuses}: {last_lines(output)}" if statuses != [0, 0] else problem)
    return tally


def mounted(folder: Path, size: str) -> bool:
    """Mount a small file system; False where that is not permitted."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    return shutil.which("mount") is not None and subprocess.run(command, capture_output=True).returncode == 0


def small_disk(commands: list[Command], count: int, known: Uninterrupted, folder: Path, seed: int) -> Tally:
    """A file system that is really full; then room is made and the same command started again."""
    generator = random.Random(seed)
    with Clock(Tally("really full file system, trainer and distiller")) as tally:
        for number in range(count):
            command, place = commands[number % len(commands)], folder / f"{number}"
            size = generator.randint(30, 900)
            if not mounted(place, f"{size}k"):
                tally.note = "not tried: mounting is not permitted here"
                break

            def fill(output: Path, command: Command = command, place: Path = place) -> int:
                status = command.run(output)
                subprocess.run(["mount", "-o", "remount,size=64m", str(place)], check=True)
                return status

            try:
                tally.count(interrupted(command, place / "run", known.of(command)[0], [fill]))
            finally:
                subprocess.run(["umount", "-l", str(place)], check=True)
    return tally


def immutable_folder(commands: list[Command], count: int, known: Uninterrupted, folder: Path, seed: int) -> Tally:
    """The output folder becomes immutable while the run goes on, which binds root too; then it is given back."""
    generator = random.Random(seed)
    with Clock(Tally("output folder immutable from a random moment on")) as tally:
        for number in range(count):
            command, output = commands[number % len(commands)], folder / f"{number}" / "out"
            whole, seconds, _ = known.of(command)
            output.mkdir(parents=True)
            if not _immutable(output, "+"):
                tally.note = "not tried: this file system knows no immutable folders"
                break
            _immutable(output, "-")
            moment = generator.uniform(0.2, 0.9) * seconds

            def lock(output: Path, command: Command = command, moment: float = moment) -> int:
                timer = subprocess.Popen(["sh", "-c", f'sleep {moment:.2f}; chattr +i "$0"', str(output)])
                status = command.run(output)
                timer.wait()
                _immutable(output, "-")
                return status

            tally.count(interrupted(command, output.parent, whole, [lock]))
    return tally


def _immutable(folder: Path, sign: str) -> bool:
    if shutil.which("chattr") is None:
        return False
    return subprocess.run(["chattr", f"{sign}i", str(folder)], capture_output=True).returncode == 0


def long_form(folder: Path, seed: int = 0) -> Iterator[Tally]:
    """More than 100 runs whose disk fails."""
    world = World(folder / "world")
    commands, known = all_commands(world), Uninterrupted(folder / "uninterrupted")
    for kind in FAILURES:
        yield failing_calls(commands, kind, 22, known, folder / kind, seed)
    for kind in LACKS:
        yield lacking(commands, kind, known, folder / kind)
    yield limited_files(commands, 22, known, folder / "limited", seed)
    yield small_disk(commands, 22, known, folder / "small", seed)
    yield immutable_folder(commands, 11, known, folder / "immutable", seed)
