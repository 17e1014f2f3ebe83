"""Masked to plain: same logits, exact zeros, a clean folder, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_masked
import torch
import transformers
from torch import nn
from transformers import AutoTokenizer

from emmental import atomic
from emmental.errors import UserError
from emmental.export.bertarize import bertarize, bertarize_folder, main
from emmental.export.model_folder import read_model
from emmental.methods import PRUNING_METHODS
from emmental.patching import masked_layers, set_threshold
from emmental.pruning import global_threshold, masks_of


def assert_same_outputs(first: nn.Module, second: nn.Module) -> None:
    for one, other in zip(tiny_masked.outputs(first), tiny_masked.outputs(second), strict=True):
        assert (one - other).abs().max() <= 1e-6


@pytest.mark.parametrize("head", tiny_masked.HEADS)
@pytest.mark.parametrize("method", PRUNING_METHODS)
def test_logits_stay(head, method, tmp_path):
    model = tiny_masked.save(tmp_path / "masked", head, method)
    bertarize_folder(tmp_path / "masked", tmp_path / "plain")
    plain = getattr(transformers, head.removeprefix("Masked")).from_pretrained(tmp_path / "plain").eval()
    assert_same_outputs(model, plain)
    assert not masked_layers(plain)
    for name, mask in masks_of(model).items():
        weight = plain.get_submodule(name).weight
        assert 0 < int(mask.sum()) < mask.numel()
        assert torch.equal(weight != 0, mask)
        assert not torch.signbit(weight[~mask]).any()


def test_l0_gates_are_folded_in():
    model = tiny_masked.make(method="l0")
    name, layer = next(iter(masked_layers(model).items()))
    gates = (torch.sigmoid(layer.mask_scores) * 1.2 - 0.1).clamp(0, 1)
    assert torch.allclose(bertarize(model).get_submodule(name).weight, layer.weight * gates, atol=1e-7)
    assert ((gates > 0) & (gates < 1)).any()


def test_global_topk(tmp_path):
    model = tiny_masked.make()
    boundary = global_threshold(model, 0.1)
    set_threshold(model, 0.1, boundary)
    model.save_pretrained(tmp_path / "masked")
    plain = bertarize_folder(tmp_path / "masked", tmp_path / "plain")
    assert_same_outputs(model, plain)
    kept = {name: int((plain.get_submodule(name).weight != 0).sum()) for name in masked_layers(model)}
    assert sum(kept.values()) == 2 * (4 * 16 * 16 + 2 * 16 * 32) // 10
    assert len(set(kept.values())) > 2


def test_folder_is_clean(tmp_path):
    tiny_masked.save(tmp_path / "masked", num_labels=3)
    (tmp_path / "masked" / "optimizer.safetensors").write_bytes(b"stale")
    bertarize_folder(tmp_path / "masked", tmp_path / "plain")
    names = {file.name for file in (tmp_path / "plain").iterdir()}
    assert names == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
        "manifest.json",
    }
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("bert", ["BertForSequenceClassification"])
    assert len(config["id2label"]) == 3
    assert not {"pruning_method", "mask_init", "mask_scale", "threshold", "global_boundary"} & set(config)
    card = (tmp_path / "plain" / "README.md").read_text()
    assert "| pruning method | topK |" in card
    assert "| threshold | 0.25 |" in card
    assert "25.00 %" in card
    assert AutoTokenizer.from_pretrained(tmp_path / "plain")("kasa")["input_ids"] == [2, 5, 3]
    atomic.verify_folder(tmp_path / "plain")


def test_flags_override(tmp_path):
    tiny_masked.save(tmp_path / "masked", method="topK")
    plain = bertarize_folder(tmp_path / "masked", tmp_path / "plain", threshold=0.5)
    assert int((plain.bert.encoder.layer[0].intermediate.dense.weight != 0).sum()) == 256
    plain = bertarize_folder(tmp_path / "masked", tmp_path / "plain", "magnitude", 0.125)
    weight = plain.bert.encoder.layer[0].intermediate.dense.weight
    original = read_model(tmp_path / "masked").bert.encoder.layer[0].intermediate.dense.weight
    assert torch.equal(weight.abs().flatten().sort().values[-64:], original.abs().flatten().sort().values[-64:])
    assert int((weight != 0).sum()) == 64


def test_old_checkpoint(tmp_path):
    model = tiny_masked.save(tmp_path / "old")
    state = {**model.state_dict(), "bert.embeddings.position_ids": torch.arange(32)[None]}
    (tmp_path / "old" / "model.safetensors").unlink()
    torch.save(state, tmp_path / "old" / "pytorch_model.bin")
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    del config["threshold"]
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="records no threshold for topK: give --threshold"):
        bertarize_folder(tmp_path / "old", tmp_path / "plain")
    assert_same_outputs(model, bertarize_folder(tmp_path / "old", tmp_path / "plain", threshold=0.25))


class _Writes:
    """Unpickled, it would make a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


