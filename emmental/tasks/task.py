"""What a task is: its classes or score, its metrics, and the columns of its files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from emmental.errors import UserError
from emmental.tasks.set_aside import TrainedRows

SPLITS = ("train", "dev", "test")
CUSTOM = "custom"
FILE_FLAGS = {"train": "--train_file", "dev": "--validation_file", "test": "--test_file"}
LONGEST_LIST = 10


@dataclass(frozen=True)
class Layout:
    """The columns of one split. A column is a position from 0 (-1: the last one), or a name.

    Attributes:
        files: names tried in order inside the data folder, or one absolute path.
        text_a, text_b: the sentence, and the second one of a pair or None.
        label: None if the labels are not published.
        index: the example's name in a prediction file; None counts rows from 0.
        names: what the header calls text a, text b (of pairs) and label, as far as it is documented; a header that has
            such a name elsewhere is refused.
        kind: `"tsv"`, `"csv"`, `"jsonl"`, `"parquet"`, or `"lines"`: each line is a text.
        columns: what to read from `"jsonl"` and `"parquet"`; a delimiter is recognised by these names.
        delimiter, encoding: the user's setting; None: detected.
        decimal_comma: whether `3,5` is a score.
        thousands: characters between groups of three digits in scores, as in `1,250`.
        codes: the classes for 0, 1, ... in the label column; empty if labels are spelled.
        skips_broken_rows: whether rows broken over lines are skipped and counted.
        set_aside_up_to: `"dev"` has the rows up to this place, `"train"` the others; see `emmental.tasks.set_aside`.
        set_aside: the same by a seed, as in the training of a model of an older version.
        held_back_from: rows from this place on are not read as training rows; see `emmental.tasks.held_back`.
    """

    files: tuple[str, ...]
    text_a: int | str
    text_b: int | str | None = None
    label: int | str | None = None
    index: int | str | None = None
    names: tuple[str, ...] = ()
    header: bool = True
    kind: str = "tsv"
    columns: tuple[str, ...] = ()
    delimiter: str | None = None
    encoding: str | None = None
    decimal_comma: bool = False
    codes: tuple[str, ...] = ()
    skips_broken_rows: bool = False
    set_aside: int | None = None
    set_aside_up_to: float | None = None
    thousands: str = ""
    held_back_from: float | None = None

    @property
    def is_split(self) -> bool:
        """Whether dev and training rows come from the same file."""
        return self.set_aside is not None or self.set_aside_up_to is not None


@dataclass(frozen=True)
class Task:
    """One classification or regression task.

    Attributes:
        name: the value of `--task_name`; `"custom"` for own files.
        labels: spelled as in the files, in the order of the class ids; empty for regression. GLUE's order, or that of
            the model (see `emmental.tasks.classes`).
        metrics: keys of `compute_metrics`, none where labels are not published.
        primary_metric: the key that ranks models, the higher the better.
        prediction_file: name of the file that the GLUE server takes.
        train, dev, test: layouts; None if the task has no such split.
        label_range: lowest and highest score of a regression task, or None.
        aliases: other accepted spellings of the name.
        names: names of the classes for a model's configuration, in the order of `labels`; default: the labels.
        positive_label: for two classes, the one that F1 is computed for; default: the second label.
        trained_rows: of own files: what a model records about its training rows.
    """

    name: str
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    primary_metric: str | None
    prediction_file: str
    train: Layout | None
    dev: Layout | None
    test: Layout | None
    label_range: tuple[float, float] | None = None
    aliases: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    positive_label: str | None = None
    trained_rows: TrainedRows | None = None

    def __post_init__(self) -> None:
        if not self.names:
            object.__setattr__(self, "names", self.labels)
        if self.positive_label is None and len(self.labels) == 2:
            object.__setattr__(self, "positive_label", self.labels[1])

    @property
    def is_regression(self) -> bool:
        """Whether a score is predicted instead of a class."""
        return not self.labels

    @property
    def positive_name(self) -> str | None:
        """The name of the class that F1 is computed for; None unless there are two classes."""
        return None if self.positive_label is None else self.names[self.labels.index(self.positive_label)]

    @property
    def num_labels(self) -> int:
        """Width of the model's output: the number of classes, 1 for regression."""
        return len(self.labels) or 1

    def reordered(self, order: Sequence[int]) -> Task:
        """The same task in another order of classes: its class `i` is the present class `order[i]`."""
        labels, names = (tuple(each[number] for number in order) for each in (self.labels, self.names))
        return replace(self, labels=labels, names=names)

    def with_positive(self, name: str) -> Task:
        """The same task with F1 computed for the class with this label or name.

        Raises:
            UserError: no such class, or not a task of two classes.
        """
        if len(self.labels) != 2:
            raise UserError(
                f"--positive_label {name} is for two classes; this task has {len(self.labels) or 'scores'}"
            )
        for label, other in zip(self.labels, self.names, strict=True):
            if name.casefold() in (label.casefold(), other.casefold()):
                return replace(self, positive_label=label)
        raise UserError(f"--positive_label {name} is none of {listed(self.names)}")

    def layout(self, split: str) -> Layout:
        """Columns of `"train"`, `"dev"` or `"test"`.

        Raises:
            UserError: the task has no such split; names the flag that would give it.
        """
        if split not in SPLITS:
            raise UserError(f"split {split!r} is none of {', '.join(SPLITS)}")
        layout = {"train": self.train, "dev": self.dev, "test": self.test}[split]
        if layout is None and self.name == CUSTOM:
            raise UserError(f"{FILE_FLAGS[split]} is not given: own files have no {split} split without it")
        if layout is None:
            raise UserError(f"--task_name {self.name} has no {split} split: use --do_predict with a model of mnli")
        return layout


@dataclass
class Split:
    """The examples of a split: `texts_b` is None for single sentences, `labels` (class ids or scores) for test.

    `notes` tell the user how the files were read.
    """

    texts_a: list[str]
    texts_b: list[str] | None
    labels: list[int] | list[float] | None
    indices: list[str]
    notes: list[str] = field(default_factory=list, compare=False)


def listed(names: Iterable[object]) -> str:
    """Names with commas between them, for a message of one line. Long lists are cut: "and 7 more"."""
    shown = [text if (text := " ".join(str(name).splitlines())).isprintable() else repr(text) for name in names]
    if len(shown) <= LONGEST_LIST:
        return ", ".join(shown)
    return f"{', '.join(shown[:LONGEST_LIST])} and {len(shown) - LONGEST_LIST} more"
