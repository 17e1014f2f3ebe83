"""Reads a label column: classes or scores. Refuses everything else."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from emmental.errors import UserError
from emmental.tasks.files import Row
from emmental.tasks.wording import listed

if TYPE_CHECKING:
    from emmental.tasks.task import Task

MAX_CLASSES = 1000
MISSING = ("", "nan", "+nan", "-nan", "nat", "null", "(null)", "<null>", "<na>", "\\n", "#n/a", "#null!")
"""Cells that mean a missing label, as pandas, databases and spreadsheets write it: in lower case, without quotes and
invisible characters. `None` is not among them, because it is also a word."""
_MAYBE_MISSING = ("na", "n/a", "-", "--", "?", "undefined", "nil", "missing")
_NOT_DRAWN = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"  # fillers, joiners, an empty Braille cell
LARGEST_SCORE = 1e18
"""The loss squares scores. The square of a larger score could overflow float32."""
_MANY_NUMBERS, _MOSTLY = 20, 0.5
_SEPARATORS = ",;|"
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", re.ASCII)
_SPACES = " \u00a0\u202f'\u2019"
"""What separates thousands in Switzerland, in France and in the norm of the SI."""
_NOT_FINITE = ("inf", "infinity", "nan")


def number_in(text: str) -> float | None:
    """The number in a cell, in ASCII, also `inf` and `nan`; None if it is not a number."""
    text = text.strip()
    if _NUMBER.fullmatch(text) or text.lower().lstrip("+-") in _NOT_FINITE:
        return float(text)
    return None


def plain_number(cell: str, decimal_comma: bool = False, thousands: str = "") -> str:
    """A number with a decimal point and nothing between its digits.

    Args:
        cell: as in the file.
        decimal_comma: whether its comma stands for the point.
        thousands: characters between its groups of three digits.
    """
    cell = cell.strip().translate(dict.fromkeys(map(ord, thousands)))
    return cell.replace(",", ".") if decimal_comma else cell


def number_format(cells: Iterable[str]) -> tuple[bool, str] | None:
    """How numbers with commas or groups of digits are written: `decimal_comma` and `thousands` of `plain_number`.

    Commas separate thousands if three digits follow every one of them and no number begins with 0. Points do if there
    are commas behind them, or two points in a number. None if cells are no numbers, or all are numbers as they stand.
    """
    cells = [cell.strip() for cell in cells]
    if all(_NUMBER.fullmatch(cell) for cell in cells):
        return None

    def fit(separators: str, point: str) -> bool:
        fraction = rf"({re.escape(point)}[0-9]+)?"
        grouped = rf"[1-9][0-9]{{0,2}}([{re.escape(separators)}][0-9]{{3}})+{fraction}" if separators else r"(?!)"
        form = re.compile(rf"[+-]?({grouped}|[0-9]+{fraction})", re.ASCII)
        return all(form.fullmatch(cell) for cell in cells)

    ways = ((",", "."), ("", ","), (".", ","), (_SPACES, "."), (_SPACES, ","))
    return next(((point == ",", separators) for separators, point in ways if fit(separators, point)), None)


def how_numbers_are_read(rows: Sequence[Row], column: int, decimal_comma: bool, thousands: str) -> str:
    """A line for the user, with an example."""
    cells = [row[column].strip() for _, row in rows]
    shown = max(cells, key=lambda cell: (sum(not each.isdigit() for each in cell), len(cell)))
    what = "commas in the labels are decimal commas"
    if thousands:
        names = {",": "commas", ".": "points"}.get(thousands, "spaces or apostrophes")
        what = f"{names} in the labels separate thousands"
        what += ", commas are decimal" if decimal_comma else ""
    return f"{what}: {shown!r} is {float(plain_number(shown, decimal_comma, thousands)):.15g}"


def possible_thousands(cells: Iterable[str]) -> str | None:
    """A label whose point may separate thousands, as three digits follow every point: 12.500. None: no doubt."""
    cells = [cell.strip() for cell in cells]
    pointed = [cell for cell in cells if "." in cell]
    doubtful = all(re.fullmatch(r"[+-]?([1-9][0-9]{0,2}\.[0-9]{3}|[0-9]{1,3})", cell, re.ASCII) for cell in cells)
    return max(pointed, key=len) if doubtful and any(len(cell) > len("1.000") for cell in pointed) else None


def without_missing(place: str, rows: Sequence[Row], column: int) -> list[str]:
    """The cells of a label column without spaces around them.

    Args:
        place: the file, with its flag, for messages.
        rows: of a table.
        column: its position.

    Raises:
        UserError: a label is missing, or a cell is a list of several; names file and line.
    """
    cells = []
    for line, row in rows:
        cell = row[column].strip()
        if is_missing(cell):
            raise UserError(f"{place}:{line}: the label is missing ({cell!r}); give the row a label, or remove it")
        if is_list(cell):
            raise UserError(f"{place}:{line}: label {cell!r} is a list where one label is expected")
        cells.append(cell)
    return cells


def is_missing(cell: str) -> bool:
    """Whether a cell means a missing label, see `MISSING`."""
    return _visible(cell).strip("\"'").lower() in MISSING


def is_list(cell: str) -> bool:
    """Whether a cell without spaces around it is written as a list."""
    return cell.startswith("[") and cell.endswith("]")


def classes_in(
    place: str,
    rows: Sequence[Row],
    column: int,
    kind: str | None = None,
    decimal_comma: bool = False,
    thousands: str = "",
) -> tuple[str, ...]:
    """The classes of a labelled file, sorted (as numbers if all are numbers); empty if it holds scores.

    Labels are scores if all are numbers and some have a fractional part.

    Args:
        place, rows, column: see `without_missing`.
        kind: `"classification"` or `"regression"` if the user says it.
        decimal_comma, thousands: how numbers are written, see `plain_number`.

    Raises:
        UserError: a label is missing, several labels in a cell, fewer than two classes or too many, or scores of
            which some are not numbers.
    """
    cells = without_missing(place, rows, column)
    counts = Counter(cells)
    values = {label: number_in(plain_number(label, decimal_comma, thousands)) for label in counts}
    if kind == "regression":
        return ()
    odd = [label for label, value in values.items() if value is None]
    fractions = any(value is not None and math.isfinite(value) and value % 1 for value in values.values())
    if kind is None and not odd and (fractions or thousands or not all(map(math.isfinite, values.values()))):
        return ()  # the reader of scores refuses infinite ones

    def line_of(label: str) -> int:
        return rows[cells.index(label)][0]

    if kind is None and odd and (wide := number_format(counts)):
        value = float(plain_number(odd[0], *wide))
        raise UserError(
            f"{place}:{line_of(odd[0])}: label {odd[0]!r} may be a number, or several labels in a cell "
            f"(--label_separator); --task_kind regression reads it as {value:.15g}, --task_kind classification as a "
            "class"
        )
    if kind is None and odd and _looks_like_scores(counts, values):
        raise UserError(
            f"{place}:{line_of(odd[0])}: {odd[0]!r} is not a number, but most labels are; correct it, or give "
            "--task_kind classification (or regression)"
        )
    if kind is None and (several := _several_labels(counts)):
        raise UserError(
            f"{place}:{line_of(several[0])}: label {several[0]!r} is several labels in a cell; --label_separator "
            f"{several[1]!r} trains several at once, --task_kind classification takes the whole cell as one class"
        )
    if len(counts) < 2:
        raise UserError(f"{place}: one label only, {next(iter(counts))!r}; two are needed")
    if len(counts) > MAX_CLASSES:
        label = odd[0] if odd else next(iter(counts))
        raise UserError(
            f"{place}:{line_of(label)}: label {label!r} is one of {len(counts)} different labels; "
            f"at most {MAX_CLASSES} classes are accepted; if the labels are scores, give --task_kind regression"
        )
    return sorted_labels(counts)


def sorted_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Labels sorted, as numbers if all are numbers."""
    labels = list(labels)
    if all(re.fullmatch(r"[+-]?[0-9]+", label) for label in labels):
        return tuple(sorted(labels, key=lambda label: (int(label), label)))  # without the rounding of a float
    if all(_NUMBER.fullmatch(label) for label in labels):
        return tuple(sorted(labels, key=lambda label: (float(label), label)))
    return tuple(sorted(labels))