def test_nothing_in_a_bin_file_runs(tmp_path):
    tiny_masked.save(tmp_path / "old")
    (tmp_path / "old" / "model.safetensors").unlink()
    torch.save({"x": _Writes(tmp_path / "ran")}, tmp_path / "old" / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model.bin is damaged, or holds more than tensors"):
        bertarize_folder(tmp_path / "old", tmp_path / "plain")
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "plain").exists()


def test_existing_folders(tmp_path):
    tiny_masked.save(tmp_path / "masked")
    (tmp_path / "foreign").mkdir()
    with atomic.atomic_folder(tmp_path / "checkpoint-5") as folder:
        (folder / "README.md").write_text("a model")
    for name in ("foreign", "checkpoint-5", "masked"):
        before = sorted((tmp_path / name).iterdir())
        with pytest.raises(UserError, match="left alone"):
            bertarize_folder(tmp_path / "masked", tmp_path / name)
        assert sorted((tmp_path / name).iterdir()) == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--threshold", "30"], "accepts the fraction of weights that stay, from 0 to 1 (not in %: 30 % is 0.3)"),
        (["--threshold", "nan"], "from 0 to 1"),
        (["--pruning_method", "magnitude"], "records no threshold for magnitude: give --threshold"),
        (["--pruning_method", "l0", "--threshold", "0.1"], "--threshold is not for l0"),
        (["--pruning_method", "sigmoid_threshold", "--threshold", "2"], "accepts a number from 0 to 1, not 2"),
    ],
)
def test_wrong_flags(flags, message, tmp_path, capsys):
    tiny_masked.save(tmp_path / "masked")
    capsys.readouterr()  # the bar of saving
    with pytest.raises(SystemExit) as stopped:
        main(["--model_name_or_path", str(tmp_path / "masked"), *flags])
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["masked"]


def test_broken_models(tmp_path):
    model = tiny_masked.save(tmp_path / "masked")
    weights = tmp_path / "masked" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-40])
    with pytest.raises(ValueError, match=r"model.safetensors is damaged"):
        read_model(tmp_path / "masked")
    torch.nn.init.constant_(model.classifier.bias, float("nan"))
    model.save_pretrained(tmp_path / "masked")
    with pytest.raises(ValueError, match=r"classifier.bias holds NaN or infinite"):
        read_model(tmp_path / "masked")
    with pytest.raises(ValueError, match=r"there is no such folder"):
        read_model(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_labels": 10**9}, "num_labels accepts 1 to 1048576, not 1000000000"),
        ({"num_labels": -1}, "num_labels accepts 1 to 1048576, not -1"),
        ({"num_labels": "2"}, "num_labels accepts 1 to 1048576, not '2'"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config is not accepted"),
    ],
)
def test_configurations_that_claim_too_much(setting, message, tmp_path):
    tiny_masked.save(tmp_path / "masked")
    file = tmp_path / "masked" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **setting}))
    with pytest.raises(ValueError, match=message) as refused:
        read_model(tmp_path / "masked")
    assert str(refused.value).startswith(str(file))


def test_scores_that_the_method_needs(tmp_path):
    tiny_masked.save(tmp_path / "masked", method="magnitude")
    with pytest.raises(ValueError, match="mask_scores is missing"):
        read_model(tmp_path / "masked", "topK", 0.1)


def test_command(tmp_path, capsys):
    model = tiny_masked.save(tmp_path / "masked")
    capsys.readouterr()
    main(["--model_name_or_path", str(tmp_path / "masked")])
    target = tmp_path / "bertarized_masked"
    assert capsys.readouterr().out == f"{target}\n"
    assert_same_outputs(model, read_model(target))
