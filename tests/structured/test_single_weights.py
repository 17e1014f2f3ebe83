"""Single weights pruned without training: information of single examples, exact zeros, a refit that keeps them."""

from __future__ import annotations

import copy

import torch
from tiny_batches import batches
from torch.nn import functional

from emmental.architectures import encoder_linears
from emmental.modules.binarizer import count_kept
from emmental.modules.weight_information import keep_most, weight_information
from emmental.structured.agreement import agreement, answers
from emmental.structured.refit import masked_solution
from emmental.structured.single_gradients import uses_of_matrices
from emmental.structured.single_weights import prune_weights
from emmental.structured.texts import Material
from emmental.task_heads import task_head


def test_information_is_that_of_one_example_after_another(model, model_type):
    rows = batches(model_type, size=1 if model_type == "deberta-v2" else 4, labels=True)  # its examples share some
    found = weight_information(model, uses_of_matrices(model, rows))
    weights = {name: model.get_submodule(name).weight for name in encoder_linears(model)}
    assert list(found) == list(weights)
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for batch in rows:
        for row in range(len(batch["labels"])):
            example = {name: each[row : row + 1] for name, each in batch.items() if name != "labels"}
            loss = functional.cross_entropy(model(**example).logits, batch["labels"][row : row + 1])
            for name, gradient in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
                total[name] += gradient.square()
    for name, each in total.items():
        torch.testing.assert_close(found[name], each, rtol=2e-3, atol=1e-8, msg=name)


def test_what_stays_is_exact_and_agrees_better_than_without_refit(model, model_type):
    rows = batches(model_type, count=24)
    before = {name: model.get_submodule(name).weight.clone() for name in encoder_linears(model)}
    found = prune_weights(model, Material(rows, rows, rows), 0.5, rungs=2)
    after = [found.model.get_submodule(name).weight for name in before]
    total = sum(weight.numel() for weight in after)
    assert sum(int(weight.count_nonzero()) for weight in after) == count_kept(0.5, total)
    assert all(torch.equal(model.get_submodule(name).weight, weight) for name, weight in before.items())

    bare = prune_bare(model, rows, 0.5)
    assert (
        found.agreement.divergence < agreement(task_head(model), answers(model, rows), answers(bare, rows)).divergence
    )


def prune_bare(model, rows, keep):
    """The same share without refit, in one cut; the model's own weights come back."""
    bare = copy.deepcopy(model)
    keep_most(bare, weight_information(bare, uses_of_matrices(bare, rows)), keep)
    return bare


def test_frozen_parameters_are_no_obstacle(model, model_type):
    rows = batches(model_type, count=4)
    wanted = weight_information(model, uses_of_matrices(model, rows))
    found = weight_information(model, uses_of_matrices(model.requires_grad_(False), rows))
    assert all(torch.equal(found[name], each) for name, each in wanted.items())


def test_masked_solution_is_that_of_each_row():
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(60, 9, generator=generator, dtype=torch.float64) * torch.logspace(-2, 1, 9)
    gram = given.T @ given + torch.eye(9)
    moment = torch.randn(5, 9, generator=generator, dtype=torch.float64) * gram.diagonal()
    mask = torch.rand(5, 9, generator=generator) < 0.5
    mask[0], moment[1] = False, 0
    found = masked_solution(gram, moment, mask)
    for row in range(5):
        kept = mask[row]
        wanted = torch.linalg.solve(gram[kept][:, kept], moment[row, kept])
        torch.testing.assert_close(found[row, kept], wanted, rtol=1e-4, atol=1e-5)
        assert not found[row, ~kept].any()


def test_a_layer_that_hands_on_nothing_is_left_alone():
    assert not masked_solution(torch.zeros(3, 3), torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)).any()
