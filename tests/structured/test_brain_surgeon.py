"""The optimal brain surgeon: blocks of information, the weights that stay, and how they make up for the others."""

from __future__ import annotations

import torch
from tiny_batches import batches
from torch.nn import functional

from emmental.architectures import encoder_linears
from emmental.methods import method_of
from emmental.methods.brain_surgeon import BLOCK
from emmental.modules.binarizer import count_kept
from emmental.modules.brain_surgeon import RIDGE, _inverses, _remove
from emmental.structured.single_gradients import uses_of_matrices
from emmental.structured.single_weights import prune_weights
from emmental.structured.texts import Material


def test_blocks_are_inverses_of_sums_over_examples(model, model_type):
    rows = batches(model_type, size=1 if model_type == "deberta-v2" else 4, labels=True)  # its examples share some
    found = _inverses(uses_of_matrices(model, rows), None)
    weights = {name: model.get_submodule(name).weight for name in encoder_linears(model)}
    total = {name: torch.zeros(-(-each.numel() // BLOCK), BLOCK, BLOCK) for name, each in weights.items()}
    for batch in rows:
        for row in range(len(batch["labels"])):
            example = {name: each[row : row + 1] for name, each in batch.items() if name != "labels"}
            loss = functional.cross_entropy(model(**example).logits, batch["labels"][row : row + 1])
            for name, gradient in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
                blocks = functional.pad(gradient.flatten(), (0, -gradient.numel() % BLOCK)).view(-1, BLOCK)
                total[name] += blocks[:, :, None] * blocks[:, None]
    ridge = RIDGE * torch.cat([each.diagonal(dim1=1, dim2=2).flatten() for each in total.values()]).mean()
    assert list(found) == list(weights)
    for name, each in total.items():
        wanted = torch.linalg.inv((each + ridge * torch.eye(BLOCK)).double()).float()
        torch.testing.assert_close(found[name], wanted, rtol=0, atol=1e-2 * float(wanted.abs().max()), msg=name)


def test_processes_add_up_to_one(model, model_type):
    rows, sums = batches(model_type, size=4, labels=True), []
    for own in (rows[::2], rows[1::2]):
        kept: list[torch.Tensor] = []
        _inverses(uses_of_matrices(model, own), lambda total, kept=kept: kept.append(total) or total)
        sums.append(kept)
    together = iter([first + second for first, second in zip(*sums, strict=True)])
    found = _inverses(uses_of_matrices(model, rows[::2]), lambda _: next(together))
    for name, each in _inverses(uses_of_matrices(model, rows), None).items():
        torch.testing.assert_close(found[name], each, rtol=0, atol=1e-2 * float(each.abs().max()), msg=name)


def test_the_weights_that_stay_make_up_for_the_others():
    """Of all weights with these zeros, the result has the smallest (w - w0)^T H (w - w0)."""
    torch.manual_seed(0)
    factor = torch.randn(2, BLOCK, BLOCK, dtype=torch.float64)
    curvature = factor @ factor.mT + torch.eye(BLOCK)
    before = torch.randn(10, 8, dtype=torch.float64)  # the second block is filled up with 20 zeros
    kept = torch.rand(before.numel()) < 0.4
    after = before.float().clone()
    _remove(after, kept, torch.linalg.inv(curvature).float())
    assert torch.equal(after.flatten() != 0, kept)
    for block, rows in enumerate((slice(0, BLOCK), slice(BLOCK, None))):
        stays, start = kept[rows], before.flatten()[rows]
        hessian = curvature[block][: len(start), : len(start)]
        if len(start) < BLOCK:  # the weights that fill up the block are free: they give way
            rest = curvature[block][len(start) :]
            hessian = hessian - rest[:, : len(start)].T @ torch.linalg.solve(
                rest[:, len(start) :], rest[:, : len(start)]
            )
        best = start[stays] + torch.linalg.solve(hessian[stays][:, stays], hessian[stays][:, ~stays] @ start[~stays])
        torch.testing.assert_close(after.flatten()[rows][stays].double(), best, rtol=1e-3, atol=1e-3)


def test_what_stays_is_exact(model, model_type):
    rows = batches(model_type, count=24)
    found = prune_weights(model, Material(rows, rows, rows), 0.3, rungs=2, method=method_of("brain_surgeon"))
    after = [found.model.get_submodule(name).weight for name in encoder_linears(model)]
    assert sum(int(weight.count_nonzero()) for weight in after) == count_kept(0.3, sum(w.numel() for w in after))
