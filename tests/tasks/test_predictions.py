from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from emmental.tasks.glue import TASKS
from emmental.tasks.own_files import user_task
from emmental.tasks.predictions import write_predictions


def test_labels_as_the_task_spells_them(tmp_path: Path) -> None:
    path = write_predictions(tmp_path / "new", TASKS["rte"], np.array([1, 0]), ["0", "7"])
    assert path == tmp_path / "new" / "RTE.tsv"
    assert path.read_bytes() == b"index\tprediction\n0\tnot_entailment\n7\tentailment\n"
    assert list(path.parent.iterdir()) == [path]


def test_scores_are_clipped_with_three_decimals(tmp_path: Path) -> None:
    scores = np.array([-0.3, 5.2, 2.34567, -0.0, 4.9999], np.float32)
    path = write_predictions(tmp_path, TASKS["sts-b"], scores, list("abcde"))
    assert path.read_text() == "index\tprediction\na\t0.000\nb\t5.000\nc\t2.346\nd\t0.000\ne\t5.000\n"


def test_own_scores_are_not_clipped(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("sentence1\tlabel\na\t0.5\n")
    path = write_predictions(tmp_path, user_task(tmp_path / "t.tsv", None, None), np.array([-7.25, 1e-9]), ["0", "1"])
    assert path.name == "predictions.tsv"
    assert path.read_text() == "index\tprediction\n0\t-7.25\n1\t1e-09\n"


def test_probabilities_of_own_classes(tmp_path: Path) -> None:
    """Odds of 3 to 1 and of 1 to 1; the server's format has no such columns."""
    (tmp_path / "t.tsv").write_text("sentence1\tlabel\na\tbad\nb\tgood\n")
    logits = np.array([[np.log(3), 0.0], [5.0, 5.0]], np.float32)
    own = user_task(tmp_path / "t.tsv", None, None)
    assert write_predictions(tmp_path, own, np.array([0, 1]), ["0", "1"], logits).read_text() == (
        "index\tprediction\tprobability of bad\tprobability of good\n"
        "0\tbad\t0.750000\t0.250000\n"
        "1\tgood\t0.500000\t0.500000\n"
    )
    path = write_predictions(tmp_path, TASKS["rte"], np.array([1, 0]), ["0", "7"], logits)
    assert path.read_text() == "index\tprediction\n0\tnot_entailment\n7\tentailment\n"


def test_a_refused_file_leaves_the_old_one(tmp_path: Path) -> None:
    path = write_predictions(tmp_path, TASKS["rte"], np.array([1]), ["0"])
    for task, predictions, indices, message in (
        ("rte", [2], ["0"], "class ids from 0 to 1"),
        ("rte", [-1], ["0"], "class ids from 0 to 1"),
        ("rte", [0, 1], ["0"], r"\(2,\) predictions for 1 examples"),
        ("sts-b", [np.nan], ["0"], "NaN or infinity"),
    ):
        with pytest.raises(ValueError, match=message):
            write_predictions(tmp_path, TASKS[task], np.array(predictions), indices)
    assert path.read_text() == "index\tprediction\n0\tnot_entailment\n"
