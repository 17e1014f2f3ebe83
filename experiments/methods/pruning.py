"""Masks of a stack of models: when each method ranks; surgery and refit, which also change weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.methods.rankings import METHODS, BrainSurgeon, Ranking
from experiments.methods.rows import Rows
from experiments.methods.stack import MATRICES, Stack

BEGIN, END, EVERY = 0.1, 0.7, 10
"""Parts of the updates at which the share begins and ends to fall; number of updates between two rankings."""
INFORMING, REFITTED, RIDGE, ITERATIONS = 1024, 512, 0.01, 100
REFIT = "fisher, refit"


@dataclass(frozen=True)
class Plan:
    """One pruned model: how it is ranked, the share that stays, and its seed."""

    method: str
    keep: float
    seed: int


class Pruning:
    """Masks (M, N) of all models of a stack; models of one method are neighbours."""

    def __init__(self, stack: Stack, dense: Stack, plans: Sequence[Plan], rows: Rows, updates: int) -> None:
        """`dense` holds the model of each seed that the pruned ones start from; `rows` are training rows."""
        self._stack, self._dense, self._plans, self._rows, self._updates = stack, dense, plans, rows, updates
        self.mask = torch.ones_like(stack.weights, requires_grad=False)
        methods = list(dict.fromkeys(plan.method for plan in plans))
        self._parts = {method: [i for i, plan in enumerate(plans) if plan.method == method] for method in methods}
        weights = stack.weights.detach()
        self._methods = {m: METHODS[m](weights[_span(part)], stack.sizes) for m, part in self._parts.items()}

    @torch.no_grad()
    def renew(self, update: int) -> None:
        """Update the masks of the methods that rank before this update."""
        begin, end = int(BEGIN * self._updates), int(END * self._updates)
        for name, part in self._parts.items():
            method = self._methods[name]
            if isinstance(method, BrainSurgeon):
                step, rest = divmod(update - begin, max(1, (end - begin) // method.steps))
                if rest == 0 and 0 <= step < method.steps:
                    progress = BEGIN + (END - BEGIN) * (step + 1) / method.steps
                    for number in part:
                        self._surgery(method, number, share_at(progress, self._plans[number].keep))
            elif isinstance(method, Ranking) and update % EVERY == 0 and self._ranks(name, update):
                shares = [share_at(update / self._updates, self._plans[number].keep) for number in part]
                method.mask(self._stack.weights[_span(part)], self.mask[_span(part)], shares)
            if name == REFIT and update == end + EVERY + 1:
                for number in part:
                    self._refit(number)

    def _ranks(self, name: str, update: int) -> bool:
        last = END * self._updates + EVERY if name == REFIT else self._updates
        return BEGIN * self._updates <= update <= last

    def observe(self, gradients: Tensor, rate: float) -> None:
        """Let the methods see the gradients (M, N) of an update."""
        for name, part in self._parts.items():
            span = _span(part)
            self._methods[name].observe(self._stack.weights.detach()[span], gradients[span], rate)

    def layers(self, number: int) -> list[float]:
        """Share of each layer's weights that stays, of one model."""
        each = self.mask[number].view(self._stack.config.num_hidden_layers, -1).mean(1)
        return [round(share, 4) for share in each.tolist()]

    def _surgery(self, surgeon: BrainSurgeon, number: int, share: float) -> None:
        weights, mask = self._stack.weights.data[number], self.mask[number]
        surgeon.prune(weights, mask, share, self._row_gradients(number))

    def _row_gradients(self, number: int) -> Iterator[Tensor]:
        """Gradients (R, N) of the log-likelihood of single training rows: one copy of the model for each."""
        lengths, device = self._rows.lengths, self.mask.device
        rows = np.random.default_rng(self._plans[number].seed).permutation(len(lengths))[:INFORMING]
        at_once = 64 if device.type == "cuda" else 4
        for some in np.array_split(rows[np.argsort(lengths[rows])], -(-len(rows) // at_once)):
            copies = self._stack.taken([number] * len(some), list(range(len(some))))
            product = (copies.weights.detach() * self.mask[number]).requires_grad_()
            labels = self._rows.labels[torch.as_tensor(some, device=device)]
            with torch.enable_grad(), torch.autocast(device.type, torch.bfloat16):
                logits = copies.logits(self._rows.batch(some[:, None]), product)
                loss = F.cross_entropy(logits[:, 0], labels, reduction="sum")
            yield torch.autograd.grad(loss, product)[0]

    def _refit(self, number: int) -> None:
        """Change the weights left in every matrix, layer after layer, so that its output is near the dense model's."""
        seed, mask = self._plans[number].seed, self.mask[number]
        own, dense = self._stack.taken([number], [0]), self._dense.taken([seed], [0])
        drawn = np.random.default_rng(seed).permutation(len(self._rows.lengths))[:REFITTED]
        rows = drawn[np.argsort(self._rows.lengths[drawn])]
        wanted = _inputs_of_matrices(dense, dense.weights.detach(), self._rows, rows)
        given: dict[int, Tensor] = {}
        for matrix in range(len(own.sizes)):
            if matrix % len(MATRICES) not in (1, 2):  # query, key and value have one input
                given = _inputs_of_matrices(own, own.weights.detach() * mask, self._rows, rows)
            y = wanted[matrix] @ dense.matrix(matrix).T + dense.bias(matrix) - own.bias(matrix)
            part, target = own.matrix(matrix, mask[None]), own.matrix(matrix)
            target.copy_(masked_least_squares(given[matrix], y, target * part, part))
        self._stack.weights.data[number] = own.weights.data[0]


def masked_least_squares(x: Tensor, y: Tensor, before: Tensor, mask: Tensor) -> Tensor:
    """The matrix W (outputs, inputs), zero outside the mask, with X W' nearest to Y; a ridge pulls it to `before`.

    Every row has its own zeros, so conjugate gradients solve all rows at once.
    """
    gram = x.T @ x
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    found = before.clone()
    residual = (y.T @ x - before @ (x.T @ x)) * mask
    direction, norm = residual.clone(), residual.square().sum(1, keepdim=True)
    for _ in range(ITERATIONS):
        product = (direction @ gram) * mask
        step = norm / (direction * product).sum(1, keepdim=True).clamp_min(1e-30)
        found += step * direction
        residual -= step * product
        earlier, norm = norm, residual.square().sum(1, keepdim=True)
        direction = residual + norm / earlier.clamp_min(1e-30) * direction
    return found


def share_at(progress: float, keep: float) -> float:
    """Share of the weights that stays after a part of the updates: a cubic that is flat at its end."""
    if progress <= BEGIN:
        return 1.0
    left = max(0.0, 1 - (progress - BEGIN) / (END - BEGIN))
    return keep + (1 - keep) * left**3


def _span(part: Sequence[int]) -> slice:
    return slice(part[0], part[-1] + 1)


def _inputs_of_matrices(stack: Stack, product: Tensor, rows: Rows, which: np.ndarray) -> dict[int, Tensor]:
    """Number of a matrix -> what goes into it, float32 (tokens, columns), in a stack of one model."""
    found: dict[int, list[Tensor]] = {}
    for start in range(0, len(which), 64):
        batch = rows.batch(which[None, start : start + 64])
        inside = batch.mask[0].flatten().bool()

        def see(matrix: int, x: Tensor, inside: Tensor = inside) -> None:
            found.setdefault(matrix, []).append(x[0, inside].float())

        with torch.autocast(product.device.type, torch.bfloat16):
            stack.logits(batch, product, see=see)
    return {matrix: torch.cat(parts) for matrix, parts in found.items()}
