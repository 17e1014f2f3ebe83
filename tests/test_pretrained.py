"""What others made is loaded without code of its own, and every failure is a ValueError with one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
)

from emmental import MaskedBertConfig, MaskedBertForSequenceClassification
from emmental.atomic import atomic_folder
from emmental.errors import UserError
from emmental.export.model_folder import read_model, read_settings
from emmental.inference import predict
from emmental.masked_models import masked_config
from emmental.pretrained import (
    check_sizes,
    from_pretrained,
    loading,
    read_weights,
    weight_files,
    weights_fingerprint,
)


def changed(folder: Path, file: str, **changes: object) -> Path:
    """A tiny BERT with other settings in one of its JSON files."""
    tiny.save_bert(folder)
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, **changes}))
    return folder


def test_a_sound_model_loads(bert_dir: Path) -> None:
    assert from_pretrained(AutoConfig, bert_dir).num_hidden_layers == 2
    assert len(from_pretrained(AutoTokenizer, bert_dir)) == 41
    model, info = from_pretrained(AutoModelForSequenceClassification, bert_dir, output_loading_info=True)
    assert model.num_labels == 2
    assert not info["missing_keys"]


def test_code_is_not_run_and_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the keyboard"))
    names = {"AutoConfig": "evil.Evil", "AutoModelForSequenceClassification": "evil.Evil"}
    folder = changed(tmp_path / "bert", "config.json", model_type="evil", auto_map=names)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\nclass Evil: pass\n")
    with pytest.raises(ValueError, match="needs code of its own, which this program never runs"):
        from_pretrained(AutoConfig, folder)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**9}, "1000000000 layers; up to 1000 are accepted"),
        ({"vocab_size": 10**13}, "vocab_size 10000000000000 by hidden_size 16: the matrix is too large"),
        ({"num_attention_heads": -1}, "num_attention_heads accepts whole numbers from 1, not -1"),
    ],
)
def test_absurd_sizes(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_pretrained(AutoConfig, changed(tmp_path / "bert", "config.json", **changes))


def test_large_models_pass() -> None:
    large = BertConfig(vocab_size=250_000, hidden_size=4096, num_hidden_layers=96, intermediate_size=16384)
    check_sizes(large, "large")
    assert large.vocab_size == 250_000


@pytest.mark.parametrize("error", [RecursionError("deep"), TypeError(), MemoryError("two\nlines")])
def test_every_failure_is_one_line(error: Exception) -> None:
    with pytest.raises(ValueError, match=r"^model cannot be loaded: [^\n]+$"), loading("model"):
        raise error


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        from_pretrained(AutoConfig, tmp_path / "nowhere")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_16_bits_come_in_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    tiny.save_bert(tmp_path)
    stored = AutoModelForSequenceClassification.from_pretrained(tmp_path).to(dtype)
    stored.save_pretrained(tmp_path)
    for name in (tmp_path, str(tmp_path)):
        model = from_pretrained(AutoModelForSequenceClassification, name)
        assert {value.dtype for value in model.parameters()} == {torch.float32}
        assert torch.equal(model.classifier.weight, stored.classifier.weight.float())


def test_fingerprints_of_weights_tell_one_changed_number(bert_dir: Path) -> None:
    model = from_pretrained(AutoModelForSequenceClassification, bert_dir)
    before = weights_fingerprint(model)
    assert weights_fingerprint(model) == before
    with torch.no_grad():
        model.classifier.bias[1] += 1e-6
    assert weights_fingerprint(model) != before
    assert len(weights_fingerprint(model.bfloat16())) == 64


def test_a_damaged_folder_of_ours_is_refused(bert_dir: Path, tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "ours") as folder:
        shutil.copytree(bert_dir, folder, dirs_exist_ok=True)
    assert from_pretrained(AutoModelForSequenceClassification, tmp_path / "ours").num_labels == 2
    weights = tmp_path / "ours" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors has changed since it was written"):
        from_pretrained(AutoModelForSequenceClassification, tmp_path / "ours")
    (tmp_path / "ours" / "manifest.json").write_text('{"name": "of another program"}')
    assert from_pretrained(AutoModelForSequenceClassification, tmp_path / "ours").num_labels == 2


class TestFoldersAsPeopleHaveThem:
    """Every tool reads them by `read_model`, the trainer by `from_pretrained`: both give the same weights."""

    @pytest.fixture
    def weights(self, bert_dir: Path) -> dict[str, torch.Tensor]:
        return read_weights(bert_dir)

    @pytest.fixture
    def folder(self, bert_dir: Path, tmp_path: Path) -> Path:
        shutil.copytree(bert_dir, tmp_path / "model")
        (tmp_path / "model" / "model.safetensors").unlink()
        return tmp_path / "model"

    def same(self, folder: Path, weights: dict[str, torch.Tensor]) -> None:
        for model in (
            read_model(folder),
            from_pretrained(AutoModelForSequenceClassification, str(folder)),
        ):
            assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())

    def test_in_parts(self, bert_dir, folder, weights):
        AutoModelForSequenceClassification.from_pretrained(bert_dir).save_pretrained(folder, max_shard_size="5KB")
        assert len(weight_files(folder)) > 2
        self.same(folder, weights)

    @pytest.mark.parametrize("name", ["../model.safetensors", "nowhere.safetensors", 3])
    def test_a_list_of_parts_that_names_no_file_beside_it(self, folder, name):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(UserError, match="which is not a file beside it"):
            read_model(folder)

    def test_pickled_tensors_are_read_and_said_once(self, folder, weights, caplog):
        torch.save(weights, folder / "pytorch_model.bin")
        self.same(folder, weights)
        assert caplog.text.count("weights-only reader") == 1

    def test_old_names_of_layer_norms(self, folder, weights):
        old = {".weight": ".gamma", ".bias": ".beta"}
        renamed = {
            name.removesuffix(end) + old[end] if "LayerNorm" in name else name: value
            for name, value in weights.items()
            for end in old
            if name.endswith(end)
        }
        assert any(name.endswith(".gamma") for name in renamed)
        save_file(renamed, folder / "model.safetensors", {"format": "pt"})
        self.same(folder, weights)

    def test_an_adapter_is_refused_with_what_to_do(self, folder):
        (folder / "adapter_config.json").write_text("{}")
        for load in (read_model, lambda path: from_pretrained(AutoConfig, str(path), flag="--model_name_or_path")):
            with pytest.raises(UserError, match=r"--model_name_or_path .* is an adapter of PEFT.*merge_and_unload"):
                load(folder)
        with pytest.raises(UserError, match=r"--model_name_or_path .* is an adapter of PEFT"):
            predict.load(folder)
        (folder / "config.json").unlink()
        with pytest.raises(UserError, match=r"--model_name_or_path .* is an adapter of PEFT"):
            read_settings(folder)

    def test_a_name_that_may_be_of_the_hub_shows_near_folders_too(self, folder, monkeypatch):
        monkeypatch.chdir(folder.parent)
        with pytest.raises(
            UserError, match=r"--x modle cannot be loaded: there is no such folder \(there is model\); tried"
        ):
            from_pretrained(AutoConfig, "modle", flag="--x")

    def test_a_mistyped_folder_shows_near_names(self, folder):
        wrong = folder.with_name("modle")
        for load in (read_model, lambda path: from_pretrained(AutoConfig, str(path))):
            with pytest.raises(UserError, match=r"modle: there is no such folder; there is .*model$"):
                load(wrong)


def test_a_bug_of_ours_keeps_its_type(bert_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = MaskedBertConfig.from_dense(AutoConfig.from_pretrained(bert_dir))
    monkeypatch.setattr("emmental.masked_models.mask_linears", None)
    with pytest.raises(TypeError, match="not callable"):
        from_pretrained(MaskedBertForSequenceClassification, str(bert_dir), config=config)


def test_a_bug_of_ours_is_not_a_bad_configuration(
    bert_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = MaskedBertConfig.from_dense(AutoConfig.from_pretrained(bert_dir), threshold=0.5)
    MaskedBertForSequenceClassification(config).save_pretrained(tmp_path)
    assert read_model(tmp_path).num_labels == 2
    monkeypatch.setattr("emmental.masked_models.mask_linears", None)
    with pytest.raises(TypeError, match="not callable"):
        read_model(tmp_path)


def test_what_transformers_refuses_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    folder = changed(tmp_path / "bert", "config.json", hidden_act="none of ours")
    with pytest.raises(UserError, match=r"no model can be made from its configuration \('none of ours'"):
        read_model(folder)


def renamed(folder: Path, rename, name: str = "model.safetensors") -> Path:
    """A tiny BERT with other names of its weights; None leaves one out."""
    tiny.save_bert(folder)
    weights = {new: value for key, value in read_weights(folder).items() if (new := rename(key)) is not None}
    (folder / "model.safetensors").unlink()
    if name.endswith(".bin"):
        torch.save(weights, folder / name)
    else:
        save_file(weights, folder / name, metadata={"format": "pt"})
    return folder


WRAPPED = {
    "DataParallel": lambda key: f"module.{key}",
    "compile": lambda key: f"_orig_mod.{key}",
    "both": lambda key: f"module._orig_mod.{key}",
    "a compiled layer": lambda key: key.replace("layer.1.", "layer.1._orig_mod."),
    "another module": lambda key: f"model.{key}",
    "an encoder in another module": lambda key: key.replace("bert.", "backbone."),
}


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("wrapper", WRAPPED)
def test_what_wrappers_put_before_names_is_taken_off(wrapper: str, name: str, tmp_path: Path, bert_dir: Path) -> None:
    expected = weights_fingerprint(AutoModelForSequenceClassification.from_pretrained(bert_dir))
    folder = renamed(tmp_path / "wrapped", WRAPPED[wrapper], name)
    assert weights_fingerprint(from_pretrained(AutoModelForSequenceClassification, folder)) == expected
    assert weights_fingerprint(read_model(folder)) == expected


def test_names_in_parts_and_with_gamma_and_beta(tmp_path: Path, bert_dir: Path) -> None:
    folder = renamed(
        tmp_path / "old",
        lambda key: f"module.{key.replace('Norm.weight', 'Norm.gamma').replace('Norm.bias', 'Norm.beta')}",
    )
    weights, names = tiny_parts(folder)
    (folder / "model.safetensors").unlink()
    for part, content in weights.items():
        save_file(content, folder / part, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    expected = weights_fingerprint(AutoModelForSequenceClassification.from_pretrained(bert_dir))
    assert weights_fingerprint(from_pretrained(AutoModelForSequenceClassification, folder)) == expected


def tiny_parts(folder: Path) -> tuple[dict, dict]:
    """The weights of a folder in two files, and which file holds which name."""
    whole = load_file(folder / "model.safetensors")
    files = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    names = {key: files[number % 2] for number, key in enumerate(sorted(whole))}
    return {file: {key: whole[key] for key in names if names[key] == file} for file in files}, names


def test_an_encoder_never_starts_at_random(tmp_path: Path) -> None:
    folder = renamed(tmp_path / "half", lambda key: None if "layer.1." in key else key)
    with pytest.raises(UserError, match=r"16 of the 37 weights of its encoder are not in its files \(bert.enc"):
        from_pretrained(AutoModelForSequenceClassification, folder, flag="--teacher_name_or_path")
    folder = renamed(tmp_path / "other", lambda key: f"net.{key.replace('bert.', 'x.').replace('query', 'q')}")
    with pytest.raises(UserError, match=r"37 of the 37 .* all beginning with 'net.'"):
        from_pretrained(AutoModelForSequenceClassification, folder)


def test_pooler_and_head_may_start_at_random(tmp_path: Path) -> None:
    folder = renamed(tmp_path / "bare", lambda key: key if "pooler" not in key and "classifier" not in key else None)
    _, info = from_pretrained(AutoModelForSequenceClassification, folder, output_loading_info=True)
    assert {key.split(".")[-2] for key in info["missing_keys"]} == {"dense", "classifier"}


@pytest.mark.parametrize("model_type", tiny_models.MODEL_TYPES)
@pytest.mark.parametrize("masked", [False, True])
def test_every_type_is_read_without_its_wrapper(model_type: str, masked: bool, tmp_path: Path) -> None:
    model = tiny_models.model(model_type)
    model.save_pretrained(tmp_path / "plain")
    options = {"config": masked_config(model.config)} if masked else {}
    weights = {f"module.{key}": value for key, value in read_weights(tmp_path / "plain").items()}
    save_file(weights, tmp_path / "plain" / "model.safetensors", metadata={"format": "pt"})
    loaded = from_pretrained(AutoModelForSequenceClassification, tmp_path / "plain", **options)
    own = model.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in loaded.state_dict().items() if "mask_scores" not in key)


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("model_type", tiny_models.MODEL_TYPES)
def test_layers_that_the_configuration_lacks_are_not_lost(model_type: str, bare: bool, tmp_path: Path) -> None:
    model = tiny_models.model(model_type)
    (model.base_model if bare else model).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    layers = "n_layers" if "n_layers" in config else "num_hidden_layers"
    config.pop("layer_types", None)
    (tmp_path / "config.json").write_text(json.dumps(config | {layers: 1}))
    if model_type == "albert":  # its layers share their weights
        from_pretrained(AutoModelForSequenceClassification, tmp_path)
        return
    with pytest.raises(
        UserError, match=r"layers that its configuration lacks \(.*layers?\.1\..*num_hidden_layers is 1"
    ):
        from_pretrained(AutoModelForSequenceClassification, tmp_path)


@pytest.mark.parametrize("model_type", tiny_models.MODEL_TYPES)
def test_weights_of_other_heads_are_no_loss(model_type: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = tiny_models.config(model_type)
    for auto in (AutoModelForMaskedLM, AutoModelForTokenClassification, AutoModelForQuestionAnswering):
        auto.from_config(config).save_pretrained(tmp_path / auto.__name__)
        from_pretrained(AutoModelForSequenceClassification, tmp_path / auto.__name__)
    assert "does not use" not in caplog.text


def test_unused_weights_inside_an_encoder_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny.save_bert(tmp_path)
    weights = read_weights(tmp_path)
    weights["bert.embeddings.position_ids"] = torch.arange(32)[None]
    weights["bert.encoder.layer.0.output.adapters.a.down.weight"] = torch.ones(2, 2)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    from_pretrained(AutoModelForSequenceClassification, tmp_path)
    assert "weights that its encoder does not use (1, such as bert.encoder.layer.0.output.adap" in caplog.text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_named(value: float, tmp_path: Path) -> None:
    tiny.save_bert(tmp_path)
    weights = read_weights(tmp_path)
    key = "bert.encoder.layer.0.output.dense.weight"
    weights[key][0, 0] = value
    save_file({name: each.half() for name, each in weights.items()}, tmp_path / "model.safetensors")
    for read in (lambda: from_pretrained(AutoModelForSequenceClassification, tmp_path), lambda: read_model(tmp_path)):
        with pytest.raises(UserError, match=f"{key} holds NaN or infinite numbers"):
            read()


def test_a_folder_saved_for_torchscript_answers_by_name(tmp_path: Path) -> None:
    tiny.save_bert(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"return_dict": False, "torchscript": True}))
    model = from_pretrained(AutoModelForSequenceClassification, tmp_path)
    assert model(torch.tensor([[1, 5, 2]])).logits.shape == (1, 2)
