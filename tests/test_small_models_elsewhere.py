"""Small models in the hands of other libraries: pickle, PEFT, accelerate, attention implementations, remote code."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import tiny_masked
import tiny_models
import torch
from test_first_token import BARE_TOP, ONE
from tiny_small import UNEVEN, batch, dense, logits
from torch.nn.utils.parametrizations import orthogonal, weight_norm
from torch.nn.utils.prune import l1_unstructured
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

import emmental
from emmental.architectures import encoder_linears
from emmental.errors import UserError
from emmental.inference.sparse import sparsify
from emmental.masked_models import masked_config
from emmental.shrinking import first_token_form, layer_sizes, shrink

BARE_BOTTOM = [([], [1, 5]), ([1], []), ([3, 1], [2, 3])]


def close(first: torch.Tensor, second: torch.Tensor) -> bool:
    return bool((first - second).abs().max() <= 1e-5)


def in_a_new_process(code: str, *arguments: object, folder: Path) -> str:
    paths = [Path(emmental.__file__).parents[1], Path(__file__).parent]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "HF_HOME": str(folder / "cache")}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


class TestPickles:
    @pytest.mark.parametrize("model_type", tiny_models.MODEL_TYPES)
    def test_here(self, model_type):
        for openings in (UNEVEN, BARE_TOP):
            small = shrink(dense(model_type), openings)
            buffer = io.BytesIO()
            torch.save(small, buffer)
            buffer.seek(0)
            again = [pickle.loads(pickle.dumps(small)), torch.load(buffer, weights_only=False), copy.deepcopy(small)]
            for each in again:
                assert close(logits(each), logits(small))
                assert [type(one) for one in each.modules()] == [type(one) for one in small.modules()]

    def test_with_joblib(self, tmp_path):
        joblib = pytest.importorskip("joblib")
        small = shrink(dense("mpnet"), UNEVEN)
        joblib.dump(small, tmp_path / "model")
        assert close(logits(joblib.load(tmp_path / "model")), logits(small))

    def test_in_a_new_process(self, tmp_path):
        """As process pools do: the file says where its classes are."""
        models = {name: shrink(dense(name), UNEVEN) for name in tiny_models.MODEL_TYPES}
        models["masked"] = tiny_masked.make()
        models["masked small"] = AutoModelForSequenceClassification.from_config(
            masked_config(models["bert"].config, pruning_method="topK")
        ).eval()
        for name, model in models.items():
            (tmp_path / name).write_bytes(pickle.dumps((model, batch(model), logits(model))))
        code = """
import pickle, sys, torch
for name in sys.argv[1:]:
    model, inputs, wanted = pickle.load(open(name, "rb"))
    with torch.no_grad():
        assert (model(**inputs).logits - wanted).abs().max() <= 1e-5, name
