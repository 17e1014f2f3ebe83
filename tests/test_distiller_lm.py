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
from emmental.errors import NonFiniteError

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
    return {
        name.removeprefix(prefix): torch.tensor(value) for name, value in arrays.items() if name.startswith(prefix)
    }


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


def test_defaults_are_those_of_the_command_line(values: dict[str, Any]) -> None:
    params = {name: values["mlm"]["params"][name] for name in ("mlm", "special_tok_ids", "alpha_mlm", "alpha_clm")}
    student, teacher = bert_like("mlm")
    distiller = Distiller(argparse.Namespace(**params), [[2, 9, 3]] * 7, None, student, teacher)
    # 3 epochs of 2 batches of 5 sequences, which the accumulation of 50 flushes after each epoch.
    assert distiller.total_updates == 3
    assert distiller.max_grad_norm == 5.0
    group = distiller.optimizer.param_groups[0]
    assert (group["eps"], group["betas"], group["weight_decay"]) == (1e-6, (0.9, 0.98), 0.0)


@pytest.mark.parametrize(("accumulation", "updates"), [(1, 8), (3, 4), (50, 2)])
def test_updates_stop_at_the_end_of_an_epoch_and_none_is_lost(
    values: dict[str, Any], accumulation: int, updates: int
) -> None:
    distiller = distiller_of("mlm", values, gradient_accumulation_steps=accumulation, n_epoch=2)
    before = [parameter.detach().clone() for parameter in distiller.student.parameters()]
    distiller.train()
    assert distiller.total_updates == distiller.global_step == updates
    assert (distiller.n_total_iter, distiller.epoch) == (8, 2)
    assert any(not torch.equal(old, new) for old, new in zip(before, distiller.student.parameters(), strict=True))


def test_a_step_waits_for_the_whole_accumulation(values: dict[str, Any]) -> None:
    distiller = distiller_of("mlm", values, gradient_accumulation_steps=2)
    batch = distiller.prepare_batch_mlm((torch.randint(7, 90, (4, 12)), torch.full((4,), 12)))
    assert distiller.step(*batch) is False
    assert distiller.global_step == 0
    assert distiller.step(*batch) is True
    assert distiller.global_step == 1


def test_the_teacher_does_not_change(values: dict[str, Any]) -> None:
    distiller = distiller_of("mlm", values)
    before = {name: value.clone() for name, value in distiller.teacher.state_dict().items()}
    distiller.train()
    assert all(torch.equal(value, before[name]) for name, value in distiller.teacher.state_dict().items())
    assert not distiller.teacher.training


def test_mlm_batches_have_masked_tokens_and_labels(values: dict[str, Any]) -> None:
    distiller = distiller_of("mlm", values, mlm_mask_prop=1.0)
    ids = torch.tensor([[2, 20, 21, 22, 3], [2, 30, 3, 0, 0]])
    masked, attended, labels = distiller.prepare_batch_mlm((ids, torch.tensor([5, 3])))
    assert attended.tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    # Of 8 tokens at a proportion of 1 the four special ones are never asked for, whatever `token_probs` says of them.
    assert labels.tolist() == [[-100, 20, 21, 22, -100], [-100, 30, -100, -100, -100]]
    assert torch.equal(masked[labels == -100], ids[labels == -100])


def test_clm_batches_ask_for_the_tokens(values: dict[str, Any]) -> None:
    distiller = distiller_of("clm", values)
    ids = torch.tensor([[20, 21, 22], [30, 1, 1]])
    inputs, attended, labels = distiller.prepare_batch_clm((ids, torch.tensor([3, 1])))
    assert torch.equal(inputs, ids)
    assert attended.tolist() == [[True] * 3, [True, False, False]]
    assert labels.tolist() == [[20, 21, 22], [30, -100, -100]]


@pytest.mark.parametrize(("fp16", "width"), [(False, 13), (True, 16)])
def test_mixed_precision_pads_to_eights_and_keeps_every_sequence(
    values: dict[str, Any], fp16: bool, width: int
) -> None:
    distiller = distiller_of("mlm", values, fp16=fp16)
    ids, lengths = torch.full((15, 13), 9), torch.full((15,), 13)
    rounded, kept = distiller.round_batch(ids, lengths)
    assert rounded.shape == (15, width)
    assert torch.equal(kept, lengths)
    assert torch.equal(rounded[:, :13], ids)
    assert (rounded[:, 13:] == 0).all()
    masked, attended, labels = distiller.prepare_batch_mlm((ids, lengths))
    assert masked.shape == attended.shape == labels.shape == (15, width)
    assert int(attended.sum()) == 15 * 13


def test_padding_does_not_change_a_loss(values: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    losses = {}
    for extra in (0, 5):
        distiller = distiller_of("clm", values)
        batch = tensors(arrays, "clm.in.")
        pad = torch.nn.functional.pad
        inputs = (
            pad(batch["ids"], (0, extra)),
            pad(batch["att"], (0, extra)),
            pad(batch["labels"], (0, extra), value=-100),
        )
        distiller.step(*inputs)
        losses[extra] = [getattr(distiller, f"last_loss_{name}") for name in LOSSES]
    assert losses[5] == pytest.approx(losses[0], rel=1e-4)


def test_rows_that_only_fill_up_do_not_count(values: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    batch = tensors(arrays, "mlm.in.")
    whole, filled = distiller_of("mlm", values), distiller_of("mlm", values)
    whole.step(batch["ids"][:3], batch["att"][:3], batch["labels"][:3])
    filled.step(batch["ids"], batch["att"], batch["labels"], torch.tensor([True, True, True, False]))
    for name in LOSSES:
        assert getattr(filled, f"last_loss_{name}") == pytest.approx(getattr(whole, f"last_loss_{name}"), rel=1e-5)


def test_a_loss_of_weight_zero_is_not_computed(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    distiller = distiller_of("mlm", values, alpha_ce=0.0, alpha_mse=0.0, alpha_cos=0.0)
    monkeypatch.setattr(distiller.teacher, "forward", None)
    distiller.train()
    assert set(distiller.losses) == {"mlm", "total"}
    assert distiller.last_loss == pytest.approx(2.0 * distiller.last_loss_mlm)
    assert distiller.last_loss_ce == 0


def test_nan_ends_the_training(values: dict[str, Any]) -> None:
    distiller = distiller_of("mlm", values)
    with torch.no_grad():
        distiller.student.vocab_projector.bias[7] = float("nan")
    with pytest.raises(NonFiniteError, match="update 1"):
        distiller.train()
    assert distiller.global_step == 0


def test_grouping_by_size_saves_padding(values: dict[str, Any]) -> None:
    generator = np.random.default_rng(1)
    dataset = [np.full(length, 9) for length in generator.integers(3, 30, 200)]
    tokens = {}
    for grouped in (True, False):
        params = argparse.Namespace(**{**values["mlm"]["params"], "group_by_size": grouped})
        distiller = Distiller(params, dataset, None, *bert_like("mlm"))
        batches = [distiller.dataset.__getitems__(rows)["input_ids"] for rows in distiller._batches]
        assert sum(len(batch) for batch in batches) == 200
        tokens[grouped] = sum(batch.numel() for batch in batches)
    assert tokens[True] < 1.1 * sum(map(len, dataset)) < tokens[False]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_mixed_precision_trains(values: dict[str, Any], precision: str) -> None:
    exact, mixed = distiller_of("mlm", values), distiller_of("mlm", values, **{precision: True})
    exact.train()
    mixed.train()
    assert mixed.global_step == 4
    assert mixed.averages.mean_total() == pytest.approx(exact.averages.mean_total(), rel=0.05)
