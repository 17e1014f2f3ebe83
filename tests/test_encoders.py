"""Every known type of encoder, from training to what comes out of it, on tiny random models."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx
import pytest
import tiny
import tiny_models
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

import masked_run_glue
from emmental.architectures import (
    ARCHITECTURES,
    architecture_of,
    encoder_linears,
    longest_input,
    takes_broadcast_mask,
    takes_token_types,
)
from emmental.export.bertarize import bertarize
from emmental.export.counts_parameters import count_parameters
from emmental.export.onnx import MODEL_FILE, export_onnx_folder
from emmental.export.storage import load_package, save_package
from emmental.inference.sparse import SPARSE_TYPES, load_sparse
from emmental.inference.sparse_encoder import SparseEncoder
from emmental.masked_models import masked_config
from emmental.methods import PRUNING_METHODS, method_of
from emmental.patching import masked_layers
from emmental.pictures.densities import densities_of, head_axis, heading, matrix_key
from emmental.pruning import remaining_weights
from emmental.reporting.kept_weights import read_model_masks
from visualizing_image import save_overview

MATRICES = {"albert": 6, "modernbert": 8}
"""Encoder matrices of two layers, 12 of others: layers share one set of six; four a layer, where q, k, v are one."""


@dataclass(frozen=True)
class Encoder:
    """A dense model of one type, and what became of it in training.

    Attributes:
        model_type: of the dense model.
        world: folder of `dense` (the model), `out` (the trained one) and the task.
        results: what its evaluation gave.
    """

    model_type: str
    world: Path
    results: dict[str, float]

    @property
    def trained(self) -> Path:
        return self.world / "out"


def flags(world: Path, output: Path, *others: str) -> list[str]:
    return [
        *("--data_dir", str(world / "mrpc"), "--task_name", "mrpc", "--model_name_or_path", str(world / "dense")),
        *("--output_dir", str(output), "--feature_cache_dir", str(world / "cache"), "--no_cuda"),
        *("--max_seq_length", "32", "--max_steps", "4", "--warmup_steps", "1", "--save_steps", "2"),
        "--no-pictures",
        *("--recipe", "paper", "--learning_rate", "1e-3", *others),
    ]


MOVEMENT = ("--final_threshold", "0.25", "--do_train", "--do_eval", "--do_predict")


@pytest.fixture(scope="module", params=tiny_models.MODEL_TYPES)
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """Pruned by movement for four updates, with the dense model as its teacher."""
    world = tmp_path_factory.mktemp(request.param)
    tiny_models.save(world / "dense", request.param)
    tiny.write_task(world / "mrpc", "mrpc", train=16, dev=6, test=4)
    teacher = ("--teacher_name_or_path", str(world / "dense"))
    return Encoder(request.param, world, masked_run_glue.main(flags(world, world / "out", *MOVEMENT, *teacher)))


@pytest.fixture(scope="module")
def inputs(encoder: Encoder) -> dict[str, torch.Tensor]:
    """Two pairs, one of them padded, as the model takes them."""
    tokenizer = AutoTokenizer.from_pretrained(encoder.trained)
    pairs = [" ".join(tiny.WORDS[:9]), tiny.WORDS[3]], [tiny.WORDS[5], " ".join(tiny.WORDS[7:10])]
    batch = tokenizer(*pairs, padding=True, return_tensors="pt")
    names = ["input_ids", "attention_mask"]
    if takes_token_types(AutoConfig.from_pretrained(encoder.trained)):
        names.append("token_type_ids")
    return {name: batch[name] for name in names}


@torch.no_grad()
def logits(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return model.eval()(**inputs).logits


def test_the_list_of_tiny_models_is_that_of_the_architectures() -> None:
    assert set(tiny_models.MODEL_TYPES) == set(ARCHITECTURES)


class TestTraining:
    def test_it_is_pruned_distilled_evaluated_and_predicts(self, encoder: Encoder) -> None:
        assert {"acc", "f1"} <= set(encoder.results)
        assert len((encoder.trained / "MRPC.tsv").read_text().splitlines()) == 1 + 4
        log = [json.loads(line) for line in (encoder.trained / "train_log.jsonl").read_text().splitlines()]
        assert log[-1]["step"] == 4
        assert log[0]["losses"]["distil"] >= 0

    def test_it_reloads_through_auto_classes_with_the_share_that_was_asked_for(self, encoder: Encoder, inputs) -> None:
        model = AutoModelForSequenceClassification.from_pretrained(encoder.trained)
        assert model.config.model_type == f"masked_{encoder.model_type}"
        assert remaining_weights(model.eval()) == 25.0
        assert len(masked_layers(model)) == MATRICES.get(encoder.model_type, 12)
        assert bool(logits(model, inputs).isfinite().all())

    def test_it_resumes_to_the_bit(self, encoder: Encoder, tmp_path: Path) -> None:
        shutil.copytree(encoder.trained / "checkpoint-2", tmp_path / "out" / "checkpoint-2")
        teacher = ("--teacher_name_or_path", str(encoder.world / "dense"))
        results = masked_run_glue.main(flags(encoder.world, tmp_path / "out", *MOVEMENT, *teacher))
        assert results == encoder.results
        for file in ("model.safetensors", "checkpoint-4/model.safetensors", "MRPC.tsv"):
            assert (tmp_path / "out" / file).read_bytes() == (encoder.trained / file).read_bytes(), file

    @pytest.mark.parametrize("method", [method for method in PRUNING_METHODS if method != "topK"])
    def test_the_other_methods(self, encoder: Encoder, tmp_path: Path, method: str) -> None:
        """They resume to the bit too, and the finished model evaluates to the same."""
        argv = partial(flags, encoder.world)
        named = ("--pruning_method", method, *tiny.METHODS[method])
        results = masked_run_glue.main(argv(tmp_path, *named))
        shutil.copytree(tmp_path / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
        assert masked_run_glue.main(argv(tmp_path / "resumed", *named, "--do_train")) == {}
        weights = [folder / "model.safetensors" for folder in (tmp_path, tmp_path / "resumed")]
        assert weights[0].read_bytes() == weights[1].read_bytes()
        assert masked_run_glue.main(argv(tmp_path, *named, "--do_eval")) == results
        if method_of(method).by_share:
            model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
            assert remaining_weights(model.eval()) == 25.0

    def test_dense_training_stays_dense(self, encoder: Encoder, tmp_path: Path) -> None:
        masked_run_glue.main(flags(encoder.world, tmp_path, "--model_type", encoder.model_type, "--save_steps", "4"))
        assert json.loads((tmp_path / "config.json").read_text())["model_type"] == encoder.model_type


class TestMaskedForm:
    def test_embeddings_are_frozen_and_all_else_trains(self, encoder: Encoder) -> None:
        model = AutoModelForSequenceClassification.from_pretrained(encoder.trained)
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        inside = {name for name, _ in model.named_parameters() if f"{model.base_model_prefix}.embeddings." in name}
        assert frozen == inside
        assert frozen

    def test_unpruned_it_computes_what_the_dense_model_does(self, encoder: Encoder, inputs) -> None:
        dense = AutoModelForSequenceClassification.from_pretrained(encoder.world / "dense")
        config = masked_config(dense.config)
        masked = AutoModelForSequenceClassification.from_pretrained(encoder.world / "dense", config=config)
        assert torch.equal(logits(masked, inputs), logits(dense, inputs))
        assert {name.removesuffix(".mask_scores") for name in set(masked.state_dict()) - set(dense.state_dict())} == {
            *encoder_linears(dense)
        }

    def test_hidden_states_are_given(self, encoder: Encoder, inputs) -> None:
        model = AutoModelForSequenceClassification.from_pretrained(encoder.trained).eval()
        states = model(**inputs, output_hidden_states=True).hidden_states
        assert len(states) == 3
        assert states[-1].shape == (*inputs["input_ids"].shape, 16)

    def test_a_broadcast_mask_gives_the_same_logits(self, encoder: Encoder, inputs) -> None:
        model = AutoModelForSequenceClassification.from_pretrained(encoder.world / "dense")
        takes = takes_broadcast_mask(model.config)
        assert takes == architecture_of(model.config).broadcast_mask
        assert not (takes and encoder.model_type in ("mpnet", "deberta-v2", "modernbert"))
        if takes:
            mask = inputs["attention_mask"].bool()[:, None, None, :]
            expected = logits(model, inputs)
            assert torch.allclose(logits(model, {**inputs, "attention_mask": mask}), expected, atol=1e-6)

    def test_the_longest_text_fits_and_one_token_more_does_not(self, encoder: Encoder) -> None:
        model = AutoModelForSequenceClassification.from_pretrained(encoder.world / "dense")
        assert longest_input(model.config) == tiny_models.LONGEST
        ids = torch.full((1, tiny_models.LONGEST), 10)
        assert bool(logits(model, {"input_ids": ids}).isfinite().all())
        if architecture_of(model.config).positions_after is not None:
            with pytest.raises((IndexError, RuntimeError)):
                logits(model, {"input_ids": torch.full((1, tiny_models.LONGEST + 1), 10)})


class TestExports:
    def test_bertarized_it_is_a_plain_model_with_equal_logits(self, encoder: Encoder, inputs, tmp_path: Path) -> None:
        masked = AutoModelForSequenceClassification.from_pretrained(encoder.trained)
        bertarize(masked).save_pretrained(tmp_path)
        plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        assert plain.config.model_type == encoder.model_type
        assert torch.allclose(logits(plain, inputs), logits(masked, inputs), atol=1e-6)
        zeros = sum(int((plain.get_submodule(name).weight == 0).sum()) for name in encoder_linears(plain))
        assert zeros == 0.75 * sum(plain.get_submodule(name).weight.numel() for name in encoder_linears(plain))

    def test_counts(self, encoder: Encoder) -> None:
        masked = AutoModelForSequenceClassification.from_pretrained(encoder.trained).eval()
        counts = count_parameters(masked)
        assert counts.encoder_matrices.percent == 25.0
        scores = sum(p.numel() for name, p in masked.named_parameters() if name.endswith("mask_scores"))
        assert counts.model.total == sum(p.numel() for p in masked.parameters()) - scores
        assert count_parameters(bertarize(masked)) == counts

    @pytest.mark.parametrize(("weights", "tolerance"), [("fp32", 1e-6), ("int8", 0.1)])
    def test_packages(self, encoder: Encoder, inputs, tmp_path: Path, weights: str, tolerance: float) -> None:
        masked = AutoModelForSequenceClassification.from_pretrained(encoder.trained)
        save_package(encoder.trained, tmp_path / "model.emmental", weights=weights)
        loaded = load_package(tmp_path / "model.emmental")
        assert loaded.config.model_type == encoder.model_type
        assert torch.allclose(logits(loaded, inputs), logits(masked, inputs), atol=tolerance)

    def test_onnx(self, encoder: Encoder, tmp_path: Path) -> None:
        result = export_onnx_folder(encoder.trained, tmp_path / "onnx", int8=True)
        assert result.difference <= 1e-5
        assert result.int8_difference < 0.5
        inputs = {value.name for value in onnx.load(tmp_path / "onnx" / MODEL_FILE).graph.input}
        types = takes_token_types(AutoConfig.from_pretrained(encoder.trained))
        assert inputs == {"input_ids", "attention_mask", *(["token_type_ids"] if types else [])}

    def test_the_sparse_runtime_or_the_plain_model(self, encoder: Encoder, inputs, caplog) -> None:
        sparse = load_sparse(encoder.trained)
        masked = AutoModelForSequenceClassification.from_pretrained(encoder.trained)
        assert torch.allclose(logits(sparse, inputs), logits(masked, inputs), atol=1e-5)
        runs_sparse = any(isinstance(module, SparseEncoder) for module in sparse.modules())
        assert runs_sparse == (encoder.model_type in SPARSE_TYPES)
        assert ("runs dense" in caplog.text) != runs_sparse

    def test_pictures_name_layers_and_heads(self, encoder: Encoder, tmp_path: Path) -> None:
        masks, heads = read_model_masks(encoder.trained)
        assert heads == 2
        keys = [matrix_key(name) for name in masks]
        layers = 1 if encoder.model_type == "albert" else 2
        assert {layer for layer, _ in keys} == set(range(layers))
        names = {"query": 0, "key": 0, "value": 0, "attn.\noutput": 1, "FFN\nin": None, "FFN\nout": None}
        assert {heading(matrix): head_axis(matrix) for _, matrix in keys} == names
        save_overview(tmp_path / "overview.png", densities_of(masks), encoder.model_type)


def test_plain_transformers_refuses_every_masked_form(tmp_path: Path) -> None:
    """Rather than take it for a dense model."""
    for model_type in tiny_models.MODEL_TYPES:
        masked_config(tiny_models.config(model_type)).save_pretrained(tmp_path / model_type)
    program = """
import pathlib, sys
from transformers import AutoConfig
for folder in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    try:
        AutoConfig.from_pretrained(folder)
    except ValueError as error:
        assert f"masked_{folder.name}" in str(error)
        print(folder.name)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == sorted(tiny_models.MODEL_TYPES)
