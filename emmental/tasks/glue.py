"""The ten GLUE tasks and the diagnostic set `ax`: files, columns, classes, metrics."""

from __future__ import annotations

from dataclasses import replace

from emmental.errors import UserError
from emmental.tasks.task import Layout, Task

_YES_NO = ("0", "1")
_NAMES = {
    "cola": ("unacceptable", "acceptable"),
    "sst-2": ("negative", "positive"),
    "mrpc": ("not_equivalent", "equivalent"),
    "qqp": ("not_duplicate", "duplicate"),
    "wnli": ("not_entailment", "entailment"),
}
"""Names of the classes that the `.tsv` files call 0 and 1."""
_ENTAILMENT = ("entailment", "not_entailment")
_NLI = ("contradiction", "entailment", "neutral")
_ACC_F1 = ("acc", "f1", "acc_and_f1")
_OF_SCORES = ("pearson", "spearmanr", "corr", "rmse", "mae")


def _labelled(layout: Layout, file: str, label: int) -> Layout:
    """The layout of a labelled file whose other columns are those of `layout`."""
    return Layout((file,), layout.text_a, layout.text_b, label, layout.index, layout.names, layout.header)


def _pairs(name: str, labels: tuple[str, ...], file: str, test: Layout, **others: object) -> Task:
    """A task of sentence pairs with the label in the last column and the other columns as in its test file."""
    train, dev = _labelled(test, "train.tsv", -1), _labelled(test, "dev.tsv", -1)
    options: dict = {"metrics": ("acc",), "primary_metric": "acc", "train": train, "dev": dev, **others}
    return Task(name, labels, prediction_file=file, test=test, **options)


def _mnli(name: str, suffix: str, file: str, aliases: tuple[str, ...] = ()) -> Task:
    test = Layout((f"test_{suffix}.tsv",), 8, 9, index=0, names=("sentence1", "sentence2"))
    dev = _labelled(test, f"dev_{suffix}.tsv", -1)
    metric = f"{name}/acc"
    return _pairs(name, _NLI, file, test, dev=dev, metrics=(metric,), primary_metric=metric, aliases=aliases)


def _cola() -> Task:
    train, dev = (Layout((f"{split}.tsv",), 3, label=1, header=False) for split in ("train", "dev"))
    test = Layout(("test.tsv",), 1, index=0, names=("sentence",))
    return Task("cola", _YES_NO, ("mcc",), "mcc", "CoLA.tsv", train, dev, test, names=_NAMES["cola"])


def _sst2() -> Task:
    train, dev = (Layout((f"{split}.tsv",), 0, label=1, names=("sentence", "label")) for split in ("train", "dev"))
    test = Layout(("test.tsv",), 1, index=0, names=("sentence",))
    more = {"aliases": ("sst2",), "names": _NAMES["sst-2"]}
    return Task("sst-2", _YES_NO, ("acc",), "acc", "SST-2.tsv", train, dev, test, **more)


def _mrpc() -> Task:
    names = ("#1 String", "#2 String")
    train, dev = (Layout((f"{s}.tsv",), 3, 4, 0, names=(*names, "Quality")) for s in ("train", "dev"))
    test = Layout(("test.tsv",), 3, 4, index=0, names=names)
    return Task("mrpc", _YES_NO, _ACC_F1, "acc_and_f1", "MRPC.tsv", train, dev, test, names=_NAMES["mrpc"])


def _stsb() -> Task:
    test = Layout(("test.tsv",), 7, 8, index=0, names=("sentence1", "sentence2"))
    kind = {"metrics": _OF_SCORES, "primary_metric": "corr", "label_range": (0.0, 5.0), "aliases": ("stsb",)}
    return _pairs("sts-b", (), "STS-B.tsv", test, **kind)


def _qqp() -> Task:
    names = ("question1", "question2")
    train, dev = (
        Layout((f"{s}.tsv",), 3, 4, 5, 0, (*names, "is_duplicate"), skips_broken_rows=True) for s in ("train", "dev")
    )
    test = Layout(("test.tsv",), 1, 2, index=0, names=names)
    return Task("qqp", _YES_NO, _ACC_F1, "acc_and_f1", "QQP.tsv", train, dev, test, names=_NAMES["qqp"])


def _ax() -> Task:
    test = Layout(("AX.tsv", "diagnostic.tsv"), 1, 2, index=0, names=("sentence1", "sentence2"))
    return Task("ax", _NLI, (), None, "AX.tsv", None, None, test)


def _second_and_third_column(first: str, second: str) -> Layout:
    return Layout(("test.tsv",), 1, 2, index=0, names=(first, second))


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _cola(),
        _sst2(),
        _mrpc(),
        _stsb(),
        _qqp(),
        _mnli("mnli", "matched", "MNLI-m.tsv"),
        _mnli("mnli-mm", "mismatched", "MNLI-mm.tsv", aliases=("mnli_mismatched",)),
        _pairs("qnli", _ENTAILMENT, "QNLI.tsv", _second_and_third_column("question", "sentence")),
        _pairs("rte", _ENTAILMENT, "RTE.tsv", _second_and_third_column("sentence1", "sentence2")),
        _pairs("wnli", _YES_NO, "WNLI.tsv", _second_and_third_column("sentence1", "sentence2"), names=_NAMES["wnli"]),
        _ax(),
    )
}
"""The GLUE tasks and the diagnostic set by name."""


def resolve_task(name: str) -> Task:
    """The GLUE task of a name, in any case and under any accepted alias.

    Raises:
        UserError: no such task; lists the names.
    """
    for task in TASKS.values():
        if name.lower() in (task.name, *task.aliases):
            return task
    accepted = ", ".join(" or ".join((task.name, *task.aliases)) for task in TASKS.values())
    raise UserError(f"--task_name {name!r} is none of {accepted}")


def evaluation_tasks(task: Task) -> tuple[Task, ...]:
    """The tasks that a model of this task is evaluated on: for `mnli` two, with their classes in the same order."""
    if task.name != "mnli":
        return (task,)
    return task, replace(TASKS["mnli-mm"], labels=task.labels, names=task.names)
