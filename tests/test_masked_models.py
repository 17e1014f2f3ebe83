"""Masked BERT: reference numbers, dense checkpoints, saving and reloading, what is masked and what is frozen."""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertForSequenceClassification,
)

from emmental import (
    MaskedBertConfig,
    MaskedBertForMultipleChoice,
    MaskedBertForQuestionAnswering,
    MaskedBertForSequenceClassification,
    MaskedBertForTokenClassification,
    MaskedBertModel,
)
from emmental.methods import PRUNING_METHODS
from emmental.patching import masked_layers, set_threshold
from emmental.pruning import global_threshold, remaining_weights

REFERENCE_SIZE = {
    "vocab_size": 120,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
SIX_LINEARS = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
HEADS = {
    MaskedBertModel: AutoModel,
    MaskedBertForSequenceClassification: AutoModelForSequenceClassification,
    MaskedBertForMultipleChoice: AutoModelForMultipleChoice,
    MaskedBertForQuestionAnswering: AutoModelForQuestionAnswering,
    MaskedBertForTokenClassification: AutoModelForTokenClassification,
}


def tiny_config(**options: object) -> MaskedBertConfig:
    size = {**REFERENCE_SIZE, "vocab_size": 41, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    return MaskedBertConfig(**{**size, "initializer_range": 0.2, **options})


def tiny_batch() -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.tensor([[2, 5, 9, 3], [2, 30, 3, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
        "token_type_ids": torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0]]),
    }


def with_random_scores(model: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in masked_layers(model).values():
            if layer.mask_scores is not None:
                layer.mask_scores.copy_(torch.randn(layer.mask_scores.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="module")
def dense(tmp_path_factory) -> Path:
    """A dense checkpoint."""
    return tiny.save_bert(tmp_path_factory.mktemp("dense"))


class Reference:
    """One method's reference model, loaded with its weights, and the numbers it must give."""

    def __init__(self, method: str, arrays: dict[str, np.ndarray], values: dict) -> None:
        prefix = f"model.{method}."
        self.arrays = {name[len(prefix) :]: value for name, value in arrays.items() if name.startswith(prefix)}
        self.values = values[f"model.{method}"]
        config = MaskedBertConfig(**REFERENCE_SIZE, num_labels=3, pruning_method=method)
        self.model = MaskedBertForSequenceClassification(config)
        weights = {k[len("param.") :]: torch.from_numpy(v) for k, v in self.arrays.items() if k.startswith("param.")}
        self.model.load_state_dict(weights, strict=True)
        self.model.eval()

    def run(self):
        ids, attention, types, labels = (torch.from_numpy(self.arrays[f"in.{k}"]) for k in ("ids", "att", "tt", "y"))
        return self.model(ids, attention, types, labels=labels, threshold=self.values["threshold"])


@pytest.mark.parametrize("method", ["topK", "threshold", "sigmoied_threshold", "magnitude", "l0"])
class TestReferenceNumbers:
    """State-dict names, logits, loss, gradients and frozen parameters of the reference implementation.

    Gradients agree relative to the largest of the model: those of the key biases are rounding noise around 0.
    """

    def test_logits_and_loss(self, method, golden_arrays, golden_values):
        reference = Reference(method, golden_arrays, golden_values)
        output = reference.run()
        expected = reference.arrays["logits"]
        assert np.abs(output.logits.detach().numpy() - expected).max() <= 1e-5 * np.abs(expected).max()
        assert output.loss.item() == pytest.approx(reference.values["loss"], rel=1e-5)

    def test_gradients(self, method, golden_arrays, golden_values):
        reference = Reference(method, golden_arrays, golden_values)
        reference.run().loss.backward()
        expected = {k[len("grad.") :]: v for k, v in reference.arrays.items() if k.startswith("grad.")}
        got = {name: p.grad.numpy() for name, p in reference.model.named_parameters() if p.grad is not None}
        assert set(got) == set(expected)
        largest = max(np.abs(gradient).max() for gradient in expected.values())
        for name, gradient in expected.items():
            assert np.abs(got[name] - gradient).max() <= 1e-5 * largest, name

    def test_frozen_parameters(self, method, golden_arrays, golden_values):
        reference = Reference(method, golden_arrays, golden_values)
        frozen = [name for name, p in reference.model.named_parameters() if not p.requires_grad]
        assert frozen == reference.values["frozen"]


class TestWhatIsMasked:
    def test_the_six_linears_of_every_layer_and_nothing_else(self):
        model = MaskedBertForSequenceClassification(tiny_config())
        assert list(masked_layers(model)) == [f"bert.encoder.layer.{i}.{name}" for i in (0, 1) for name in SIX_LINEARS]
        assert type(model.bert.pooler.dense) is nn.Linear
        assert type(model.classifier) is nn.Linear

    def test_parameter_names_are_berts_plus_mask_scores(self):
        masked = set(MaskedBertForSequenceClassification(tiny_config()).state_dict())
        plain = BertConfig(**{k: v for k, v in tiny_config().to_dict().items() if k in BertConfig().to_dict()})
        dense = set(BertForSequenceClassification(plain).state_dict())
        expected = {f"bert.encoder.layer.{i}.{name}.mask_scores" for i in (0, 1) for name in SIX_LINEARS}
        assert masked - dense == expected
        assert dense <= masked

    @pytest.mark.parametrize("model_class", HEADS)
    def test_embeddings_are_frozen_and_all_else_trains(self, model_class):
        model = model_class(tiny_config())
        frozen = {name.partition("embeddings.")[2] for name, p in model.named_parameters() if not p.requires_grad}
        assert frozen == {
            "word_embeddings.weight",
            "position_embeddings.weight",
            "token_type_embeddings.weight",
            "LayerNorm.weight",
            "LayerNorm.bias",
        }
        assert all(layer.mask_scores.requires_grad for layer in masked_layers(model).values())

    def test_flash_free_attention_stays_available(self):
        model = MaskedBertForSequenceClassification(tiny_config())
        assert model.config._attn_implementation == "sdpa"
        eager = MaskedBertForSequenceClassification(tiny_config(attn_implementation="eager"))
        eager.load_state_dict(model.state_dict())
        assert eager.config._attn_implementation == "eager"
        with torch.no_grad():
            assert torch.allclose(model.eval()(**tiny_batch()).logits, eager.eval()(**tiny_batch()).logits, atol=1e-5)


class TestThresholdArgument:
    @pytest.mark.parametrize("model_class", HEADS)
    def test_every_class_takes_a_threshold(self, model_class):
        model = with_random_scores(model_class(tiny_config(num_labels=2)))
        batch = tiny_batch()
        if model_class is MaskedBertForMultipleChoice:
            batch = {name: torch.stack([value] * 3, dim=1) for name, value in batch.items()}
        with torch.no_grad():
            whole = model(**batch)[0]
            pruned = model(**batch, threshold=0.2)[0]
        assert model.config.threshold == 0.2
        assert remaining_weights(model) == pytest.approx(20, abs=0.1)
        assert pruned.shape == whole.shape
        assert not torch.allclose(pruned, whole)
        assert "threshold" in inspect.signature(model.forward).parameters

    def test_it_stays_for_the_calls_that_follow(self):
        model = with_random_scores(MaskedBertForSequenceClassification(tiny_config()))
        with torch.no_grad():
            first = model(**tiny_batch(), threshold=0.3).logits
            assert torch.equal(model(**tiny_batch()).logits, first)

    def test_positions_are_those_of_bert(self):
        model = with_random_scores(MaskedBertForSequenceClassification(tiny_config()))
        batch = tiny_batch()
        with torch.no_grad():
            named = model(**batch, labels=torch.tensor([0, 1])).loss
            placed = model(
                batch["input_ids"], batch["attention_mask"], batch["token_type_ids"], labels=torch.tensor([0, 1])
            ).loss
        assert torch.equal(named, placed)


class TestFromDense:
    def loaded(self, dense: Path, auto: bool, **masking: object) -> nn.Module:
        torch.manual_seed(7)
        config = MaskedBertConfig.from_dense(AutoConfig.from_pretrained(dense), **masking)
        model_class = AutoModelForSequenceClassification if auto else MaskedBertForSequenceClassification
        model = model_class.from_pretrained(dense, config=config)
        assert type(model) is MaskedBertForSequenceClassification
        return model

    @pytest.mark.parametrize("auto", [False, True])
    @pytest.mark.parametrize("method", ["topK", "threshold", "sigmoied_threshold", "l0"])
    def test_constant(self, dense, auto, method):
        model = self.loaded(dense, auto, pruning_method=method, mask_init="constant", mask_scale=2.197)
        layers = masked_layers(model)
        assert len(layers) == 12
        for name, layer in layers.items():
            assert torch.equal(layer.mask_scores, torch.full_like(layer.weight, 2.197)), name

    @pytest.mark.parametrize("auto", [False, True])
    def test_kaiming(self, dense, auto):
        for name, layer in masked_layers(self.loaded(dense, auto, mask_init="kaiming")).items():
            bound, scores = 1 / math.sqrt(layer.in_features), layer.mask_scores.detach()
            assert 0.9 * bound < float(scores.abs().max()) <= bound, name
            assert float(scores.std()) == pytest.approx(bound / math.sqrt(3), rel=0.12), name
            assert abs(float(scores.mean())) < 0.15 * bound, name

    @pytest.mark.parametrize("auto", [False, True])
    def test_uniform(self, dense, auto):
        for name, layer in masked_layers(self.loaded(dense, auto, mask_init="uniform", mask_scale=0.3)).items():
            scores = layer.mask_scores.detach()
            assert 0.27 < float(scores.abs().max()) <= 0.3, name
            assert float(scores.std()) == pytest.approx(0.3 / math.sqrt(3), rel=0.12), name

    @pytest.mark.parametrize("auto", [False, True])
    def test_magnitude_of_the_loaded_weights(self, dense, auto):
        weights = load_file(dense / "model.safetensors")
        for name, layer in masked_layers(self.loaded(dense, auto, mask_init="magnitude", mask_scale=0.5)).items():
            weight = weights[f"{name}.weight"]
            assert torch.equal(layer.weight, weight), name
            assert torch.allclose(layer.mask_scores, 0.5 * weight.abs() / weight.std(), rtol=1e-6), name

    @pytest.mark.parametrize("auto", [False, True])
    def test_magnitude_pruning_has_no_scores(self, dense, auto):
        model = self.loaded(dense, auto, pruning_method="magnitude")
        assert not [name for name in model.state_dict() if "mask_scores" in name]

    def test_two_layers_do_not_start_alike(self, dense):
        layers = list(masked_layers(self.loaded(dense, False, mask_init="kaiming")).values())
        assert not torch.equal(layers[0].mask_scores, layers[1].mask_scores)

    def test_unpruned_it_predicts_what_the_dense_model_does(self, dense):
        plain = BertForSequenceClassification.from_pretrained(dense).eval()
        masked = self.loaded(dense, False).eval()
        with torch.no_grad():
            assert torch.allclose(masked(**tiny_batch()).logits, plain(**tiny_batch()).logits, atol=1e-6)

    def test_embeddings_are_frozen_and_the_rest_trains(self, dense):
        model = self.loaded(dense, False)
        assert not any(p.requires_grad for p in model.bert.embeddings.parameters())
        assert all(p.requires_grad for name, p in model.named_parameters() if "embeddings" not in name)

    def test_a_missing_head_starts_anew_and_the_scores_as_asked(self, dense):
        config = MaskedBertConfig.from_dense(
            AutoConfig.from_pretrained(dense), num_labels=5, mask_init="constant", mask_scale=2.197
        )
        model, info = MaskedBertForSequenceClassification.from_pretrained(
            dense, config=config, ignore_mismatched_sizes=True, output_loading_info=True
        )
        assert {key for key, *_ in info["mismatched_keys"]} == {"classifier.weight", "classifier.bias"}
        assert not info["missing_keys"]  # mask scores are expected to be missing: no warning
        assert model.classifier.weight.shape == (5, 16)
        assert bool(model.classifier.weight.isfinite().all())
        assert all(layer.mask_scores.unique().numel() == 1 for layer in masked_layers(model).values())

    def test_other_classes_too(self, dense):
        config = MaskedBertConfig.from_dense(AutoConfig.from_pretrained(dense), mask_scale=2.197)
        for model_class in HEADS:
            model = model_class.from_pretrained(dense, config=config, ignore_mismatched_sizes=True)
            for layer in masked_layers(model).values():
                assert torch.equal(layer.mask_scores, torch.full_like(layer.weight, 2.197)), model_class


class TestSaveAndReload:
    @pytest.mark.parametrize("method", PRUNING_METHODS)
    def test_predicts_without_being_told_the_threshold(self, tmp_path, method):
        model = with_random_scores(MaskedBertForSequenceClassification(tiny_config(pruning_method=method)))
        threshold = {"threshold": 0.1, "sigmoied_threshold": 0.55, "l0": None}.get(method, 0.15)
        set_threshold(model, threshold)
        model.save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "config.json").read_text())
        assert (saved["model_type"], saved["pruning_method"], saved["threshold"]) == ("masked_bert", method, threshold)
        assert saved["architectures"] == ["MaskedBertForSequenceClassification"]
        for model_class in (MaskedBertForSequenceClassification, AutoModelForSequenceClassification):
            reloaded = model_class.from_pretrained(tmp_path).eval()
            assert type(reloaded) is MaskedBertForSequenceClassification
            with torch.no_grad():
                # The same bits; but loaded weights lie differently in memory, and sums round differently.
                assert torch.allclose(reloaded(**tiny_batch()).logits, model(**tiny_batch()).logits, atol=1e-6)
            assert remaining_weights(reloaded) == remaining_weights(model) < 100

    def test_with_a_global_boundary_that_has_ties(self, tmp_path):
        model = MaskedBertForSequenceClassification(tiny_config(mask_init="constant"))
        with torch.no_grad():
            masked_layers(model)["bert.encoder.layer.1.output.dense"].mask_scores.fill_(1.0)
        set_threshold(model, 0.3, global_threshold(model, 0.3))
        model.eval().save_pretrained(tmp_path)
        score, ties = json.loads((tmp_path / "config.json").read_text())["global_boundary"]
        assert score == 0.0
        assert sum(ties) == int(0.3 * 4096) - 512
        reloaded = MaskedBertForSequenceClassification.from_pretrained(tmp_path).eval()
        for name, layer in masked_layers(model).items():
            assert torch.equal(masked_layers(reloaded)[name].mask, layer.mask), name
        with torch.no_grad():
            assert torch.allclose(reloaded(**tiny_batch()).logits, model(**tiny_batch()).logits, atol=1e-6)

    def test_scores_are_those_saved_and_not_started_again(self, tmp_path):
        model = with_random_scores(MaskedBertForSequenceClassification(tiny_config(mask_scale=2.197)))
        model.save_pretrained(tmp_path)
        reloaded = MaskedBertForSequenceClassification.from_pretrained(tmp_path)
        for name, layer in masked_layers(model).items():
            assert torch.equal(masked_layers(reloaded)[name].mask_scores, layer.mask_scores), name

    @pytest.mark.parametrize("model_class", HEADS)
    def test_auto_classes(self, tmp_path, model_class):
        model_class(tiny_config()).save_pretrained(tmp_path)
        assert type(AutoConfig.from_pretrained(tmp_path)) is MaskedBertConfig
        assert type(HEADS[model_class].from_pretrained(tmp_path)) is model_class

    def test_checkpoints_of_earlier_masked_berts_load(self, tmp_path, golden_arrays, golden_values):
        """Weights under the published names, and a configuration that knows nothing of thresholds."""
        reference = Reference("topK", golden_arrays, golden_values)
        save_file(dict(reference.model.state_dict()), tmp_path / "model.safetensors", {"format": "pt"})
        old = {"model_type": "masked_bert", "num_labels": 3, "mask_init": "constant", "mask_scale": 0.0}
        old |= {"pruning_method": "topK", "id2label": {"0": "a", "1": "b", "2": "c"}, **REFERENCE_SIZE}
        (tmp_path / "config.json").write_text(json.dumps(old))
        model, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        inputs = [torch.from_numpy(reference.arrays[f"in.{key}"]) for key in ("ids", "att", "tt")]
        with torch.no_grad():
            logits = model.eval()(*inputs, threshold=reference.values["threshold"]).logits
        assert np.allclose(logits.numpy(), reference.arrays["logits"], atol=1e-5)


class TestConfiguration:
    def test_defaults(self):
        config = MaskedBertConfig()
        assert (config.pruning_method, config.mask_init, config.mask_scale) == ("topK", "constant", 0.0)
        assert (config.threshold, config.global_boundary) == (None, None)
        assert config.model_type == "masked_bert"

    def test_unknown_names_are_refused(self):
        with pytest.raises(ValueError, match="pruning_method must be one of"):
            MaskedBertConfig(pruning_method="topM")
        with pytest.raises(ValueError, match="mask_init must be one of"):
            MaskedBertConfig(mask_init="random")

    def test_sigmoid_threshold_is_the_same_method(self):
        assert MaskedBertConfig(pruning_method="sigmoid_threshold").pruning_method == "sigmoied_threshold"

    def test_from_dense_keeps_everything_and_adds_the_masking(self, dense):
        plain = AutoConfig.from_pretrained(dense)
        config = MaskedBertConfig.from_dense(plain, pruning_method="l0", mask_scale=1, num_labels=4)
        assert (config.hidden_size, config.initializer_range) == (16, 0.2)
        assert (config.pruning_method, config.mask_scale, config.num_labels) == ("l0", 1, 4)
        assert plain.model_type == "bert"

    def test_only_a_bert_can_be_masked(self):
        with pytest.raises(ValueError, match="models of type 'bert', not 'gpt2'"):
            MaskedBertConfig.from_dense(AutoConfig.for_model("gpt2"))

    def test_round_trip_through_json(self, tmp_path):
        config = tiny_config(threshold=0.15, global_boundary=[0.25, [1, 0, 2]], pruning_method="threshold")
        config.save_pretrained(tmp_path)
        again = MaskedBertConfig.from_pretrained(tmp_path)
        assert (again.threshold, again.global_boundary) == (0.15, [0.25, [1, 0, 2]])
        assert again.pruning_method == "threshold"