"""
        in_a_new_process(code, *models, folder=tmp_path)


@pytest.mark.parametrize("openings", [BARE_BOTTOM, BARE_TOP])
@pytest.mark.parametrize("model_type", tiny_models.MODEL_TYPES)
def test_attentions_have_an_entry_for_each_layer(model_type, openings):
    small = shrink(dense(model_type), openings)
    small.set_attn_implementation("eager")
    with torch.no_grad():
        found = small(**batch(small), output_attentions=True).attentions
        small.config.output_attentions = True
        again = small(**batch(small)).attentions
    assert [each.shape for each in found] == [(3, len(heads), 11, 11) for heads, _ in openings]
    assert all(torch.equal(one, two) for one, two in zip(found, again, strict=True))


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention", "flash_attention_2"])
@pytest.mark.parametrize("model_type", tiny_models.MODEL_TYPES)
def test_implementations_of_attention(model_type, implementation, tmp_path):
    """What the dense model refuses, the small one refuses; else the logits are the same."""
    model = dense(model_type)
    small = shrink(model, UNEVEN)
    model.save_pretrained(tmp_path / "dense")
    small.save_pretrained(tmp_path / "small")
    found = []
    for name in ("dense", "small"):
        try:
            loaded = AutoModelForSequenceClassification.from_pretrained(
                tmp_path / name, attn_implementation=implementation
            )
            found.append(logits(loaded))
        except (ImportError, ValueError, AttributeError) as error:
            found.append(type(error))
    assert isinstance(found[0], type) == isinstance(found[1], type), found
    if isinstance(found[0], type):
        assert found[0] is found[1]
    else:
        assert close(found[1], logits(small))


@pytest.mark.parametrize("memory", [0.0, 0.7, 0.9])
@pytest.mark.parametrize("model_type", tiny_models.MODEL_TYPES)
def test_offloaded_by_accelerate(model_type, memory, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    small = shrink(dense(model_type), ONE)
    small.save_pretrained(tmp_path)
    if memory == 0.0:
        loaded = accelerate.cpu_offload(AutoModelForSequenceClassification.from_pretrained(tmp_path), "cpu")
    else:
        most = int(memory * sum(4 * each.numel() for each in small.parameters()))
        loaded = AutoModelForSequenceClassification.from_pretrained(
            tmp_path, device_map="auto", max_memory={"cpu": most}, offload_folder=tmp_path / "offloaded"
        )
    assert any(each.is_meta for each in loaded.parameters())
    assert close(logits(loaded), logits(small))
    with torch.no_grad():
        assert loaded(**batch(small), output_hidden_states=True).hidden_states[-1].shape == (3, 11, 16)
    with pytest.raises(UserError, match="without device_map"):
        shrink(loaded, [([0], [0])] * 3)


def test_layers_are_not_split_over_devices():
    assert {"BertLayer", "SmallBertLayer"} <= set(shrink(dense("bert"), UNEVEN)._no_split_modules)


class TestAdapters:
    @pytest.mark.parametrize("model_type", tiny_models.MODEL_TYPES)
    def test_lora_on_a_small_model(self, model_type):
        peft = pytest.importorskip("peft")
        small = shrink(dense(model_type), ONE)
        before = logits(small)
        targets = list(encoder_linears(small))
        config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=targets, init_lora_weights=False)
        adapted = peft.get_peft_model(copy.deepcopy(small), config)
        changed = logits(adapted)
        adapted(**batch(small), labels=torch.tensor([0, 1, 2])).loss.backward()
        trained = [name for name, each in adapted.named_parameters() if "lora_B" in name and each.grad.any()]
        assert len(trained) >= len(encoder_linears(small)) - 2  # keys may get no gradient in a tiny model
        assert (changed - before).abs().max() > 1e-3
        merged = adapted.merge_and_unload()
        assert close(logits(merged), changed)
        assert type(merged) is type(small)
        assert layer_sizes(merged) == layer_sizes(small)

    def test_they_are_merged_before_pruning(self):
        peft = pytest.importorskip("peft")
        for targets in (["query", "value"], "all-linear"):
            config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=targets)
            adapted = peft.get_peft_model(dense("bert"), config)
            for model in (adapted, adapted.base_model.model):
                for refusing in (prune, lambda model: shrink(model, UNEVEN)):
                    with pytest.raises(UserError, match=r"merge_and_unload\(\)") as caught:
                        refusing(model)
                    assert "\n" not in str(caught.value)


def prune(model: torch.nn.Module) -> torch.nn.Module:
    texts = [f"{one} {two}" for one in tiny.WORDS[:8] for two in tiny.WORDS[:8]]
    return emmental.prune(model, tiny_models.tokenizer("bert"), texts, keep=0.5, max_length=16)


@pytest.mark.parametrize("path", ["bert.encoder.layer.0.intermediate.dense", "classifier"])
@pytest.mark.parametrize(
    "change",
    [lambda linear: l1_unstructured(linear, "weight", 0.5), weight_norm, orthogonal],
    ids=["torch.nn.utils.prune", "weight_norm", "orthogonal"],
)
def test_weights_that_are_computed_from_others_are_refused_in_one_line(path: str, change: Callable):
    model = dense("bert")
    change(model.get_submodule(path))
    for refusing in (prune, lambda model: shrink(model, UNEVEN)):
        with pytest.raises(UserError, match=rf"model has {path} whose weight is computed from others") as caught:
            refusing(model)
        assert "\n" not in str(caught.value)


def test_quantised_and_inference_models_are_refused_in_one_line():
    quantised = torch.ao.quantization.quantize_dynamic(dense("bert"), {torch.nn.Linear})
    with pytest.raises(UserError, match="prune before you quantise"):
        prune(quantised)
    whole_numbers = dense("bert")
    linear = whole_numbers.bert.encoder.layer[1].output.dense
    linear.weight = torch.nn.Parameter(linear.weight.detach().to(torch.int8), requires_grad=False)
    with pytest.raises(UserError, match=r"layer\.1\.output\.dense"):
        prune(whole_numbers)
    zeros = dense("bert")
    for name in encoder_linears(zeros):
        torch.nn.init.zeros_(zeros.get_submodule(name).weight)
    replaced = sparsify(zeros)
    assert first_token_form(replaced) is replaced
    with pytest.raises(UserError, match="SparseLayer"):
        shrink(replaced, UNEVEN)
    with torch.inference_mode():
        made_inside = dense("bert")
        with pytest.raises(UserError, match="inference_mode"):
            prune(dense("bert"))
    with pytest.raises(UserError, match="inference_mode"):
        prune(made_inside)


def test_frozen_models_and_no_grad_are_accepted():
    model = dense("bert")
    wanted = prune(model).state_dict()
    with torch.no_grad():
        found = [prune(model), prune(copy.deepcopy(model).requires_grad_(False))]
    for each in found:
        assert all(torch.equal(wanted[name], value) for name, value in each.state_dict().items())


class TestAnotherHead:
    @pytest.mark.parametrize("model_type", ["bert", "roberta", "albert", "modernbert"])
    def test_another_number_of_classes(self, model_type, tmp_path):
        shrink(dense(model_type), UNEVEN).save_pretrained(tmp_path)
        load = AutoModelForSequenceClassification.from_pretrained
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes=True") as caught:
            load(tmp_path, num_labels=5)
        assert "config.json" not in str(caught.value)
        assert "(5,)" in str(caught.value)
        assert "\n" not in str(caught.value)
        loaded, info = load(tmp_path, num_labels=5, ignore_mismatched_sizes=True, output_loading_info=True)
        assert logits(loaded).shape == (3, 5)
        assert len(info["mismatched_keys"]) == 2
        tokens = AutoModelForTokenClassification.from_pretrained(
            tmp_path, num_labels=5, ignore_mismatched_sizes=True
        ).eval()
        assert logits(tokens).shape == (3, 11, 5)

    def test_sizes_of_layers_are_never_ignored(self, tmp_path):
        small = shrink(dense("bert"), UNEVEN)
        small.save_pretrained(tmp_path)
        file = tmp_path / "config.json"
        settings = json.loads(file.read_text())
        settings["per_layer_config"]["0"]["intermediate_size"] = 2
        file.write_text(json.dumps(settings))
        with pytest.raises(ValueError, match=r"config\.json do not fit"):
            AutoModelForSequenceClassification.from_pretrained(tmp_path, ignore_mismatched_sizes=True)


REMOTE = """
import sys
if sys.argv[1] == "first":
    import emmental
