"""Kill the real command line in a process of its own, start it again, compare all."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from faults.kills import Uninterrupted
from faults.runs import Command, World, difference
from faults.tally import Clock, Tally

ROOT = Path(__file__).resolve().parents[2]


def command_lines(commands: list[Command], count: int, known: Uninterrupted, folder: Path, seed: int) -> Tally:
    """The real command line in a process of its own, killed when it has begun to save, started again."""
    generator = random.Random(seed)
    with Clock(Tally("SIGKILL and SIGTERM of the real command line", unit="kills")) as tally:
        for number in range(count):
            command, output = commands[number % len(commands)], folder / f"{number}" / "out"
            output.parent.mkdir(parents=True)
            signal_number = (signal.SIGKILL, signal.SIGTERM)[number % 2]
            status = _start_and_signal(command, output, signal_number, generator.uniform(0.0, 0.2))
            # As a shell sees it: a signal that comes when all is trained and saved ends the process as any other.
            # A SIGTERM after the last update lets the run finish.
            status, expected = 128 - status if status < 0 else status, [128 + signal_number]
            expected += [0] if signal_number == signal.SIGTERM else []
            again = subprocess.run(_arguments(command, output), cwd=ROOT, env=_variables(), capture_output=True)
            problem = None if status in expected else f"status {status} in the place of {expected[0]}"
            if again.returncode != 0:
                problem = f"started again it ends with {again.returncode}: {again.stderr[-300:]!r}"
            (output.parent / "order.jsonl").touch()
            problem = problem or difference(output, known.of(command)[0], stopped=number % 2 == 1, ordered=False)
            tally.count(None if problem is None else f"{command.name}: {problem}")
    return tally


def _start_and_signal(command: Command, output: Path, number: int, moment: float) -> int:
    """Start it, wait for its first checkpoint and `moment` seconds more, send the signal; returns the status."""
    with open(output.parent / "first.txt", "wb") as log:
        process = subprocess.Popen(_arguments(command, output), cwd=ROOT, env=_variables(), stdout=log, stderr=log)
        while process.poll() is None and not list(output.glob("checkpoint-*")):
            time.sleep(0.01)
        time.sleep(moment)
        if process.poll() is None:
            process.send_signal(number)
        return process.wait()


def _arguments(command: Command, output: Path) -> list[str]:
    return [sys.executable, str(ROOT / command.script), *command.argv(output)]


def _variables() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def long_form(folder: Path, seed: int = 0) -> list[Tally]:
    """Six command lines."""
    world, known = World(folder / "world"), Uninterrupted(folder / "uninterrupted")
    commands = [world.trainer("movement"), world.distiller("gpt2")]
    return [command_lines(commands, 6, known, folder / "processes", seed)]
