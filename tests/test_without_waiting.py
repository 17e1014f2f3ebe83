"""What a CPU can show of training on a GPU: its code makes the same masks, and never waits for the device.

The tensors are on the CPU, the code believes that they are not.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import tiny_masked
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from distiller import TaskDistiller
from emmental.modules import devices
from emmental.modules.binarizer import magnitude_mask, threshold_mask, topk_mask
from emmental.patching import masked_layers
from emmental.pruning import global_threshold
from emmental.training.plan import plan_updates

WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "item", "_unique2"}
"""Operations whose result's value or shape the host must know before it can go on."""
METHODS = {
    "topK": {},
    "threshold": {"initial_threshold": 0.0, "final_threshold": 0.1, "regularization": "l1", "final_lambda": 1.0},
    "sigmoied_threshold": {"initial_threshold": 0.0, "final_threshold": 0.5},
    "magnitude": {},
    "l0": {"regularization": "l0", "final_lambda": 1.0},
}


class Waits(TorchDispatchMode):
    """Counts operations that would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in WAITING:
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(devices, "is_on_host", lambda tensor: False)


@pytest.fixture
def distiller(make_args):
    """A training step's surroundings, and a batch of two padded rows."""

    def make(method: str, **flags: object) -> tuple[TaskDistiller, dict[str, torch.Tensor]]:
        args = make_args(pruning_method=method, warmup_steps=0, max_steps=9, **METHODS[method], **flags)
        ids = torch.tensor([[2, 5, 9, 17, 30, 3], [2, 7, 8, 3, 0, 0]])
        batch = {"input_ids": ids, "attention_mask": (ids > 0).long(), "token_type_ids": torch.zeros_like(ids)}
        batch |= {"labels": torch.tensor([0, 1]), "index": torch.arange(2), "weights": torch.ones(2)}
        plan = plan_updates(args, 8, 1)
        return TaskDistiller(args, tiny_masked.make(method=method).train(), plan), batch

    return make


class TestSameMasks:
    @given(
        size=st.integers(1, 300),
        levels=st.integers(1, 40),
        thousandths=st.integers(0, 1000),
        seed=st.integers(0, 2**32 - 1),
    )
    @settings(deadline=None, max_examples=200)
    def test_with_ties_and_floors(self, size, levels, thousandths, seed):
        values = np.random.default_rng(seed).integers(-levels, levels, size).astype(np.float32) / 7
        scores, threshold = torch.from_numpy(values), thousandths / 1000
        made = [self.masks(scores, threshold)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(devices, "is_on_host", lambda tensor: False)
            made.append(self.masks(scores, threshold))
        assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))

    @staticmethod
    def masks(scores: torch.Tensor, threshold: float) -> list[torch.Tensor]:
        movement = [topk_mask(scores, threshold), magnitude_mask(scores, threshold)]
        return [*movement, *(threshold_mask(scores, 4 * threshold - 2, sigmoid) for sigmoid in (False, True))]

    @pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 1.0])
    def test_global_threshold(self, monkeypatch, fraction):
        model = tiny_masked.make()
        for layer in masked_layers(model).values():
            layer.mask_scores.data = layer.mask_scores.data.round(decimals=1)  # many ties
        expected = global_threshold(model, fraction)
        monkeypatch.setattr(devices, "is_on_host", lambda tensor: False)
        assert global_threshold(model, fraction) == expected


class TestNoWaiting:
    @pytest.mark.parametrize("method", METHODS)
    def test_in_updates(self, as_on_a_gpu, distiller, method):
        training, batch = distiller(method)
        for _ in range(2):
            training.begin_update(2)
            for _ in range(2):
                with Waits() as waits:
                    training.step(batch, *training.plan.at(training.global_step + 1))
                assert waits.counts == {}, method
        assert training.global_step == 2
        training.check_finite()

    def test_a_global_top_k_waits_only_when_its_boundary_is_due(self, as_on_a_gpu, distiller):
        training, batch = distiller("topK", global_topk=True, global_topk_frequency_compute=3)
        waited = []
        for _ in range(4):
            with Waits() as waits:
                training.step(batch, *training.plan.at(training.global_step + 1))
            waited.append(sum(waits.counts.values()) > 0)
        assert waited == [True, False, False, True]

    def test_what_waits_is_counted(self):
        with Waits() as waits:
            assert float(torch.ones(1)) == 1.0
            assert torch.ones(2).nonzero().shape == (2, 1)
            assert bool(torch.ones(2).all())
        assert waits.counts == {"_local_scalar_dense": 2, "nonzero": 1}

    def test_the_same_update_as_on_the_host(self, monkeypatch, distiller):
        results = []
        for on_host in (True, False):
            monkeypatch.setattr(devices, "is_on_host", lambda tensor, on_host=on_host: on_host)
            training, batch = distiller("topK")
            training.student.eval()
            training.step(batch, *training.plan.at(1))
            results.append((training.losses["total"].item(), training.student.classifier.weight.detach().clone()))
        assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
        assert torch.allclose(results[0][1], results[1][1], atol=1e-6)
