"""Counts by hand, the same for the masked, the plain and the packed form of a model; table, JSON, picture."""

from __future__ import annotations

import json

import cv2
import pytest
import tiny_masked

from emmental.export.bertarize import bertarize, bertarize_folder
from emmental.export.counts_parameters import Count, count_parameters, main
from emmental.export.storage import save_package
from emmental.methods import PRUNING_METHODS
from emmental.pruning import remaining_weights

MATRICES = 2 * (4 * 16 * 16 + 2 * 16 * 32)
BIASES_AND_NORMS = 2 * (4 * 16 + 32 + 16 + 4 * 16)
EMBEDDINGS = (41 + 32 + 2) * 16 + 2 * 16
POOLER_AND_HEAD = 16 * 16 + 16 + 2 * 16 + 2


def test_by_hand():
    counts = count_parameters(tiny_masked.make())
    assert counts.matrices["bert.encoder.layer.0.attention.self.query"] == Count(64, 256)
    assert len(counts.matrices) == 12
    assert counts.encoder_matrices == Count(MATRICES // 4, MATRICES)
    assert counts.encoder_matrices.percent == 25.0
    assert counts.encoder == Count(MATRICES // 4 + BIASES_AND_NORMS, MATRICES + BIASES_AND_NORMS)
    assert counts.encoder_and_embeddings == counts.encoder + Count(EMBEDDINGS, EMBEDDINGS)
    assert counts.model == counts.encoder_and_embeddings + Count(POOLER_AND_HEAD, POOLER_AND_HEAD)


@pytest.mark.parametrize("head", tiny_masked.HEADS)
@pytest.mark.parametrize("method", PRUNING_METHODS)
def test_masked_and_bertarized_agree(head, method):
    model = tiny_masked.make(head, method)
    counts = count_parameters(model)
    assert counts == count_parameters(bertarize(model))
    assert counts.encoder_matrices.percent == pytest.approx(remaining_weights(model))
    everything = sum(p.numel() for name, p in model.named_parameters() if not name.endswith("mask_scores"))
    assert counts.model.total == everything


def test_every_form_on_the_command_line(tmp_path, capsys):
    model = tiny_masked.save(tmp_path / "masked", method="magnitude")
    bertarize_folder(tmp_path / "masked", tmp_path / "plain")
    save_package(model, tmp_path / "m.emmental")
    capsys.readouterr()
    answers = []
    for name in ("masked", "plain", "m.emmental"):
        main(["--model_name_or_path", str(tmp_path / name), "--json"])
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0] == answers[1] == answers[2]
    assert answers[0]["encoder_matrices"] == {"remaining": MATRICES // 4, "total": MATRICES, "percent": 25.0}
    assert answers[0]["matrices"]["bert.encoder.layer.1.output.dense"]["remaining"] == 128


def test_table_and_picture(tmp_path, capsys):
    tiny_masked.save(tmp_path / "masked")
    capsys.readouterr()
    main(["--model_name_or_path", str(tmp_path / "masked"), "--picture", str(tmp_path / "p.png")])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 12 + 4
    assert lines[13].split() == ["encoder", "matrices", "1,024", "4,096", "25.00"]
    picture = cv2.imread(str(tmp_path / "p.png"))
    assert min(picture.shape[:2]) > 200
    assert picture.std() > 0


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("masked", ["--threshold", "30"], "the fraction of weights that stay, from 0 to 1 (not in %: 30 % is 0.3)"),
        ("masked", ["--picture", "p.txt"], "does not end in a picture format"),
        ("m.emmental", ["--threshold", "0.1"], "--threshold are for masked models"),
        ("nowhere", [], "there is no such folder"),
    ],
)
def test_mistakes_are_one_line(name, flags, message, tmp_path, capsys):
    save_package(tiny_masked.save(tmp_path / "masked"), tmp_path / "m.emmental")
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(["--model_name_or_path", str(tmp_path / name), *flags])
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert message in error
    assert error.count("\n") == 1
