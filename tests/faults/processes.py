"""Two processes on gloo: one that dies ends all, nobody is stranded, torchrun restarts exactly, one run a folder."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from faults.command_lines import ROOT
from faults.kills import Uninterrupted
from faults.runs import Command, World, difference, last_lines
from faults.tally import Clock, Tally

MOST_SECONDS = 60.0
SABOTAGE = "FAULTS_SABOTAGE"
"""Variable that tells `saboteur.py` what to break: rank, method (`step`, `load_features`, `save_checkpoint`), number
of the call, and the signal; and a file that remembers that it has happened."""


def launch(
    command: Command, output: Path, processes: int = 2, restarts: int = 0, sabotage: str = "", others: tuple = ()
) -> tuple[int, str]:
    """Start a command under torchrun; returns the status and what it said."""
    output.parent.mkdir(parents=True, exist_ok=True)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    torchrun += [f"--max-restarts={restarts}", "-m", "faults.saboteur"]
    arguments = [*torchrun, command.script, *command.argv(output, *others)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    variables["PYTHONPATH"] = str(ROOT / "tests")
    variables |= {SABOTAGE: f"{sabotage},{output.parent / 'done'}" if sabotage else ""}
    done = subprocess.run(arguments, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stdout + done.stderr


def strands_nobody(command: Command, folder: Path, sabotage: str) -> str | None:
    """One process dies or fails: all are gone within a minute of that, with a status that says so."""
    output = folder / "out"
    status, said = launch(command, output, sabotage=sabotage)
    if not (folder / "done").exists():
        return f"the sabotage {sabotage} did not happen: {said[-300:]}"
    seconds = time.time() - (folder / "done").stat().st_mtime
    if status == 0 or seconds > MOST_SECONDS:
        return f"status {status} after {seconds:.0f} s"
    left = subprocess.run(["pgrep", "-f", str(output)], capture_output=True, text=True, check=False).stdout.split()
    return f"processes {left} are left" if left else None


def resumed(command: Command, folder: Path, whole: Path) -> str | None:
    """After that the same command, started again, ends as a run that nothing disturbed."""
    status, said = launch(command, folder / "out")
    return difference(folder / "out", whole, ordered=False) if status == 0 else f"status {status}: {said[-300:]}"


def restarted(command: Command, folder: Path, whole: Path, sabotage: str) -> str | None:
    """A process is killed and torchrun starts all of them again: the end is that of an undisturbed run."""
    status, said = launch(command, folder / "out", restarts=1, sabotage=sabotage)
    if status != 0 or not (folder / "done").exists():
        return f"status {status}: {said[-6000:]}"
    return difference(folder / "out", whole, ordered=False)


def other_number(command: Command, folder: Path, whole: Path, known: Uninterrupted) -> str | None:
    """One process in the folder of two, and two in the folder of one: refused, with the difference shown."""
    shutil.copytree(whole.parent, folder / "two")
    output = folder / "two" / "out"
    if command.run(output) != 2 or "world_size 2 -> 1" not in last_lines(output):
        return f"one process in the folder of two: {last_lines(output)}"
    shutil.copytree(known.of(command)[0].parent, folder / "one")
    status, said = launch(command, folder / "one" / "out")
    return (
        None if status != 0 and "world_size 1 -> 2" in said else f"two in the folder of one: {status}, {said[-300:]}"
    )


def second_run(command: Command, folder: Path, signal_number: int) -> str | None:
    """While a run goes on, a second one is refused; once it is killed, with all its helpers, the folder is free."""
    output = folder / "out"
    output.parent.mkdir(parents=True)
    arguments = [sys.executable, str(ROOT / command.script), *command.argv(output, "--num_workers", "2")]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with open(folder / "first.txt", "wb") as log:
        first = subprocess.Popen(arguments, cwd=ROOT, env=variables, stdout=log, stderr=log)
        while first.poll() is None and not list(output.glob("checkpoint-*")):
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)
        status = command.run(output)
        if status != 2 or "is in use by another run" not in last_lines(output):
            first.kill()
            return f"the second run: status {status}, {last_lines(output)}"
        first.send_signal(signal_number)
        first.send_signal(signal.SIGCONT)
        first.wait()
    problem = command.finish(output)  # at once: processes that load batches may still be about
    return None if problem is None else f"after the first was killed: {problem}"


def long_form(folder: Path, seed: int = 0) -> Iterator[Tally]:
    """All of the above, for both programs where both can."""
    world, known = World(folder / "world"), Uninterrupted(folder / "uninterrupted")
    trainer, distiller = world.trainer("movement"), world.distiller("distilbert")
    with Clock(Tally("second run on the folder of a first one, which is then killed")) as tally:
        for number in (signal.SIGKILL, signal.SIGTERM):
            tally.count(second_run(trainer, folder / f"second {number}", number))
    yield tally
    for command, step in ((trainer, 6), (distiller, 5)):
        whole = folder / f"{command.name} whole" / "out"
        with Clock(Tally(f"two processes, {command.name}: one dies or fails")) as tally:
            status, said = launch(command, whole)
            assert status == 0, said
            for number, sabotage in enumerate(
                (
                    f"1,step,{step},9",
                    f"0,step,{step},9",
                    "0,save_checkpoint,2,9",
                    f"1,step,{step},15",
                    *(("0,load_features,1,9", "0,load_features,1,0") if command is trainer else ()),
                )
            ):
                place = folder / f"{command.name} {number}"
                problem = strands_nobody(command, place, sabotage)
                stopped = sabotage.endswith(",15")
                problem = problem or (None if stopped else resumed(command, place, whole))
                tally.count(None if problem is None else f"{sabotage}: {problem}")
        yield tally
        with Clock(Tally(f"restarted by torchrun, {command.name}")) as tally:
            for number, sabotage in enumerate((f"1,step,{step},9", f"0,step,{step + 1},9")):
                problem = restarted(command, folder / f"{command.name} restarted {number}", whole, sabotage)
                tally.count(None if problem is None else f"{sabotage}: {problem}")
        yield tally
        with Clock(Tally(f"another number of processes in the folder of a run, {command.name}")) as tally:
            tally.count(other_number(command, folder / f"{command.name} numbers", whole, known))
        yield tally
