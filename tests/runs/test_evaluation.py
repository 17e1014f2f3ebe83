"""Logits of a data set: in the rows' order, the same over any number of ranks, and leaving no trace."""

from __future__ import annotations

import copy
import random
import threading

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig

from emmental import MaskedBertConfig, MaskedBertForSequenceClassification
from emmental.patching import masked_layers, set_threshold
from emmental.runs.evaluation import predict_logits
from emmental.runs.precision import Precision
from emmental.runs.processes import Processes

CPU = torch.device("cpu")


class ThreadedProcesses(Processes):
    """One of several ranks that are threads of this process, and gather through a list."""

    def __init__(self, rank: int, shared: list, barrier: threading.Barrier) -> None:
        super().__init__(rank=rank, world_size=len(shared))
        object.__setattr__(self, "shared", shared)
        object.__setattr__(self, "barrier_of_threads", barrier)

    def gather(self, rows: torch.Tensor) -> list[torch.Tensor]:
        self.shared[self.rank] = rows
        self.barrier_of_threads.wait(60)
        gathered = list(self.shared)
        self.barrier_of_threads.wait(60)
        return gathered


def logits_over_ranks(model: nn.Module, dataset: object, batch_size: int, world_size: int) -> list[torch.Tensor]:
    """What every rank gets."""
    shared, results, barrier = [None] * world_size, [None] * world_size, threading.Barrier(world_size)

    def work(rank: int) -> None:
        processes = ThreadedProcesses(rank, shared, barrier)
        results[rank] = predict_logits(
            copy.deepcopy(model), copy.deepcopy(dataset), batch_size, processes, Precision(CPU)
        )

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


@pytest.fixture
def model(bert_dir) -> nn.Module:
    torch.manual_seed(0)
    config = MaskedBertConfig.from_dense(AutoConfig.from_pretrained(bert_dir), mask_init="kaiming")
    masked = MaskedBertForSequenceClassification.from_pretrained(bert_dir, config=config)
    set_threshold(masked, 0.3)
    return masked


def test_order_of_the_rows_is_restored(model, make_features):
    dataset = make_features(dev=23)
    assert len(set(dataset.lengths.tolist())) > 3  # rows are batched by length, so their order changes
    logits = predict_logits(model, dataset, 4, Processes(), Precision(CPU))
    assert logits.shape == (23, 2)
    assert logits.dtype == torch.float32
    model.eval()
    with torch.no_grad():
        for row in range(23):
            batch = dataset.batch([row])
            alone = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}).logits[
                0
            ]
            assert torch.allclose(logits[row], alone, atol=1e-5), row


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("rows", [2, 9, 23])
def test_many_ranks_give_the_logits_of_one(model, make_features, world_size, rows):
    dataset = make_features(dev=rows)
    alone = predict_logits(model, dataset, 4, Processes(), Precision(CPU))
    for logits in logits_over_ranks(model, dataset, 4, world_size):
        assert logits.shape == alone.shape
        assert torch.allclose(logits, alone, atol=1e-6)
        assert torch.equal(logits.argmax(1), alone.argmax(1))


def test_random_generators_are_left_alone(model, make_features):
    dataset = make_features()
    model.config.hidden_dropout_prob = 0.5
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(4)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    predict_logits(model.train(), dataset, 4, Processes(), Precision(CPU))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert random.getstate() == states[2]


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_training_masks_are_left_alone(model, make_features, training):
    model.train(training)
    masks = {name: layer.mask for name, layer in masked_layers(model).items()}
    predict_logits(model, make_features(), 4, Processes(), Precision(CPU))
    assert model.training is training
    assert all(torch.equal(layer.mask, masks[name]) for name, layer in masked_layers(model).items())


def test_no_gradients_and_the_evaluation_form_of_dropout(model, make_features):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.9
    dataset = make_features()
    first = predict_logits(model.train(), dataset, 4, Processes(), Precision(CPU))
    assert torch.equal(predict_logits(model.train(), dataset, 4, Processes(), Precision(CPU)), first)
    assert not first.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_mixed_precision_still_gives_float32(model, make_features):
    dataset = make_features()
    exact = predict_logits(model, dataset, 4, Processes(), Precision(CPU))
    mixed = predict_logits(model, dataset, 4, Processes(), Precision(CPU, bf16=True))
    assert mixed.dtype == torch.float32
    assert not torch.equal(mixed, exact)
    assert torch.allclose(mixed, exact, atol=0.1)
