"""A long run with all that goes on beside the updates: memory, open files and disk stay as they are."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import forked
from faults.runs import Command, World, last_lines, log_of
from faults.tally import Clock, Tally

from emmental.runs.progress import Progress

MOST_GROWTH = 0.01
"""Of memory, from the end of the warm-up to the end of the run."""


def watched(command: Command, output: Path, every: int) -> list[dict[str, int]]:
    """Run to the end; returns memory, open files and disk use every so many updates.

    Args:
        command: to run.
        output: its folder.
        every: updates between two looks.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    notes = output.parent / "watched.jsonl"

    def watch() -> None:
        original, updates = Progress.advance, 0

        def advance(self: Progress) -> None:
            nonlocal updates
            original(self)
            updates += 1
            if updates % every == 0:
                with open(notes, "a", encoding="utf-8") as file:
                    file.write(json.dumps({"update": updates, **_use(output)}) + "\n")

        Progress.advance = advance

    forked.LIMIT, limit = 3000.0, forked.LIMIT
    status = forked.run(command.main, command.argv(output), log_of(output), watch)
    forked.LIMIT = limit
    assert status == 0, last_lines(output, 20)
    return [json.loads(line) for line in notes.read_text(encoding="utf-8").splitlines()]


def _use(output: Path) -> dict[str, int]:
    with open("/proc/self/statm", encoding="ascii") as file:
        memory = int(file.read().split()[1]) * resource.getpagesize()
    checkpoints = [path for path in output.glob("checkpoint-*") if path.is_dir()]
    size = sum(file.stat().st_size for path in checkpoints for file in path.iterdir())
    files = len(os.listdir("/proc/self/fd"))
    return {"memory": memory, "files": files, "checkpoints": len(checkpoints), "checkpoint_bytes": size}


def problems(uses: list[dict[str, int]], keep: int, warm_up: float = 0.3) -> list[str]:
    """What grew: memory after the warm-up, open files, checkpoints beyond the newest `keep` and the best."""
    first, last = uses[int(len(uses) * warm_up)], uses[-1]
    growth = last["memory"] / first["memory"] - 1
    found = []
    if growth > MOST_GROWTH:
        found.append(f"memory grew by {100 * growth:.2f} % from update {first['update']} to {last['update']}")
    if last["files"] > first["files"]:
        found.append(f"open files grew from {first['files']} to {last['files']}")
    if (most := max(use["checkpoints"] for use in uses)) > keep + 1:
        found.append(f"there were {most} checkpoints, {keep} and the best were to be kept")
    return found


def commands(world: World, updates: int, every: int) -> list[Command]:
    """Trainer and distiller with logs, evaluations, checkpoints and pictures every so many updates."""
    often = ("--logging_steps", str(max(1, every // 4)), "--save_steps", str(every), "--save_total_limit", "2")
    train = ("--max_steps", str(updates), "--evaluate_during_training", "--pictures", *often)
    # Six batches an epoch, two an update.
    distil = (
        "--n_epoch",
        str(updates // 3),
        "--log_interval",
        str(every // 2),
        "--checkpoint_interval",
        str(2 * every),
    )
    return [world.trainer("movement", *train), world.distiller("distilbert", *distil, "--save_total_limit", "2")]


def ten_thousand(command: Command, folder: Path) -> Tally:
    """10,000 updates with something every 250 of them."""
    with Clock(Tally(f"10,000 updates: memory, open files, disk; {command.name}", unit="checks")) as tally:
        uses = watched(command, folder / command.name / "out", 250)
        found = problems(uses, keep=2)
        tally.survived, tally.lost = 3 - len(found), found
        first, last = uses[int(len(uses) * 0.3)], uses[-1]
        tally.note = (
            f"memory {first['memory'] / 2**20:.1f} to {last['memory'] / 2**20:.1f} MiB, "
            f"open files {first['files']} to {last['files']}, at most "
            f"{max(use['checkpoints'] for use in uses)} checkpoints"
        )
    return tally


def long_form(folder: Path, seed: int = 0) -> list[Tally]:
    """The trainer; the distiller's is `long_distillation`."""
    return [ten_thousand(commands(World(folder / "world"), 10_000, 250)[0], folder)]
