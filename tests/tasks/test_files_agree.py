"""Any table of rows gives the same examples as CSV, TSV, JSON lines or parquet, or an error that names a row."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emmental.errors import UserError
from emmental.tasks import read_split, user_task

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

NAMES = ("sentence1", "sentence2", "label")
Rows = list[tuple[str, str, str]]

# A line end inside a cell is a row of its own in .tsv, and "\r\n" is one line end in text: these are left out.
text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t\n\r"), max_size=12)
label = st.one_of(st.sampled_from(["yes", "no", "None", "1", "2.5", "", "nan", "a|b", "a", "b", "Yes"]), text)
tables = st.lists(st.tuples(text, text, label), min_size=1, max_size=8)


def as_csv(path: Path, rows: Rows) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([NAMES, *rows])


def as_tsv(path: Path, rows: Rows) -> None:
    path.write_bytes("".join("\t".join(row) + "\n" for row in [NAMES, *rows]).encode())


def as_json_lines(path: Path, rows: Rows) -> None:
    path.write_bytes("".join(json.dumps(dict(zip(NAMES, row, strict=True))) + "\n" for row in rows).encode())


def as_parquet(path: Path, rows: Rows) -> None:
    parquet.write_table(pyarrow.table(dict(zip(NAMES, map(list, zip(*rows, strict=True)), strict=True))), path)


WRITERS: dict[str, Callable[[Path, Rows], None]] = {
    ".csv": as_csv,
    ".tsv": as_tsv,
    ".jsonl": as_json_lines,
    ".parquet": as_parquet,
}


def outcome(path: Path) -> tuple:
    """What a file gives: classes and examples, or what is wrong without the place."""
    try:
        task = user_task(path, None, None)
        split = read_split(task, None, "train")
    except UserError as error:
        message = str(error)
        assert "\n" not in message
        assert message.startswith(f"--train_file {path}:")
        return ("refused",)
    return task.labels, split.texts_a, split.texts_b, split.labels


@settings(max_examples=150, deadline=None)
@given(tables)
def test_every_format_gives_the_same_examples(rows: Rows) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for suffix, write in WRITERS.items():
            path = Path(folder) / f"t{suffix}"
            write(path, rows)
            found[suffix] = outcome(path)
    assert len({repr(each) for each in found.values()}) == 1, found
    labels, texts_a, texts_b, ids = found[".csv"] if len(found[".csv"]) == 4 else (None, [], [], [])
    if labels is not None:
        assert list(zip(texts_a, texts_b, strict=True)) == [row[:2] for row in rows]
        spelled = [row[2].strip() for row in rows]
        assert [labels[number] for number in ids] == spelled if labels else ids == [float(each) for each in spelled]
