"""`Distiller` against the reference numbers, and what its batches and updates promise."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from distiller import Distiller
from emmental.training.errors import NonFiniteError

GOLDEN = Path(__file__).parent / "golden"
CASES = ("mlm", "mlm_restrict", "clm")
LOSSES = ("ce", "mlm", "clm", "mse", "cos")


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "distiller.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def values() -> dict[str, Any]:
    return json.loads((GOLDEN / "distiller.json").read_text(encoding="utf-8"))


def tensors(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): torch.tensor(value) for name, value in arrays.items() if name.startswith(prefix)}


def bert_like(case: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    if case == "clm":
        shape = {"vocab_size": 90, "n_embd": 32, "n_head": 4, "n_positions": 40}
        quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        models = (GPT2LMHeadModel(GPT2Config(n_layer=layers, **shape, **quiet)) for layers in (2, 4))
        return tuple(models)
    student = DistilBertConfig(
        vocab_size=90,
        dim=32,
        n_layers=2,
        n_heads=4,
        hidden_dim=64,
        max_position_embeddings=40,
        dropout=0.0,
        attention_dropout=0.0,
    )
    teacher = BertConfig(
        vocab_size=90,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=40,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return DistilBertForMaskedLM(student), BertForMaskedLM(teacher)


def distiller_of(case: str, values: dict[str, Any], **changes: Any) -> Distiller:
    torch.manual_seed(0)
    params = argparse.Namespace(**{**values[case]["params"], **changes})
    student, teacher = bert_like(case)
    generator = np.random.default_rng(0)
    dataset = [np.array([2, *generator.integers(7, 90, generator.integers(3, 18)), 3]) for _ in range(13)]
    return Distiller(params, dataset, torch.ones(90), student, teacher)


@pytest.mark.parametrize("case", CASES)
def test_one_step_equals_the_reference(case: str, arrays: dict[str, np.ndarray], values: dict[str, Any]) -> None:
    distiller = distiller_of(case, values)
    distiller.student.load_state_dict(tensors(arrays, f"{case}.student."), strict=False)
    distiller.teacher.load_state_dict(tensors(arrays, f"{case}.teacher."), strict=False)
    batch = tensors(arrays, f"{case}.in.")

    assert distiller.step(batch["ids"], batch["att"], batch["labels"]) is True

    assert distiller.last_loss == pytest.approx(values[case]["loss"], rel=1e-5)
    for name in LOSSES:
        assert getattr(distiller, f"last_loss_{name}") == pytest.approx(values[case][name], rel=1e-5)
    after = tensors(arrays, f"{case}.after.")
    trained = dict(distiller.student.named_parameters())
    assert set(after) == set(trained)
    differences = torch.cat([(trained[name].detach() - value).abs().flatten() for name, value in after.items()])
    assert (differences <= 2e-5).double().mean() >= 0.999
