"""Reads the rows that a cascade is calibrated on, checked with, or classifies: texts, and labels if there are any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emmental.cascade.words import Text
from emmental.errors import UserError, names_near
from emmental.tasks.classes import are_numbered, same_class
from emmental.tasks.files import FORMATS, TEXT_LINES, member_name, read_table
from emmental.tasks.own_files import Reading
from emmental.tasks.task import listed

_TEXTS, _PAIR, _LABEL = ("sentence1", "sentence", "text"), "sentence2", "label"


@dataclass(frozen=True)
class Rows:
    """Texts, with labels if there are any.

    Attributes:
        texts: strings, or pairs.
        labels: as `answers_in` takes them; those of a file as they are spelled; None: not known.
    """

    texts: Sequence[Text]
    labels: Sequence[object] | None = None


def read_rows(path: str | Path, flag: str, reading: Reading | None = None) -> Rows:
    """The rows of a table (.csv, .tsv, .jsonl, .json, .parquet), or the lines of a text.

    Args:
        path: a file.
        flag: that names it, for messages.
        reading: names of columns, delimiter, encoding. By default the text is `sentence1`, `sentence` or `text`, the
            second text of a pair `sentence2`, and the label `label`.

    Raises:
        UserError: no such file, or what `read_table` refuses; one line that names the flag.
    """
    path, reading = Path(path), reading or Reading()
    if not path.is_file():
        near = names_near(str(path), files=True)
        raise UserError(f"{flag} {path} is not a file" + (f"; {near}" if near else ""))
    kind = FORMATS.get(Path(member_name(path)).suffix.lower(), TEXT_LINES)
    wanted = [reading.text, reading.pair, reading.label]
    keys = [one for one in (*wanted, *_TEXTS, _PAIR, _LABEL) if one is not None]
    how = {"delimiter": reading.delimiter, "encoding": reading.encoding}
    try:
        table = read_table(path, kind, kind != TEXT_LINES, keys, as_found=True, **how)
        if kind == TEXT_LINES:
            return Rows([cells[0] for _, cells in table.rows])
        header = table.header or []
        table.require([one for one in wanted if one is not None])
        first = table.column(reading.text or next((name for name in _TEXTS if name in header), _TEXTS[0]))
        second = reading.pair or (_PAIR if _PAIR in header else None)
        label = reading.label or (_LABEL if _LABEL in header else None)
        texts: list[Text] = [cells[first] for _, cells in table.rows]
        if second is not None:
            place = table.column(second)
            texts = [(cells[first], cells[place]) for _, cells in table.rows]
        return Rows(texts, None if label is None else [cells[table.column(label)] for _, cells in table.rows])
    except UserError as error:
        raise UserError(f"{flag} {error}") from None


def answers_in(labels: Sequence[object], classes: Sequence[str], several: bool, separator: str = ";") -> np.ndarray:
    """Labels as a model's answers: (N,) class ids, or (N, L) bool for several labels at once.

    Args:
        labels: names of classes (any case); numbers if the classes are `LABEL_0`, ... Of several labels at once:
            lists of names, or names with `separator` between.
        classes: names, in the order of the answers.

    Raises:
        UserError: a label that is none of the classes.
    """
    ids = {name: place for place, name in enumerate(classes)}

    def place_of(label: object) -> int:
        name = str(label).strip()
        near = name if name in ids else same_class(name, classes)
        if near is not None:
            return ids[near]
        if are_numbered(classes) and name.isdecimal() and int(name) < len(classes):
            return int(name)
        raise UserError(f"label {name!r} is none of the last stage's classes: {listed(classes)}")

    if not several:
        return np.array([place_of(label) for label in labels], np.int64)
    found = np.zeros((len(labels), len(classes)), bool)
    for row, label in enumerate(labels):
        parts = label.split(separator) if isinstance(label, str) else label
        for part in parts:
            if str(part).strip():
                found[row, place_of(part)] = True
    return found
