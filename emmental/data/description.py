"""Describes the data in lines for people: kind of task, rows and classes of each file, texts that are cut."""

from __future__ import annotations

from collections.abc import Mapping

from emmental.data.features import FeatureDataset
from emmental.data.unknown_tokens import FLAG, problem
from emmental.tasks.task import FILE_FLAGS, Task
from emmental.tasks.wording import listed

_MANY_CLASSES = 0.5
"""With more classes for a row, a class has fewer than two rows: nothing to learn from, and rarely what was meant."""
_MANY_BLANK = 1 / 3
_TITLES = {"train": "training data", "dev": "dev data", "test": "test data"}


def description(task: Task, splits: Mapping[str, FeatureDataset], max_seq_length: int) -> list[str]:
    """Lines about a task and its data.

    Args:
        task: its classes are in the order of the class ids.
        splits: those of `"train"`, `"dev"`, `"test"` that were read.
        max_seq_length: number of tokens that texts were cut to.
    """
    lines = [f"task {task.name}: {task.kind.describe(task)}"]
    for split, dataset in splits.items():
        lines += [note for note in dataset.notes if note not in lines]  # two data sets may come from one file
        lines.append(f"{_TITLES[split]}: {_rows(task, dataset)}{_origin(task, split)}")
        if dataset.cut:
            lines.append(
                f"{_TITLES[split]}: {dataset.cut} of {len(dataset)} texts are cut at --max_seq_length "
                f"{max_seq_length}; the longest has {dataset.longest} tokens"
            )
        if split != "test" and (only := same_label(task, dataset)) is not None:
            lines.append(f"{_TITLES[split]}: all rows are {only}; metrics on such rows say little")
    return lines


def cautions(task: Task, splits: Mapping[str, FeatureDataset]) -> list[str]:
    """Warnings about the data, a line each: blank texts, classes with few or no training rows, rows in both files.

    Args:
        task, splits: as for `description`. Dev rows that are also training rows are marked.
    """
    lines = []
    for split, dataset in splits.items():
        if dataset.blank and dataset.blank >= _MANY_BLANK * len(dataset):
            lines.append(f"{_TITLES[split]}: {dataset.blank} of {len(dataset)} texts are empty or a word such as NaN")
    train, dev = splits.get("train"), splits.get("dev")
    if train is not None and (without := task.kind.never_seen(task, train.labels)):
        lines.append(f"{_TITLES['train']}: no row of {listed(without)}: the model cannot learn it")
    if train is not None and task.num_labels > max(2, _MANY_CLASSES * len(train)):
        lines.append(
            f"{_TITLES['train']}: {task.num_labels} classes in {len(train)} rows: is it the right --label_column? "
            "Scores must be numbers without signs of currency or percent (--task_kind regression)"
        )
    if train is not None and dev is not None and (shared := int(dev.known.sum())):
        rest = "" if shared == len(dev) else "; the results give it without them too"
        lines.append(
            f"{_TITLES['dev']}: {shared} of {len(dev)} texts are also training texts, so the metric is too high{rest}"
        )
    return lines


def unknown_in(splits: Mapping[str, FeatureDataset], accepted: bool) -> list[str]:
    """Warnings about data with many tokens that the tokenizer does not know.

    Raises:
        UserError: they are more than half, and `--accept_unknown_tokens` is not given.
    """
    found = (problem(rows.unknown, _TITLES[split], accepted, FLAG) for split, rows in splits.items())
    return [line for line in found if line is not None]


def same_label(task: Task, dataset: FeatureDataset) -> str | None:
    """What all rows of a data set have if they have the same label or labels; None if they differ, and for scores."""
    return None if dataset.labels is None else task.kind.same_label(task, dataset.labels)


def _rows(task: Task, dataset: FeatureDataset) -> str:
    labels = "" if dataset.labels is None else task.kind.describe_labels(task, dataset.labels)
    return f"{len(dataset)} rows{labels}"


def _origin(task: Task, split: str) -> str:
    layout = getattr(task, split)
    if layout is None or not layout.is_split or split != "dev":
        return ""
    return f" (set aside from {FILE_FLAGS['train']}, as there is no {FILE_FLAGS['dev']})"
