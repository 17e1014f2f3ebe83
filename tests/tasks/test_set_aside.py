"""The rows that are set aside: by a hash, so that no row that a model was trained on is evaluated later."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emmental.errors import UserError
from emmental.tasks import read_split, user_task
from emmental.tasks.own_files import Reading
from emmental.tasks.set_aside import (
    TrainedRows,
    choose,
    drawn_by_seed,
    limit_for,
    recorded_rows,
    row_places,
    trained_rows,
    warning_of_seen_rows,
)

ASIDE = Reading(set_aside=True)


def texts(rows: int) -> list[str]:
    return [f"text {row}" for row in range(rows)]


def write(path: Path, rows: list[str]) -> Path:
    """Rows with two classes in turn."""
    path.write_text("sentence1,label\n" + "".join(f"{row},{'xy'[at % 2]}\n" for at, row in enumerate(rows)))
    return path


def dev_and_train(path: Path, earlier: TrainedRows | None = None) -> tuple[set[str], set[str], TrainedRows]:
    task = user_task(path, None, None, reading=Reading(set_aside=True, earlier=earlier))
    dev, train = (set(read_split(task, None, split).texts_a) for split in ("dev", "train"))
    assert not dev & train
    return dev, train, task.trained_rows


def test_a_place_is_a_hash_of_the_text() -> None:
    """The first bytes of BLAKE2b of the text: a version that computed another place would move every row."""
    assert row_places(["a"])[0] == pytest.approx(0x40F89E395B66422F / 2**64)
    assert (row_places(["A  b\t", "\u00c9"]) == row_places(["a b", "\u00e9"])).all()
    assert len({*row_places(["a", "b", "a b"]), *row_places(["a", "b"], ["b", "a"])}) == 5


@pytest.mark.parametrize(
    ("rows", "fewest", "most"),
    [(20, 5, 15), (60, 20, 40), (200, 50, 50), (400, 50, 60), (3000, 250, 350), (30_000, 2000, 2000)],
)
def test_a_tenth_but_at_least_50_and_at_most_2000(rows: int, fewest: int, most: int) -> None:
    places = row_places(texts(rows))
    assert fewest <= (places <= limit_for(places)).sum() <= most


@given(st.lists(st.integers(0, 300), min_size=2, max_size=400), st.lists(st.integers(0, 300), max_size=400))
def test_no_row_becomes_a_dev_row_when_the_file_grows(first: list[int], more: list[int]) -> None:
    before = row_places([f"text {each}" for each in first])
    if len(set(before)) == 1:
        return
    after = row_places([f"text {each}" for each in first + more])
    limit = limit_for(before)
    assert 0 < (before <= limit).sum() < len(before)
    assert limit_for(after) <= limit or (before > limit).sum() == (before == before.max()).sum()


def test_order_seed_labels_and_duplicates_do_not_count(tmp_path: Path) -> None:
    one = dev_and_train(write(tmp_path / "a.csv", texts(600)))
    other = dev_and_train(write(tmp_path / "b.csv", [*reversed(texts(600)), *texts(100)]))
    assert one[0] == other[0]
    assert len(one[0]) == pytest.approx(60, abs=15)
    with pytest.raises(UserError, match=r"^--train_file .*c\.csv: all texts are the same.*; give --validation_file"):
        user_task(write(tmp_path / "c.csv", ["a"] * 60), None, None, reading=ASIDE)


def test_windows_lines_quotes_and_formats_do_not_move_a_row(tmp_path: Path) -> None:
    rows = texts(150)
    expected = dev_and_train(write(tmp_path / "a.csv", rows))[0]
    lines = [f"{row}\t{'xy'[at % 2]}" for at, row in enumerate(rows)]
    (tmp_path / "a.tsv").write_bytes(("\ufeffsentence1\tlabel\r\n" + "\r\n".join(lines) + "\r\n").encode())
    objects = [json.dumps({"sentence1": row, "label": "xy"[at % 2]}) for at, row in enumerate(rows)]
    (tmp_path / "a.jsonl").write_text("\n".join(objects))
    for name in ("a.tsv", "a.jsonl"):
        assert dev_and_train(tmp_path / name)[0] == expected


@pytest.mark.parametrize("grown", [120, 300, 5000])
def test_a_model_is_never_evaluated_on_its_training_rows(tmp_path: Path, grown: int) -> None:
    small, large = write(tmp_path / "a.csv", texts(100)), write(tmp_path / "b.csv", texts(grown))
    _, trained, record = dev_and_train(small)
    assert not dev_and_train(large, record)[0] & trained
    _, trained, record = dev_and_train(large)  # and the other way: the model of the large file, on the small one
    assert not dev_and_train(small, record)[0] & trained


def test_what_is_said_of_another_split() -> None:
    places = row_places(texts(100))
    large = row_places(texts(5000))
    assert choose(places, None, "m") == (trained_rows(places, limit_for(places)), None)
    record = trained_rows(large, limit_for(large))
    chosen, warning = choose(places, record, "m")
    assert chosen.limit == record.limit == 0.1
    aside, fresh = (places <= 0.1).sum(), (places <= limit_for(places)).sum()
    assert warning == f"{aside} rows are set aside where a new model would have {fresh}: m was trained on the others"
    others = row_places([f"another text {row}" for row in range(100)])
    assert choose(others, record, "m") == (trained_rows(others, limit_for(others)), None)
    with pytest.raises(UserError, match="m was trained on all of its texts"):
        choose(places[places > 0.1], record, "m")


def test_what_is_said_of_a_model_that_has_seen_the_rows() -> None:
    places = row_places(texts(100))
    everything = trained_rows(places, 0.0)
    assert "m was trained on all rows of --train_file" in choose(places, everything, "m")[1]
    assert "m was trained on rows of --validation_file" in warning_of_seen_rows(places[::7], everything, "m")
    assert warning_of_seen_rows(row_places(["other"]), everything, "m") is None
    assert warning_of_seen_rows(places, None, "m") is None


def test_models_of_older_versions_keep_their_rows(tmp_path: Path) -> None:
    """They recorded a seed. What it draws is that of the older version: a tenth of each class."""
    record = {"train_file": "t.csv", "validation_file": None, "do_eval": True, "seed": 7}
    (tmp_path / "training_args.json").write_text(json.dumps(record))
    earlier = recorded_rows(tmp_path)
    assert earlier == TrainedRows(seed=7)
    labels = [0, 1] * 100
    task = user_task(
        write(tmp_path / "t.csv", texts(200)), None, None, reading=Reading(set_aside=True, earlier=earlier)
    )
    chosen = drawn_by_seed(labels, 7)
    assert read_split(task, None, "dev").texts_a == [texts(200)[row] for row in np.flatnonzero(chosen)]
    assert (chosen.sum(), chosen[1::2].sum()) == (50, 25)
    assert np.flatnonzero(chosen)[:5].tolist() == OLDER
    assert "--seed 7" in choose(row_places(texts(9)), earlier, "m")[1]
    assert task.trained_rows.record() == {"seed": 7}


OLDER = [0, 2, 4, 5, 7]
"""The first rows of 200 in two classes that the version before the hash drew with seed 7."""


@pytest.mark.parametrize("damage", ["", "[1]", '{"set_aside": 3}', '{"set_aside": {"limit": "a"}}', "{"])
def test_a_damaged_record_is_none(tmp_path: Path, damage: str) -> None:
    (tmp_path / "config.json").write_text(damage)
    assert recorded_rows(tmp_path) is None
    assert recorded_rows(tmp_path / "missing") is None


def test_a_record_is_read_as_it_is_written(tmp_path: Path) -> None:
    record = trained_rows(row_places(texts(300)), 0.25)
    (tmp_path / "config.json").write_text(json.dumps({"set_aside": record.record()}))
    assert recorded_rows(tmp_path) == record
    assert len(record.sample) == 64 * 8
