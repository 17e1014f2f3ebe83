"""`python -m emmental.export.shrink`: folders in, folders out."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification

from emmental.architectures import DOWN, OUTPUT, encoder_layers
from emmental.export.shrink import main


def save_emptied(folder, heads: int, neurons: int):
    """A BERT of two layers with two heads: the first `heads` and `neurons` of each are not read."""
    model = BertForSequenceClassification.from_pretrained(tiny.save_bert(folder))
    for layer in encoder_layers(model):
        model.get_submodule(layer.linears[OUTPUT]).weight.data[:, : 8 * heads] = 0
        model.get_submodule(layer.linears[DOWN]).weight.data[:, :neurons] = 0
    model.save_pretrained(folder)
    return model.eval()


def test_command(tmp_path, capsys):
    model = save_emptied(tmp_path / "plain", heads=1, neurons=20)
    main(["--model_name_or_path", str(tmp_path / "plain")])
    target = tmp_path / "small_plain"
    assert capsys.readouterr().out.splitlines() == [
        str(target),
        "layer 0: 1 of 2 heads, 12 of 32 neurons",
        "layer 1: 1 of 2 heads, 12 of 32 neurons",
        "encoder: 1,792 of 4,096 weights (43.8 %)",
    ]
    small = AutoModelForSequenceClassification.from_pretrained(target).eval()
    assert small.config.model_type == "small_bert"
    encoded = AutoTokenizer.from_pretrained(target)("kasa lote", return_tensors="pt")
    with torch.no_grad():
        assert (small(**encoded).logits - model(**encoded).logits).abs().max() <= 1e-6
    main(["--model_name_or_path", str(target), "--target_model_path", str(tmp_path / "again")])
    assert "encoder: 1,792 of 1,792 weights (100.0 %)" in capsys.readouterr().out


def test_a_plain_model_is_written_where_it_says_the_same(tmp_path):
    save_emptied(tmp_path / "plain", heads=0, neurons=20)
    main(["--model_name_or_path", str(tmp_path / "plain"), "--target_model_path", str(tmp_path / "out")])
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (said["model_type"], said["intermediate_size"]) == ("bert", 12)
    assert not (tmp_path / "out" / "small_models.py").exists()


def test_what_it_did_not_make_is_left_alone(tmp_path, capsys):
    save_emptied(tmp_path / "plain", heads=1, neurons=0)
    (tmp_path / "mine").mkdir()
    with pytest.raises(SystemExit) as stopped:
        main(["--model_name_or_path", str(tmp_path / "plain"), "--target_model_path", str(tmp_path / "mine")])
    assert stopped.value.code == 2
    assert "--output" in capsys.readouterr().err
    assert list((tmp_path / "mine").iterdir()) == []
