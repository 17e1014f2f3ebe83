"""Small models of every type: logits of the gated model, round trips, no trust in a folder, training goes on."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_small import HEADS, NEURONS, UNEVEN, batch, dense, logits
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    Trainer,
    TrainingArguments,
    pipeline,
)

import emmental
from emmental.architectures import DOWN, OUTPUT, encoder_layers
from emmental.export.onnx import write_onnx_folder
from emmental.inference.engines import prepare
from emmental.masked_models import masked_config
from emmental.patching import set_threshold
from emmental.shrinking import as_plain, layer_sizes, shrink
from emmental.small_models import MODELLING_FILES

KEYS = ["num_attention_heads", "intermediate_size", "relative_attention_heads"]
CASES = {"uneven": UNEVEN, "empty layers": [([], []), ([1], [0]), ([], [])], "empty": [([], [])] * 3}


def same(first: torch.Tensor, second: torch.Tensor) -> bool:
    """To rounding: where a file's weights lie in memory may change the last bit."""
    return bool((first - second).abs().max() <= 1e-6)


def gated_logits(model: nn.Module, openings: list, length: int = 11) -> torch.Tensor:
    """Logits with every closed head's and neuron's part multiplied by zero."""
    hooks, head_size = [], model.config.hidden_size // HEADS
    for layer, opened in zip(encoder_layers(model), openings, strict=True):
        for role, numbers, width in ((OUTPUT, opened[0], head_size), (DOWN, opened[1], 1)):
            linear = model.get_submodule(layer.linears[role])
            gate = torch.zeros(linear.in_features // width)
            gate[list(numbers)] = 1
            gate = gate.repeat_interleave(width)
            hooks.append(linear.register_forward_pre_hook(lambda _, inputs, gate=gate: (inputs[0] * gate,)))
    try:
        return logits(model, length)
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("model_type", tiny_models.MODEL_TYPES)
def test_a_small_model_gives_the_gated_models_logits(model_type, case):
    model, openings = dense(model_type), CASES[case]
    small = shrink(model, openings)
    expected = gated_logits(model, openings)
    assert (logits(small) - expected).abs().max() <= 1e-5
    assert (expected - logits(model)).abs().max() > 1e-3
    assert small.num_parameters() < model.num_parameters()
    assert [(size.heads, size.neurons) for size in layer_sizes(small)] == [(len(h), len(n)) for h, n in openings]
    assert type(small).__name__ == f"Small{type(model).__name__}"
    assert type(model) is type(dense(model_type))


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "albert", "modernbert", "electra"])
def test_eager_attention_gives_the_same(model_type):
    model = dense(model_type)
    small = shrink(model, UNEVEN)
    assert small.config._attn_implementation == "sdpa"
    expected = logits(small)
    small.set_attn_implementation("eager")
    assert (logits(small) - expected).abs().max() <= 1e-6


def test_deberta_with_matrices_of_its_own_for_positions():
    model = dense("deberta-v2", share_att_key=False)
    small = shrink(model, UNEVEN)
    assert small.deberta.encoder.layer[0].attention.self.pos_key_proj.weight.shape == (8, 16)
    assert (logits(small) - gated_logits(model, UNEVEN)).abs().max() <= 1e-5


def test_deberta_with_a_convolution():
    model = dense("deberta-v2", conv_kernel_size=3)
    assert (logits(shrink(model, UNEVEN)) - gated_logits(model, UNEVEN)).abs().max() <= 1e-5


def test_albert_whose_layers_share_their_weights():
    model = dense("albert", num_hidden_groups=1, inner_group_num=2, num_hidden_layers=4)
    small = shrink(model, UNEVEN[:2])
    assert small.config.shared_layer_config[1] == {"num_attention_heads": 0, "intermediate_size": 1}
    assert (logits(small) - gated_logits(model, UNEVEN[:2])).abs().max() <= 1e-5


def numbers(most: int) -> st.SearchStrategy:
    return st.lists(st.integers(0, most - 1), unique=True)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(tiny_models.MODEL_TYPES),
    st.lists(st.tuples(numbers(HEADS), numbers(NEURONS)), min_size=3, max_size=3),
    st.integers(3, 20),
)
def test_any_sizes(model_type, openings, length):
    model = dense(model_type)
    small = shrink(model, openings)
    assert (logits(small, length) - gated_logits(model, openings, length)).abs().max() <= 1e-5