def look_alikes(cells: Sequence[str]) -> list[str]:
    """Warnings about labels that may be mistakes.

    A line for each group of labels that differ only in case, spaces, invisible characters or like `1` and `1.0`; and
    one for words such as `n/a`, which may mean a missing label.
    """
    counts = Counter(cells)
    groups: dict[str, list[str]] = {}
    for label in counts:
        groups.setdefault(_looks(label), []).append(label)
    alike = [[f"{label!a} ({counts[label]} rows)" for label in each] for each in groups.values() if len(each) > 1]
    maybe = [f"{label!a} ({counts[label]} rows)" for label in counts if label.lower() in _MAYBE_MISSING]
    return [
        *(f"labels that look alike are different classes: {listed(each)}" for each in alike),
        *(
            [f"these labels are read as classes: {listed(maybe)}; remove these rows if their label is missing"]
            if maybe
            else []
        ),
    ]


def class_numbers(task: Task) -> dict[str, int]:
    """Label, or name of a class -> its number."""
    ids = {name: number for number, name in enumerate(task.names)}
    return ids | {label: number for number, label in enumerate(task.labels)}


def class_ids(place: str, rows: Sequence[Row], column: int, task: Task) -> list[int]:
    """The class ids of a label column. Labels are spelled as in the task's files, or are names of its classes.

    Raises:
        UserError: a label is missing, or no class of the task.
    """
    ids = class_numbers(task)
    cells = without_missing(place, rows, column)
    for (line, _), cell in zip(rows, cells, strict=True):
        if cell not in ids:
            alike = next((f"; it looks like {label!r}" for label in task.labels if _looks(label) == _looks(cell)), "")
            raise UserError(f"{place}:{line}: label {cell!r} is none of {listed(task.labels)}{alike}")
    return [ids[cell] for cell in cells]


