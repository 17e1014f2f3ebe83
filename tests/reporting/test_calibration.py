"""Texts that int8 is calibrated on: never the rows on which it is judged, where others are at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tiny
import tiny_masked

from emmental.data import FeatureDataset, load_features
from emmental.reporting.calibration import calibration_batches, calibration_texts
from emmental.reporting.forms import DevData
from emmental.tasks import read_split, resolve_task


def test_training_rows_or_half_of_the_dev_rows(tmp_path: Path) -> None:
    task, folder = resolve_task("mrpc"), tiny.write_task(tmp_path / "mrpc", "mrpc", train=300, dev=10)
    training = calibration_texts(None, task, str(folder))
    assert (len(training.texts), training.words, len(training.dev_rows)) == (128, "128 training rows", 0)
    split = read_split(task, folder, "train")
    assert training.texts[0] == (split.texts_a[0], split.texts_b[0])
    assert training.texts[-1] == (split.texts_a[-1], split.texts_b[-1])
    for file in folder.glob("*train*"):
        file.unlink()
    dev = calibration_texts(None, task, str(folder))
    assert dev.dev_rows.tolist() == [0, 2, 4, 6, 9]
    assert dev.words.startswith(
        "5 of the dev rows, because no training rows are at hand; points are counted on the others"
    )
    (tmp_path / "texts.txt").write_text("kasa\n" * 130)
    own = calibration_texts(str(tmp_path / "texts.txt"), task, str(folder))
    assert (own.texts, len(own.dev_rows)) == (["kasa"] * 128, 0)


def test_rows_that_int8_is_calibrated_on_are_not_judged(tmp_path: Path) -> None:
    """Of ten rows five are judged; the metric of all is the mean of that and the other five's."""
    model, folder = tiny_masked.make(), str(tiny.write_task(tmp_path / "sst-2", "sst-2", dev=10))

    def judged(rows: list[int]) -> tuple[float, float]:
        calibrated, cache = np.array(rows, np.int64), tmp_path / "features"
        data = DevData(resolve_task("sst-2"), folder, 16, 4, cache, tiny.tokenizer(), calibrated)
        evaluation = data.evaluate(model, "masked")
        return evaluation.judged, evaluation.metrics["acc"]

    first, every = judged([0, 1, 2, 3, 4])
    second, _ = judged([5, 6, 7, 8, 9])
    assert (first + second) / 2 == every
    assert judged([*range(10)]) == (every, every)


def test_training_rows_of_a_run_are_spread_and_cut(tmp_path: Path) -> None:
    folder = tiny.write_task(tmp_path / "sst-2", "sst-2", train=300)
    rows: FeatureDataset = load_features(
        resolve_task("sst-2"), folder, "train", tiny.tokenizer(), 16, tmp_path / "features", show_progress=False
    )
    batches = calibration_batches(rows)
    assert [len(batch["input_ids"]) for batch in batches] == [8] * 16
    assert set(batches[0]) == {"input_ids", "attention_mask", "token_type_ids"}
    lengths = np.concatenate([batch["attention_mask"].sum(1).numpy() for batch in batches])
    spread = np.linspace(0, 299, 128).astype(int)
    assert lengths.tolist() == sorted(rows.lengths[spread].tolist())
