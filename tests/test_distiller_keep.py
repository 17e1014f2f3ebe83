"""`--keep` with each method for single weights: the share asked for, in every form of the model, and resumed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

import pytest
import torch
from transformers import AutoConfig

from distiller import TaskDistiller
from emmental.export.bertarize import bertarize
from emmental.export.counts_parameters import count_parameters
from emmental.export.model_folder import read_model
from emmental.masked_models import MaskedBertConfig, MaskedBertForSequenceClassification
from emmental.methods import PRUNING_METHODS
from emmental.patching import drop_masks, masked_layers
from emmental.pruning import masks_of
from emmental.training.plan import plan_updates

TOGETHER = [method for method in PRUNING_METHODS if method not in ("topK", "magnitude")]
"""Methods that rank the scores of all matrices together when a share is asked for."""


@pytest.fixture
def make(make_args, bert_dir) -> Callable[..., TaskDistiller]:
    def make(method: str, **flags: object) -> TaskDistiller:
        settings = {"keep": 0.1, "max_steps": 12, "warmup_steps": 1, "learning_rate": 1e-2, **flags}
        args = make_args(pruning_method=method, global_topk_frequency_compute=4, **settings)
        torch.manual_seed(0)
        config = MaskedBertConfig.from_dense(
            AutoConfig.from_pretrained(bert_dir), pruning_method=method, mask_init="magnitude", mask_scale=1.0
        )
        model = MaskedBertForSequenceClassification.from_pretrained(bert_dir, config=config)
        return TaskDistiller(args, model.train(), plan_updates(args, 80, 1))

    return make


def train(distiller: TaskDistiller, batch: dict[str, torch.Tensor], updates: int) -> list[int]:
    """Make updates as planned; weights that would stay in evaluation, after the masks of each were made."""
    kept = []
    for _ in range(updates):
        distiller.step(batch, *distiller.plan.at(distiller.global_step + 1))
        kept.append(weights_kept(distiller))
    return kept


def weights_kept(distiller: TaskDistiller) -> int:
    """Of a copy in evaluation, so that training keeps its masks."""
    return sum(int(mask.sum()) for mask in masks_of(copy.deepcopy(distiller.student).eval()).values())


def sizes(distiller: TaskDistiller) -> list[int]:
    return [layer.weight.numel() for layer in masked_layers(distiller.student).values()]


@pytest.mark.parametrize("method", PRUNING_METHODS)
def test_the_share_is_exact_in_every_form(make, make_features, method, tmp_path):
    distiller = make(method)
    train(distiller, make_features().batch([0, 1, 2]), 12)
    layers = sizes(distiller)
    expected = sum(layers) // 10 if method in TOGETHER else sum(size // 10 for size in layers)
    assert weights_kept(distiller) == expected
    distiller.student.eval().save_pretrained(tmp_path / "masked")
    again = read_model(tmp_path / "masked")
    plain = bertarize(again)
    for name, mask in masks_of(distiller.student).items():
        assert torch.equal(masks_of(again)[name], mask)
        assert torch.equal(plain.get_submodule(name).weight != 0, mask)
    assert sum(count.remaining for count in count_parameters(again).matrices.values()) == expected
    batch = {name: make_features().batch([3, 4])[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        assert torch.allclose(plain.eval()(**batch).logits, distiller.student(**batch).logits, atol=1e-6)


@pytest.mark.parametrize("method", TOGETHER)
def test_the_plan_shows_the_share_of_each_update(make, make_features, method):
    distiller = make(method)
    total = sum(sizes(distiller))
    shown = {int(line.split()[0]): line.split()[2] for line in distiller.plan.lines()[3:]}
    assert (shown[1], shown[12]) == ("100.0", "10.0")
    batch = make_features().batch([0, 1, 2])
    for update in range(1, 11):
        distiller._make_masks(distiller.plan.at(update)[0])  # the scores before the update decide
        if (update - 1) % 4 == 0:
            assert 100 * weights_kept(distiller) / total == pytest.approx(float(shown[update]), abs=0.06)
        train(distiller, batch, 1)


@pytest.mark.parametrize("method", TOGETHER)
def test_a_resumed_run_ends_at_the_same_bits(make, make_features, method):
    batch = make_features().batch([0, 1, 2])
    straight, first, second = make(method), make(method), make(method)
    train(straight, batch, 12)
    train(first, batch, 6)
    second.student.load_state_dict(copy.deepcopy(first.student.state_dict()))
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    drop_masks(first.student)
    train(second, batch, 6)
    assert second.global_threshold == straight.global_threshold
    for name, value in straight.student.state_dict().items():
        assert torch.equal(value, second.student.state_dict()[name]), name


def test_penalties_go_together_with_a_share(make, make_features):
    distiller = make("sigmoied_threshold", regularization="l1", final_lambda=10)
    train(distiller, make_features().batch([0, 1, 2]), 12)
    assert weights_kept(distiller) == sum(sizes(distiller)) // 10
