"""The registry of pruning methods, and what holds for every method in it."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_batches import batches
from tiny_models import model

from emmental.architectures import encoder_linears
from emmental.errors import UserError
from emmental.methods import (
    CUT_METHODS,
    METHODS,
    PRUNING_METHODS,
    RECOMMENDED,
    RECOMMENDED_FOR_FEW,
    canonical_pruning_method,
    method_of,
)
from emmental.modules import MaskedLinear
from emmental.modules.binarizer import count_kept
from emmental.structured.single_gradients import uses_of_matrices

EVERY = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def test_names_in_the_order_of_help():
    assert PRUNING_METHODS[:6] == ("topK", "threshold", "sigmoied_threshold", "magnitude", "l0", "fisher")
    assert CUT_METHODS[:2] == ("fisher", "brain_surgeon")
    assert [method.shown_name for method in METHODS.values()][2] == "sigmoid_threshold"


@pytest.mark.parametrize(
    ("spelling", "name"),
    [("topk", "topK"), ("SIGMOID_threshold", "sigmoied_threshold"), ("L0", "l0"), ("Brain_Surgeon", "brain_surgeon")],
)
def test_a_method_is_found_in_any_spelling(spelling, name):
    assert method_of(spelling).name == name


def test_an_unknown_method_is_refused():
    with pytest.raises(UserError, match=r"pruning_method must be one of topK, .*, brain_surgeon.*, not 'lottery'"):
        method_of("lottery")
    with pytest.raises(UserError, match="not 'brain_surgeon'"):
        canonical_pruning_method("brain_surgeon")  # no masked model has it


@EVERY
def test_what_is_cut_is_trained_by_a_method_of_a_masked_model(method):
    assert method.masked_name in PRUNING_METHODS
    assert method.cuts_first == (method.recovery is not None)
    assert method.cuts_first or not method.only_cuts
    assert not method.always_global_topk or method.accepts_global_topk


@EVERY
def test_a_mask_of_a_share_keeps_that_share(method):
    """5 of 20, of scores or of weights; a boundary keeps what is above it, and the first that equal it."""
    source = torch.arange(-9.0, 11.0).view(4, 5)
    if method.by_share:
        assert int(method.make_mask(source, 0.25).sum()) == 5
    assert method.make_mask(source, None).bool().all() == method.has_threshold  # l0 has gates instead
    assert int((method.make_mask(source, None, (7.0, 1)) > 0).sum()) == 4


@EVERY
def test_scores_are_learned_gathered_or_absent(method):
    layer = MaskedLinear(5, 4, pruning_method=method.masked_name)
    assert (layer.mask_scores is not None) == method.has_scores == (method.learns_scores or method.gathers_scores)
    assert bool(method.regularizations) == method.learns_scores


@pytest.mark.parametrize("method", [method for method in METHODS.values() if method.gathers_scores])
def test_gathered_scores_follow_the_gradient_and_leave_overflow_out(method):
    found = []
    for gradient, scale in ([3.0, 0.5, math.inf], 1.0), ([3072.0, 512.0, math.inf], 1024.0):
        scores = torch.tensor([7.0, 8.0, 9.0])
        scores.grad = torch.tensor(gradient)
        method.gather(scores, 1, scale)
        found.append(scores.tolist())
    assert found[0] == found[1]
    assert found[0][0] > found[0][1]
    assert found[0][2] == 9.0


@pytest.mark.parametrize("name", CUT_METHODS)
def test_a_cut_leaves_exactly_the_share(name):
    small = model("bert")
    METHODS[name].cut(small, uses_of_matrices(small, batches("bert", count=8)), 0.3)
    weights = [small.get_submodule(name).weight for name in encoder_linears(small)]
    assert sum(int(each.count_nonzero()) for each in weights) == count_kept(0.3, sum(each.numel() for each in weights))


def test_the_recipe_takes_methods_that_cut_first():
    assert RECOMMENDED.cuts_first
    assert not RECOMMENDED.only_cuts
    assert RECOMMENDED_FOR_FEW.cuts_first