@pytest.mark.parametrize("model_type", tiny_models.MODEL_TYPES)
def test_a_small_model_is_saved_loaded_and_saved_again(model_type, tmp_path):
    small = shrink(dense(model_type), UNEVEN)
    small.save_pretrained(tmp_path / "a")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "a")
    assert type(loaded) is type(small)
    assert same(logits(loaded), logits(small))
    loaded.save_pretrained(tmp_path / "b")
    for name in ("config.json", "model.safetensors", *MODELLING_FILES):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    said = json.loads((tmp_path / "a" / "config.json").read_text())
    assert said["model_type"] == f"small_{model_type}"
    assert said["small_format"] == 1
    base = AutoModel.from_pretrained(tmp_path / "a")
    assert type(base) is type(small.base_model)
    expected = small.base_model.state_dict()
    inside = [key for key in expected if any(key.startswith(layer.name) for layer in encoder_layers(base))]
    assert len(inside) > 10
    assert all(torch.equal(base.state_dict()[key], expected[key]) for key in inside)


def test_sizes_stand_in_the_configuration_as_transformers_writes_them(tmp_path):
    small = shrink(dense("bert"), UNEVEN)
    small.save_pretrained(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    assert said["per_layer_config"] == {
        "0": {"num_attention_heads": 2, "intermediate_size": 3},
        "1": {"num_attention_heads": 0, "intermediate_size": 1},
        "2": {"num_attention_heads": 1, "intermediate_size": 0},
    }
    assert said["dense_encoder_weights"] == 3 * (4 * 16 * 16 + 2 * 16 * 12)
    assert small.config.per_layer_config[2].intermediate_size == 0
    assert small.config.num_attention_heads == 4


def test_the_columns_of_position_biases_are_those_of_the_heads():
    model = dense("mpnet")
    small = shrink(model, UNEVEN)
    assert [size.columns for size in layer_sizes(small)] == [(0, 2), (), (3,)]
    again = shrink(small, [([1], [0]), ([], []), ([0], [])])
    assert layer_sizes(again)[0].columns == (2,)
    assert (logits(again) - gated_logits(model, [([2], [1]), ([], []), ([3], [])])).abs().max() <= 1e-5


@pytest.mark.parametrize("model_type", tiny_models.MODEL_TYPES)
def test_a_small_model_is_shrunk_again(model_type):
    model = dense(model_type)
    again = shrink(shrink(model, UNEVEN), [([1], [0, 2]), ([], [0]), ([], [])])
    assert (logits(again) - gated_logits(model, [([2], [1, 7]), ([], [3]), ([], [])])).abs().max() <= 1e-5
    assert again.config.dense_encoder_weights == shrink(model, UNEVEN).config.dense_encoder_weights


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForMaskedLM, AutoModelForTokenClassification])
@pytest.mark.parametrize("model_type", ["bert", "distilbert", "deberta-v2", "modernbert"])
def test_other_heads(auto, model_type, tmp_path):
    model = auto.from_config(dense(model_type).config).eval()
    small = shrink(model, UNEVEN)
    small.save_pretrained(tmp_path)
    loaded = auto.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        first, second = (each(**batch(model))[0] for each in (small.eval(), loaded))
    assert same(first, second)
    assert first.shape[:2] == (3, 11)


def test_a_refit_may_add_biases_where_the_type_has_none(tmp_path):
    model = dense("modernbert")
    linear = model.model.layers[1].mlp.Wo
    assert linear.bias is None
    linear.bias = nn.Parameter(torch.randn(16))
    small = shrink(model, [*UNEVEN[:1], ([], []), *UNEVEN[2:]])
    assert small.config.refit_biases
    assert (logits(small) - gated_logits(model, [*UNEVEN[:1], ([], []), *UNEVEN[2:]])).abs().max() <= 1e-5
    small.save_pretrained(tmp_path)
    assert same(logits(AutoModelForSequenceClassification.from_pretrained(tmp_path)), logits(small))


WITHOUT_EMMENTAL = """
import sys
sys.modules["emmental"] = None
import torch
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, pipeline
ids = torch.tensor([[5, 6, 7, 8]])
found = {}
for folder in sys.argv[2:]:
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True).eval()
    found[folder] = model(input_ids=ids).logits.detach()
classify = pipeline("text-classification", model="bert", trust_remote_code=True)
found["score"] = torch.tensor(classify("kasa lote")[0]["score"])
model.save_pretrained("again")
again = AutoModelForSequenceClassification.from_pretrained("again", trust_remote_code=True).eval()
assert torch.equal(again(input_ids=ids).logits, found[folder])
save_file(found, sys.argv[1])
"""


