"""The experiment with cascades: its tickets, and its table."""

from __future__ import annotations

import csv
import random
import shutil

import numpy as np
import pytest
from tiny_cascade import rows, trained_models

from emmental.cascade.rows import Rows
from emmental.cascade.serving import Cascade, ReadyStage
from experiments.cascade.promise import main as main_of_promise
from experiments.cascade.promise import simulate
from experiments.cascade.promise import table as promise_table
from experiments.cascade.table import main as main_of_table
from experiments.cascade.table import measured, picture, table
from experiments.cascade.tickets import TOPICS, tickets


def test_tickets_are_made_from_a_seed():
    made = tickets(500, random.Random(1))
    assert made == tickets(500, random.Random(1))
    assert len({text for text, _ in made}) == 500
    assert {label for _, label in made} == {*TOPICS}
    assert all("{" not in text for text, _ in made)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return trained_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def texts():
    return [text for text, _ in rows(600, seed=2)]


@pytest.fixture(scope="module")
def labels():
    return [label for _, label in rows(600, seed=2)]


class Known:
    """A stage whose logits are the number in each text, less this."""

    def __init__(self, less: float) -> None:
        self.less = less

    def logits(self, texts, batch_size=32):
        values = np.array([float(text) - self.less for text in texts])
        return np.stack([-values, values], axis=1)


def test_the_table_counts_on_the_dev_rows():
    """The early stage answers texts beyond 1, and calls 1.5 bad, which the last one calls good."""
    early, last = ReadyStage("early", Known(1.6), 0.0, 1.0), ReadyStage("dense", Known(0.0), 0.0, 1.0)
    cascade = Cascade(["bad", "good"], [early, last], False, False, {})
    dense = Cascade(["bad", "good"], [last], False, False, {})
    dev = Rows(["-2", "1.5", "3", "-1"], ["bad", "good", "good", "good"])
    alone, joined = measured({"dense": dense, "cascade, 30 % may change": cascade}, dev)
    assert (alone["accuracy"], alone["changed"]) == (0.75, 0)
    assert (joined["accuracy"], joined["changed"]) == (0.5, 0.25)
    assert joined["answered"] == {"early": 4, "dense": 0}
    assert joined["standard_error"] == pytest.approx(0.25)
    assert joined["milliseconds"].keys() == {"1", "32"}
    assert len(table([alone, joined]).splitlines()) == 4
    axes = picture([alone, joined], "tickets").axes
    assert [line.get_xydata().tolist() for line in axes[0].lines] == [
        [[one["milliseconds"]["1"], 100 * one["changed"]]] for one in (alone, joined)
    ]


def known_stages(rows: int, agree: float) -> list[np.ndarray]:
    """Logits of an early stage that tells nothing of when it is right, and of a last one."""
    draw = np.random.default_rng(3)
    final = draw.normal(size=(rows, 2))
    right = draw.random(rows) < agree
    early = np.where(right[:, None], final, final[:, ::-1])
    return [np.sign(early - early.mean(axis=1, keepdims=True)) * draw.random((rows, 1)), final]


def test_the_promise_is_kept_in_nearly_all_splits():
    """The early stage is wrong in 4 % of the rows, however sure it is: a promise of 8 % lets it answer nearly all."""
    (strict, loose) = simulate(known_stages(1200, 0.96), [1.0, 10.0], promises=(0.02, 0.08), splits=40)
    assert strict["promise"] == 0.02
    assert strict["failed_on_all"] <= 0.1
    assert strict["beyond_chance"] <= strict["failed_on_others"] <= 0.4
    assert loose["failed_on_all"] == 0
    assert loose["changed"] == pytest.approx(0.04, abs=0.015)
    assert 8 < loose["faster"] <= 10
    assert 1 <= strict["faster"] < 2.5
    assert len(promise_table([strict, loose], 40, 1200).splitlines()) == 6


def test_a_promise_that_the_rows_do_not_allow_is_no_row():
    assert simulate(known_stages(100, 0.9), [1.0, 10.0], promises=(0.01,), splits=3) == []


def test_both_scripts_read_the_folder_of_a_training(tmp_path, capsys, models, texts, labels):
    """Its single models, a peer, and cascades in the table; the kept answers are used again."""
    folder = training_folder(tmp_path, models, texts, labels)
    main_of_table([str(folder), "--into", str(tmp_path / "x.json")])
    said = capsys.readouterr().out
    names = [line.split(" | ")[0].removeprefix("| ") for line in said.splitlines()[2:]]
    assert names[0] == "dense"
    assert {*names[1:4]} == {"bag of words", "models", "three-layers"}
    assert names[4:] == ["cascade, 3 % may change", "cascade, 10 % may change", "cascade, 20 % may change"]
    assert (tmp_path / "x.png").is_file()
    main_of_promise([str(folder), "--splits", "3", "--into", str(tmp_path / "promise.json")])
    first = capsys.readouterr().out
    assert "3 splits of 600 held-out rows" in first
    main_of_promise([str(folder), "--splits", "3"])
    assert capsys.readouterr().out == first
    with pytest.raises(SystemExit):
        main_of_table([str(tmp_path / "nothing"), "--into", str(tmp_path / "y.json")])
    assert "holds no finished training" in capsys.readouterr().err


def training_folder(place, models, texts, labels):
    """As `run.sh` leaves it."""
    folder = place / "tickets"
    (folder / "rows").mkdir(parents=True)
    taught = [(text, label) for text, label in rows(60, 1)]
    held_out = list(zip(texts, labels, strict=True))
    for name, those in {"train": taught, "calibrate": held_out[:300], "dev": held_out[300:]}.items():
        with (folder / "rows" / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("sentence1", "label"), *those])
    for source, target in (("small", "models"), ("dense", "models/dense"), ("small", "peers/three-layers")):
        shutil.copytree(models[source], folder / target, dirs_exist_ok=True)
    (folder / "models" / "summary.json").write_text("{}")
    return folder
