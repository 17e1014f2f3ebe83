"""Rows held back from training: which they are, that nothing trains on them, and when they are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emmental.errors import UserError
from emmental.tasks import hold_back, read_held_back, read_split, resolve_task, user_task
from emmental.tasks.held_back import held_back_limit
from emmental.tasks.own_files import Reading
from emmental.tasks.set_aside import TrainedRows, recorded_rows, row_places, trained_rows


def texts(rows: int) -> list[str]:
    return [f"text {row}" for row in range(rows)]


def write(path: Path, rows: list[str]) -> Path:
    path.write_text("sentence1,label\n" + "".join(f"{row},{'xy'[at % 2]}\n" for at, row in enumerate(rows)))
    return path


@pytest.mark.parametrize(
    ("rows", "needed", "fewest", "most"),
    [
        (60, 20, 20, 20),
        (1000, 20, 160, 240),
        (1000, 373, 373, 373),
        (30_000, 20, 2000, 2000),
        (30_000, 3744, 3744, 3744),
    ],
)
def test_a_fifth_but_at_least_what_is_needed_and_at_most_2000(rows, needed, fewest, most):
    places = row_places(texts(rows))
    assert fewest <= (places >= held_back_limit(places, needed)).sum() <= most


@given(
    st.lists(st.integers(0, 300), min_size=2, max_size=400),
    st.lists(st.integers(0, 300), max_size=400),
    st.integers(1, 40),
)
def test_no_training_row_is_held_back_when_the_file_grows(first, more, needed):
    before = row_places([f"text {each}" for each in first])
    if len(set(before)) == 1:
        return
    limit = held_back_limit(before, needed)
    assert 0 < (before >= limit).sum() < len(before)
    after = held_back_limit(row_places([f"text {each}" for each in first + more]), needed)
    assert after >= limit or (before < limit).sum() == (before == before.min()).sum()


def test_dev_training_and_held_back_rows_share_no_text(tmp_path):
    """The dev rows are those with the lowest places, the rows held back those with the highest."""
    file = write(tmp_path / "a.csv", [*texts(500), *texts(50)])
    reading = Reading(set_aside=True)
    whole = user_task(file, None, None, reading=reading)
    task = hold_back(whole, None, 40)
    dev, train = (read_split(task, None, split) for split in ("dev", "train"))
    held_back = read_held_back(task, None)
    parts = [set(one.texts_a) for one in (dev, train, held_back)]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    assert parts[0] | parts[1] | parts[2] == {*texts(500)}
    assert dev.texts_a == read_split(whole, None, "dev").texts_a
    assert min(row_places(held_back.texts_a)) > max(row_places(train.texts_a)) > max(row_places(dev.texts_a))
    assert [note for note in train.notes if f"{len(held_back.texts_a)} of the rows are held back" in note]
    assert task.trained_rows == TrainedRows(
        whole.trained_rows.limit, whole.trained_rows.sample, held_back_from=task.train.held_back_from
    )


def test_pairs_of_the_hub_in_several_files(tmp_path):
    """Both files of MRPC lose rows, and labels stay with their texts."""
    columns = {"sentence1": texts(300), "sentence2": [f"other {row}" for row in range(300)]}
    table = pyarrow.table(columns | {"label": [row % 2 for row in range(300)], "idx": [*range(300)]})
    (tmp_path / "mrpc").mkdir()
    for number in range(2):
        part = table.slice(150 * number, 150)
        pyarrow.parquet.write_table(part, tmp_path / "mrpc" / f"train-0000{number}-of-00002.parquet")
    task = hold_back(resolve_task("mrpc"), tmp_path, 20)
    train, held_back = read_split(task, tmp_path, "train"), read_held_back(task, tmp_path)
    assert 40 <= len(held_back.texts_a) <= 80
    assert len(train.texts_a) + len(held_back.texts_a) == 300
    for one in (train, held_back):
        numbers = [int(text.split()[1]) for text in one.texts_a]
        assert one.labels == [row % 2 for row in numbers]
        assert one.texts_b == [f"other {row}" for row in numbers]
        assert one.indices == [str(row) for row in numbers]


def test_too_few_rows_are_refused(tmp_path):
    task = user_task(write(tmp_path / "a.csv", texts(99)), None, None)
    with pytest.raises(
        UserError, match="50 training rows must be held back, at most half of all: it takes 100, got 99"
    ):
        hold_back(task, None, 50)
    assert len(read_held_back(hold_back(task, None, 49), None).texts_a) == 49
    same = user_task(write(tmp_path / "b.csv", ["a"] * 100), None, None)
    with pytest.raises(UserError, match="must be held back"):
        hold_back(same, None, 20)


def test_a_model_may_only_have_seen_the_other_rows(tmp_path):
    task = user_task(write(tmp_path / "a.csv", texts(400)), None, None)
    places = row_places(texts(400))
    own = hold_back(task, None, 50)
    limit = own.train.held_back_from
    assert hold_back(task, None, 50, own.trained_rows, "m") == own
    fewer = trained_rows(places, 0.0)
    with pytest.raises(UserError, match=r"^m was trained on the rows that would be held back"):
        hold_back(task, None, 50, fewer, "m")
    later = TrainedRows(0.0, fewer.sample, held_back_from=float(np.sort(places)[-55]))
    assert hold_back(task, None, 50, later, "m").train.held_back_from == later.held_back_from > limit
    with pytest.raises(UserError, match=r"^m was trained on"):
        hold_back(task, None, 60, later, "m")
    assert hold_back(task, None, 50, trained_rows(row_places(["of another file"]), 0.0), "m") == own


def test_the_record_is_read_back(tmp_path):
    record = TrainedRows(0.1, "0a0b0c0d", held_back_from=0.8)
    for text in ({"set_aside": record.record()}, {"set_aside": {**record.record(), "held_back_from": "much"}}):
        (tmp_path / "config.json").write_text(json.dumps(text))
        assert recorded_rows(tmp_path).held_back_from == (0.8 if text["set_aside"]["held_back_from"] == 0.8 else None)
    assert "held_back_from" not in TrainedRows(0.1, "").record()
