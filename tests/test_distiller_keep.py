"""`--keep` with each method for single weights: the share asked for, in every form of the model, and resumed."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import AutoConfig

from distiller import TaskDistiller
from emmental.export.bertarize import bertarize
from emmental.export.counts_parameters import count_parameters
from emmental.export.model_folder import read_model
from emmental.masked_models import MaskedBertConfig, MaskedBertForSequenceClassification
from emmental.methods import PRUNING_METHODS, method_of
from emmental.patching import masked_layers
from emmental.pruning import masks_of, renew_masks
from emmental.runs.checkpoints import load_checkpoint, load_weights, save_checkpoint
from emmental.runs.processes import Processes
from emmental.training.plan import plan_updates

TOGETHER = [name for name in PRUNING_METHODS if method_of(name).always_global_topk or not method_of(name).by_share]
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


def masks(distiller: TaskDistiller):
    return masked_layers(distiller.student).items()


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
def test_a_resumed_run_ends_at_the_same_bits(make, make_features, method, tmp_path):
    batch = make_features().batch([0, 1, 2])
    straight, first, second = make(method), make(method), make(method)
    train(straight, batch, 12)
    train(first, batch, 6)
    state = {"updates": first.state_dict()}
    saved = save_checkpoint(tmp_path, 6, first.student, None, first.optimizer, state, Processes())
    found = load_checkpoint(saved, second.student, second.optimizer, Processes())
    second.load_state_dict(found["updates"])
    train(second, batch, 6)
    assert second.global_threshold == straight.global_threshold
    for name, value in straight.student.state_dict().items():
        assert torch.equal(value, second.student.state_dict()[name]), name


@pytest.mark.parametrize("method", TOGETHER)
def test_the_best_checkpoint_has_the_share_too(make, make_features, method, tmp_path):
    """The weights of an earlier update get the masks of their own scores."""
    distiller, batch = make(method, final_warmup=4, mask_scores_learning_rate=1.0), make_features().batch([0, 1, 2])
    train(distiller, batch, 9)
    saved = save_checkpoint(tmp_path, 9, distiller.student, None, distiller.optimizer, {}, Processes())
    train(distiller, batch, 3)
    load_weights(saved, distiller.student)
    distiller.keep_exact_masks()
    assert weights_kept(distiller) == sum(sizes(distiller)) // 10


class TestFisher:
    def test_information_is_the_squared_gradient_of_a_whole_update_to_the_mask(self, make, make_features):
        """Two micro-batches make one update; (w dL/d(wm))^2 of their mean loss, of closed masks too."""
        distiller = make("fisher", initial_warmup=0, gradient_accumulation_steps=2)
        twin = copy.deepcopy(distiller.student)
        parts = [make_features().batch(rows) for rows in ([0, 1], [2, 3])]
        distiller.begin_update(2)
        for part in parts:
            distiller.step(part, 0.5, 0.0)
        renew_masks(twin, 0.5, distiller.global_threshold)
        torch.manual_seed(0)
        loss = sum(
            nn.functional.cross_entropy(
                twin(**{name: part[name] for name in ("input_ids", "attention_mask", "token_type_ids")}).logits,
                part["labels"],
            )
            for part in parts
        )
        (loss / 2).backward()
        for name, layer in masked_layers(twin).items():
            information = masked_layers(distiller.student)[name].mask_scores
            assert torch.allclose(information, layer.mask_scores.grad**2, rtol=1e-3, atol=1e-9), name
            assert information.grad is None
            assert bool((information[~layer.mask] > 0).any())

    def test_no_optimizer_has_the_information(self, make):
        distiller = make("fisher")
        assert set(distiller.learning_rates()) == {"weights", "undecayed"}

    def test_closed_weights_keep_their_values_and_come_back(self, make, make_features):
        """What was never open does not move (what was, does: AdamW remembers); and closed masks open again."""
        distiller = make("fisher", initial_warmup=0, weight_decay=0, max_steps=40)
        started = {name: layer.weight.detach().clone() for name, layer in masks(distiller)}
        ever_open = {name: torch.zeros_like(weight, dtype=torch.bool) for name, weight in started.items()}
        came_back = 0
        for step in range(20):
            distiller.step(make_features().batch([step % 5, 5 + step % 3]), 0.3, 0.0)
            for name, layer in masks(distiller):
                came_back += int((layer.mask & ~ever_open[name]).sum()) if step else 0
                ever_open[name] |= layer.mask
        never_open = {name: ~was_open for name, was_open in ever_open.items()}
        assert sum(int(closed.sum()) for closed in never_open.values()) > 100
        assert came_back > 100
        for name, layer in masks(distiller):
            assert torch.equal(layer.weight[never_open[name]], started[name][never_open[name]])
