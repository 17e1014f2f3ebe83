"""Writes the rows of a task: train.csv, calibrate.csv (held back from the training rows) and dev.csv.

python -m experiments.cascade.rows movie-reviews outputs/cascade/movie-reviews/rows

Tasks: tickets (made here), movie-reviews and opinions (fetched), mrpc (EMMENTAL_GLUE_DIR).
"""

from __future__ import annotations

import csv
import os
import random
import subprocess
import sys
from pathlib import Path

from emmental.tasks import read_split, resolve_task, user_task
from experiments.cascade.tickets import DEV, HELD_BACK, SEED, TRAIN, tickets

_GLUE = Path(os.environ.get("EMMENTAL_GLUE_DIR", "../shared/data/glue"))
_MOST_HELD_BACK, _SHARE = 2000, 4
"""A quarter of the training rows is held back, at most 2,000."""


def main() -> None:
    """Write the three files."""
    task, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in splits(task).items():
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            header = ["sentence1", "label"] if len(rows[0]) == 2 else ["sentence1", "sentence2", "label"]
            csv.writer(file).writerows([header, *rows])


def splits(name: str) -> dict[str, list[tuple[str, ...]]]:
    """Name of the file -> rows: one or two texts, and the class's name."""
    if name == "tickets":
        rows = tickets(TRAIN + HELD_BACK + DEV, random.Random(SEED))
        return {
            "train": rows[:TRAIN],
            "calibrate": rows[TRAIN : TRAIN + HELD_BACK],
            "dev": rows[TRAIN + HELD_BACK :],
        }
    if name == "mrpc":
        folder, task = _GLUE / "MRPC", resolve_task("mrpc")
    else:
        folder = fetched(name)
        files = [folder / f"{split}.csv" for split in ("train", "dev")]
        task = resolve_task("sst-2") if name == "movie-reviews" else user_task(*files, None)
    train, dev = (rows_of(task, folder, split) for split in ("train", "dev"))
    random.Random(SEED).shuffle(train)
    held_back = min(_MOST_HELD_BACK, len(train) // _SHARE)
    return {"train": train[held_back:], "calibrate": train[:held_back], "dev": dev}


def fetched(name: str) -> Path:
    """The folder of a task that `experiments.fetch` fetches."""
    command = [sys.executable, "-m", "experiments.fetch", name]
    return Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())


def rows_of(task, folder: Path, split: str) -> list[tuple[str, ...]]:
    """The rows of a split, with the names of their classes."""
    found = read_split(task, folder, split)
    texts = zip(found.texts_a, found.texts_b, strict=True) if found.texts_b else zip(found.texts_a, strict=True)
    return [(*text, task.names[label]) for text, label in zip(texts, found.labels, strict=True)]


if __name__ == "__main__":
    main()