def scores(
    place: str, rows: Sequence[Row], column: int, task: Task, decimal_comma: bool = False, thousands: str = ""
) -> list[float]:
    """The scores of a label column.

    Raises:
        UserError: a label is missing, is not a number, not finite, out of the task's range, or too large for the loss.
    """
    low, high = task.label_range or (-math.inf, math.inf)
    found = []
    for (line, _), cell in zip(rows, without_missing(place, rows, column), strict=True):
        value = number_in(plain_number(cell, decimal_comma, thousands))
        if value is None or not math.isfinite(value) or not low <= value <= high:
            accepted = f"from {low:g} to {high:g}" if task.label_range else "that is finite"
            raise UserError(f"{place}:{line}: score {cell!r} where a number {accepted} is expected")
        if abs(value) > LARGEST_SCORE:
            raise UserError(
                f"{place}:{line}: score {cell!r} is too large: above {LARGEST_SCORE:g} the squared error may not "
                "fit a float32; divide all scores by a constant"
            )
        found.append(value)
    return found


def _looks_like_scores(counts: Counter[str], values: dict[str, float | None]) -> bool:
    numbers = {label: value for label, value in values.items() if value is not None}
    rows = sum(counts[label] for label in numbers)
    fractions = any(value % 1 for value in numbers.values() if math.isfinite(value))
    return rows > _MOSTLY * counts.total() and (fractions or len(numbers) > _MANY_NUMBERS)


def _several_labels(counts: Counter[str]) -> tuple[str, str] | None:
    """A cell that a separator splits into parts that are all labels of other rows, and the separator."""
    for separator in _SEPARATORS:
        parts = {label: [part.strip() for part in label.split(separator)] for label in counts}
        seen = Counter(part for each in parts.values() for part in set(each))
        for label, each in parts.items():
            if len(each) > 1 and all(part and seen[part] > 1 for part in each):
                return label, separator
    return None


def _visible(text: str) -> str:
    """Without white space and invisible characters (zero-width spaces, marks of direction, variants)."""

    def is_drawn(each: str) -> bool:
        unseen = each.isspace() or each in _NOT_DRAWN or "\ufe00" <= each <= "\ufe0f"
        return not unseen and unicodedata.category(each) not in ("Cf", "Cc")

    return "".join(filter(is_drawn, text))


def _looks(label: str) -> str:
    text = _visible(unicodedata.normalize("NFKC", label)).casefold()
    value = number_in(text)
    return text if value is None else repr(value)