import torch
from transformers import AutoModelForSequenceClassification
models = {}
for folder in sys.argv[2:]:
    models[folder] = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True).eval()
    foreign = type(models[folder]).__module__.startswith("transformers_modules.")
    assert foreign == (sys.argv[1] == "last")
import emmental, pickle
from emmental.export.onnx import export_onnx
from emmental.shrinking import as_plain, fold_constants, layer_sizes, shrink
from test_small_models_elsewhere import batch, logits, prune
for folder, model in models.items():
    assert [(each.heads, each.neurons) for each in layer_sizes(model)] == [(2, 3), (0, 1), (1, 0)]
    again = shrink(model, [([0, 1], [0, 1, 2]), ([], [0]), ([0], [])])
    assert type(again).__module__ == "emmental.small_models"
    assert (logits(again) - logits(model)).abs().max() <= 1e-5
    assert (logits(pickle.loads(pickle.dumps(model))) - logits(model)).abs().max() <= 1e-5
    assert model.base_model(**batch(model))[0].shape == (3, 11, 16)
    assert as_plain(model) is None
    fold_constants(model)
    export_onnx(model, folder + ".onnx")
pruned = prune(models["bert"])
assert sum(each.neurons for each in layer_sizes(pruned)) < 4, layer_sizes(pruned)
"""


@pytest.mark.parametrize(
    ("order", "types"), [("first", ["bert"]), ("last", ["bert", "mpnet", "albert", "modernbert"])]
)
def test_classes_of_a_folder_are_small_models_too(order, types, tmp_path):
    """Loaded with `trust_remote_code`, before or after emmental is imported."""
    for model_type in types:
        shrink(dense(model_type), UNEVEN).save_pretrained(tmp_path / model_type)
    in_a_new_process(REMOTE, order, *types, folder=tmp_path)