def test_a_small_folder_loads_without_emmental(tmp_path):
    from safetensors.torch import load_file

    expected = {}
    for model_type in tiny_models.MODEL_TYPES:
        small = shrink(dense(model_type), UNEVEN)
        small.save_pretrained(tmp_path / model_type)
        with torch.no_grad():
            expected[model_type] = small(input_ids=torch.tensor([[5, 6, 7, 8]])).logits
    tiny_models.tokenizer("bert").save_pretrained(tmp_path / "bert")
    classify = pipeline("text-classification", model=str(tmp_path / "bert"))
    expected["score"] = torch.tensor(classify("kasa lote")[0]["score"])
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EMMENTAL, "found.safetensors", *tiny_models.MODEL_TYPES],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "not supported" not in done.stderr
    assert "LOAD REPORT" not in done.stderr
    found = load_file(tmp_path / "found.safetensors")
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= 1e-6, name


def test_a_modelling_file_that_we_find_is_never_run(tmp_path):
    small = shrink(dense("bert"), UNEVEN)
    small.save_pretrained(tmp_path)
    for name in MODELLING_FILES:
        (tmp_path / name).write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert same(logits(loaded), logits(small))
    assert not (tmp_path / "ran").exists()
    loaded.save_pretrained(tmp_path / "clean")
    for name in MODELLING_FILES:
        assert (tmp_path / "clean" / name).read_bytes() == Path(emmental.__file__).with_name(name).read_bytes()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("per_layer_config", {"0": {"num_attention_heads": -1}}, "num_attention_heads of layer 0 accepts 0 to 4"),
        ("per_layer_config", {"0": {"intermediate_size": 10**12}}, "intermediate_size of layer 0 accepts 0 to 12"),
        ("per_layer_config", {"0": {"intermediate_size": 2.5}}, "intermediate_size of layer 0 accepts 0 to 12"),
        ("per_layer_config", {"0": {"intermediate_size": True}}, "intermediate_size of layer 0 accepts 0 to 12"),
        ("per_layer_config", {"9": {"intermediate_size": 2}}, "layer"),
        ("per_layer_config", {"x": {"intermediate_size": 2}}, "accepts numbers of layers, not 'x'"),
        ("per_layer_config", [1], "accepts a table"),
        ("per_layer_config", {"0": 3}, "accepts a table"),
        ("per_layer_config", {"0": {"num_attention_heads": 3}}, "do not fit the weights"),
        ("per_layer_config", {"0": {"num_attention_heads": 0}}, "do not fit the weights"),
        ("per_layer_config", {"0": {"width": 3}}, "width"),
        ("num_hidden_layers", 10**9, "num_hidden_layers accepts 1 to 1000"),
        ("num_attention_heads", 0, "num_attention_heads"),
        ("small_format", 99, "small_format 99 is not known"),
        ("dense_encoder_weights", -5, "dense_encoder_weights accepts"),
    ],
)
def test_sizes_that_cannot_be_are_one_line(key, value, message, tmp_path):
    shrink(dense("bert"), UNEVEN).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    said = json.loads(file.read_text())
    said[key] = {**said[key], **value} if isinstance(value, dict) else value
    file.write_text(json.dumps(said))
    with pytest.raises(ValueError, match=message) as caught:
        AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value).strip()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["0", "1", "x", *KEYS]), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=80, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["0", "1", "7", "-1"]), st.dictionaries(st.sampled_from(KEYS), json_values))
    | json_values
)
def test_any_table_of_sizes_is_taken_or_refused(said):
    try:
        config = emmental.SmallMPNetConfig(num_hidden_layers=2, per_layer_config=said)
    except ValueError as error:
        message = str(error)
    else:
        message = ""
        assert all(0 <= size.heads <= 12 and 0 <= size.neurons <= 3072 for size in config.layer_sizes())
    assert "\n" not in message


@pytest.mark.parametrize("openings", [UNEVEN[:2], [([4], [])] * 3, [([0, 0], [])] * 3, [([], [-1])] * 3])
def test_openings_that_cannot_be(openings):
    with pytest.raises(ValueError, match="openings"):
        shrink(dense("bert"), openings)


def test_alike_layers_with_every_head_are_a_plain_model():
    for model_type in tiny_models.MODEL_TYPES:
        model = dense(model_type)
        small = shrink(model, [(range(HEADS), [1, 4, 8])] * 3)
        plain = as_plain(small)
        assert type(plain) is type(model)
        assert plain.config.model_type == model_type
        assert (logits(plain) - logits(small)).abs().max() <= 1e-6
    assert as_plain(shrink(model, UNEVEN)) is None


