"""GLUE in the layout of the Hub (`nyu-mll/glue`): a folder for each task, parquet files, integers for classes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from emmental.errors import UserError
from emmental.tasks.task import Layout, Task

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.parquet")


@dataclass(frozen=True)
class HubTask:
    """Where a task is in the Hub's layout.

    Attributes:
        folder: of the task.
        texts: columns of the first and, of pairs, the second text.
        codes: meaning of 0, 1, ..., spelled as in the `.tsv` files; empty for scores.
        dev, test: beginnings of the names of these files.
    """

    folder: str
    texts: tuple[str, ...]
    codes: tuple[str, ...] = ("0", "1")
    dev: str = "validation"
    test: str = "test"


_PAIR, _NLI = ("sentence1", "sentence2"), ("premise", "hypothesis")
_THREE, _TWO = ("entailment", "neutral", "contradiction"), ("entailment", "not_entailment")
_HUB_TASKS = {
    "cola": HubTask("cola", ("sentence",)),
    "sst-2": HubTask("sst2", ("sentence",)),
    "mrpc": HubTask("mrpc", _PAIR),
    "sts-b": HubTask("stsb", _PAIR, ()),
    "qqp": HubTask("qqp", ("question1", "question2")),
    "mnli": HubTask("mnli", _NLI, _THREE, "validation_matched", "test_matched"),
    "mnli-mm": HubTask("mnli", _NLI, _THREE, "validation_mismatched", "test_mismatched"),
    "qnli": HubTask("qnli", ("question", "sentence"), _TWO),
    "rte": HubTask("rte", _PAIR, _TWO),
    "wnli": HubTask("wnli", _PAIR),
    "ax": HubTask("ax", _NLI, _THREE),
}


def hub_files(task: Task, data_dir: Path, split: str) -> tuple[Layout, list[Path]] | None:
    """Layout and files of a split in `data_dir` or in the task's folder there; None if it is not there.

    Raises:
        UserError: the split is in several files, and one is missing.
    """
    known = _HUB_TASKS.get(task.name)
    if known is None:
        return None
    prefix = {"train": "train", "dev": known.dev, "test": known.test}[split]
    for folder in (data_dir / known.folder, data_dir):
        shards = {path: found for path in folder.glob(f"{prefix}-*.parquet") if (found := _shard(path, prefix))}
        if shards:
            counts = {count for _, count in shards.values()}
            if counts != {len(shards)}:
                raise UserError(
                    f"--data_dir {folder}: {len(shards)} of {max(counts)} files {prefix}-*.parquet are there"
                )
            return _layout(task, known, split), sorted(shards)
    return None


def _shard(path: Path, prefix: str) -> tuple[int, int] | None:
    match = _SHARD.fullmatch(path.name.removeprefix(prefix))
    return None if match is None else (int(match[1]), int(match[2]))


def _layout(task: Task, known: HubTask, split: str) -> Layout:
    label = None if split == "test" else "label"
    named = task.layout(split).index is not None  # the .tsv files have an index for this split too
    return Layout(
        files=(),
        text_a=known.texts[0],
        text_b=known.texts[1] if len(known.texts) > 1 else None,
        label=label,
        index="idx" if named else None,
        kind="parquet",
        columns=(*known.texts, *(() if label is None else (label,)), "idx"),
        codes=known.codes,
    )