@pytest.mark.parametrize("model_type", tiny_models.MODEL_TYPES)
def test_fine_tuning_goes_on(model_type, tmp_path):
    small = shrink(dense(model_type), UNEVEN).train()
    if small.supports_gradient_checkpointing:
        small.activation_checkpointing_enable()
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        loss = small(**batch(small), labels=torch.tensor([0, 1, 2])).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert same(logits(copy.deepcopy(small)), logits(small))


@pytest.mark.parametrize("model_type", tiny_models.MODEL_TYPES)
def test_single_weights_of_a_small_model_are_pruned(model_type, tmp_path):
    small = shrink(dense(model_type), UNEVEN)
    small.save_pretrained(tmp_path / "small")
    config = masked_config(small.config, pruning_method="magnitude")
    masked = AutoModelForSequenceClassification.from_pretrained(tmp_path / "small", config=config)
    assert masked.config.model_type == f"masked_small_{model_type}"
    assert same(logits(masked), logits(small))
    set_threshold(masked, 0.5)
    masked.save_pretrained(tmp_path / "masked")
    assert not (tmp_path / "masked" / MODELLING_FILES[0]).exists()
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "masked")
    assert same(logits(loaded), logits(masked))
    assert not same(logits(masked), logits(small))
    assert isinstance(loaded.config.to_plain(), type(small.config))


@pytest.mark.parametrize("model_type", tiny_models.MODEL_TYPES)
def test_a_package_holds_the_sizes(model_type):
    """The sparse runtime takes small models too, dense."""
    small = shrink(dense(model_type), CASES["empty layers"])
    with torch.no_grad():
        found = prepare(small, "sparse")(**batch(small)).logits
    assert (found - logits(small)).abs().max() <= 1e-6


@pytest.mark.parametrize("model_type", tiny_models.MODEL_TYPES)
def test_onnx_of_empty_layers_at_any_shape(model_type, tmp_path):
    """fp32 to rounding, int8 to a tenth of the largest logit."""
    small = shrink(dense(model_type), CASES["empty layers"])
    write_onnx_folder(small, {}, tmp_path / "onnx", int8=True)
    for shape in ((1, 3), (4, 17)):
        ids = torch.randint(5, 30, shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = small(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        for engine, most in (("onnx", 1e-5), ("onnx-int8", 0.1 * expected.abs().max())):
            found = prepare(small, engine, threads=1, onnx_folder=tmp_path / "onnx")(ids, torch.ones_like(ids)).logits
            assert (found - expected).abs().max() <= most


@pytest.mark.parametrize("model_type", ["mpnet", "deberta-v2", "modernbert"])
def test_onnx_of_an_encoder_without_anything(model_type):
    """It does not read the attention mask, so its graph has no such input."""
    small = shrink(dense(model_type), CASES["empty"])
    given = batch(small)
    found = prepare(small, "onnx", threads=1)(given["input_ids"], given["attention_mask"]).logits
    assert (found - logits(small)).abs().max() <= 1e-5


def test_the_trainer_of_transformers(tmp_path):
    pytest.importorskip("accelerate")
    small = shrink(dense("bert"), UNEVEN)
    rows = [{"input_ids": [2, 5 + label, 9, 3], "labels": label, "unused": 1} for label in (0, 1, 2)] * 4
    arguments = TrainingArguments(str(tmp_path / "run"), max_steps=2, report_to=[], use_cpu=True, save_steps=2)
    Trainer(small, arguments, train_dataset=rows).train()
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "checkpoint-2")
    assert same(logits(loaded), logits(small))


def test_dtype_device_mode_and_what_trains_are_kept():
    model = dense("bert").to(torch.bfloat16).train()
    model.bert.embeddings.requires_grad_(False)
    small = shrink(model, UNEVEN)
    assert small.dtype == torch.bfloat16
    assert small.training
    frozen = {name for name, parameter in small.named_parameters() if not parameter.requires_grad}
    assert frozen == {f"bert.embeddings.{name}" for name, _ in model.bert.embeddings.named_parameters()}


def test_shrinking_draws_no_random_numbers():
    model = dense("bert")
    state = torch.get_rng_state()
    shrink(model, UNEVEN)
    assert torch.equal(torch.get_rng_state(), state)
