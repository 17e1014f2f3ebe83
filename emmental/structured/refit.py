"""Least squares: the remaining weights of each sublayer make up for those that were cut.

From the bottom to the top, the attention output and the down projection get the weights and bias with which the pruned
model's residual stream comes closest to the dense model's. So each sublayer also corrects what those below it changed.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from emmental.architectures import DOWN, OUTPUT, architecture_of, encoder_layers
from emmental.modules.weight_information import Reduce
from emmental.structured.agreement import answers
from emmental.structured.stepping import LayerByLayer, evaluating, inputs_on_device
from emmental.task_heads import TaskHead, task_head

RIDGE = 0.01
"""The ridge, in units of the mean diagonal of c^T c."""
_SMALLEST_TOKEN_WEIGHT = 1e-3
_ITERATIONS = 50


class NormalEquations:
    """Sums for the weighted least squares of t on c, with an intercept, in float64, added up batch by batch."""

    def __init__(self, columns: int, outputs: int, device: torch.device | str = "cpu") -> None:
        sums = torch.zeros(columns + 1, columns + 1 + outputs, dtype=torch.float64, device=device)
        self._sums, self._columns = sums, columns  # of (c, 1)^T (c, 1, t)

    def add(self, given: Tensor, wanted: Tensor, weights: Tensor | None = None) -> None:
        """Add rows: given (N, columns), wanted (N, outputs), weights (N,), floating point."""
        given, wanted = given.float(), wanted.float()
        left = torch.cat((given, given.new_ones(len(given), 1)), 1)
        right = torch.cat((left, wanted), 1)
        if weights is not None:
            left = left * weights.to(left.dtype)[:, None]
        self._sums += (left.T @ right).double()

    def reduce(self, reduce: Reduce) -> None:
        """Sum over all processes."""
        self._sums = reduce(self._sums)

    def solve(self, ridge: float, mask: Tensor | None = None, intercept: bool = True) -> tuple[Tensor, Tensor]:
        """W (outputs, columns) and b (outputs,), float64, that minimise
        the sum of weight * |W c + b - t|^2, plus ridge * (mean of the diagonal of c^T c) * |W|^2.

        With a mask, bool (outputs, columns), W is zero outside it. Without an intercept, b is zero.
        """
        columns = self._columns
        total = self._sums[columns, columns]
        mean = self._sums[columns] / total if intercept else torch.zeros_like(self._sums[columns])  # of c, 1 and t
        centred = self._sums[:columns] - total * mean[:columns, None] * mean
        gram, moment = centred[:, :columns], centred[:, columns + 1 :]
        if columns == 0:
            return moment.T, mean[columns + 1 :]
        strength = ridge * self._sums.diagonal()[:columns].mean()
        # Columns that are constant, or copies of others, make the matrix singular. The floor decides only those.
        floor = 1e-12 * self._sums.diagonal()[:columns].max() + 1e-300
        gram = gram + (strength + floor) * torch.eye(columns, dtype=gram.dtype, device=gram.device)
        weight = torch.linalg.solve(gram, moment).T if mask is None else masked_solution(gram, moment.T, mask)
        return weight, mean[columns + 1 :] - weight @ mean[:columns]


def masked_solution(gram: Tensor, moment: Tensor, mask: Tensor) -> Tensor:
    """W, zero outside the mask, with (W gram - moment) zero inside it.

    Each row has its own mask, so conjugate gradients, scaled by the diagonal, solve all rows at once, in float32.

    Args:
        gram: (columns, columns), positive definite.
        moment: (outputs, columns).
        mask: bool (outputs, columns).

    Returns:
        float64 (outputs, columns).
    """
    size = gram.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)  # 0 if all inputs are 0
    gram, residual = (gram / size).float(), (moment / size).float() * mask
    scale = 1 / gram.diagonal().clamp_min(torch.finfo(torch.float32).eps)
    found = torch.zeros_like(residual)
    direction = residual * scale
    height = (residual * direction).sum(1, keepdim=True)
    solved = 1e-12 * height
    for _ in range(_ITERATIONS):
        product = (direction @ gram) * mask
        # Solved rows are not changed: their residual is rounding, which further steps would magnify.
        step = torch.where(height > solved, height / (direction * product).sum(1, keepdim=True), 0.0)
        found += step * direction
        residual -= step * product
        earlier, height = height, (residual.square() * scale).sum(1, keepdim=True)
        direction = residual * scale + torch.where(height > solved, height / earlier, 0.0) * direction
    return found.double()


def refit(
    dense: nn.Module,
    pruned: nn.Module,
    batches: Sequence[Mapping[str, Tensor]],
    reduce: Reduce | None = None,
    keep_zeros: bool = False,
    head: TaskHead | None = None,
) -> None:
    """Refit the attention outputs and down projections of `pruned`, in place, to the states of `dense`.

    With x the dense and y the pruned model's residual stream before a sublayer, o the dense sublayer's output and c
    what the pruned model's open heads (neurons) give: W, b such that W c + b is closest to o + x - y over all tokens.
    The ridge pulls towards the current weights, so weights that need no change stay. If the head reads only the
    first token, the other tokens of the last layer have almost no weight. Dropout is off.

    Args:
        dense: the model to approximate.
        pruned: a model with the same layers, and fewer heads and neurons.
        batches: inputs of the models, used several times; `labels` are not read.
        reduce: sums a float64 tensor over all processes and returns it.
        keep_zeros: weights of exactly zero stay zero, for pruned single weights.
        head: what the models answer; by default the head of their class.
    """
    only_first = (head or task_head(dense)).first_token_only
    with evaluating(dense), evaluating(pruned), torch.no_grad():
        fit = _Refit(dense, pruned, batches, reduce, keep_zeros, only_first)
        if architecture_of(pruned.config).shared:
            fit.shared_layers()
        else:
            fit.layer_after_layer()


def refit_last(
    dense: nn.Module,
    pruned: nn.Module,
    batches: Sequence[Mapping[str, Tensor]],
    reduce: Reduce | None = None,
    head: TaskHead | None = None,
) -> None:
    """Refit the last linear of `pruned`, in place, so that its answers come closest to those of `dense`.

    This corrects, for the answers only, what the refit of the layers could not correct in the hidden states. A model
    whose answers are its hidden states has no such linear. `reduce` and `head` are as in `refit`.
    """
    head = head or task_head(pruned)
    linear = head.last_linear(pruned)
    if linear is None:
        return
    given: list[Tensor] = []
    handle = linear.register_forward_pre_hook(lambda _, arguments: given.append(arguments[0]))
    try:
        answers(pruned, batches, head)
    finally:
        handle.remove()
    with torch.no_grad():
        problem = _Problem(linear)
        rows = torch.cat([head.rows(each, batch) for each, batch in zip(given, batches, strict=True)])
        problem.add(rows, answers(dense, batches, head).values, rows.new_ones(len(rows)))
        problem.solve(reduce)


def add_biases(model: nn.Module) -> nn.Module:
    """The model itself if its attention outputs and down projections have biases, else a copy with biases of zero."""
    roles = architecture_of(model.config).roles
    names = [f"{layer.name}.{roles[role]}" for layer in encoder_layers(model) for role in (OUTPUT, DOWN)]
    if all(model.get_submodule(name).bias is not None for name in names):
        return model
    model = copy.deepcopy(model)
    for linear in map(model.get_submodule, names):
        if linear.bias is None:
            linear.bias = nn.Parameter(linear.weight.new_zeros(linear.out_features))
    return model


class _Refit:
    def __init__(
        self,
        dense: nn.Module,
        pruned: nn.Module,
        batches: Sequence[Mapping[str, Tensor]],
        reduce: Reduce | None,
        keep_zeros: bool,
        only_first: bool,
    ) -> None:
        self.keep_zeros, self.only_first = keep_zeros, only_first
        self.batches = [inputs_on_device(batch, pruned) for batch in batches]
        self.dense, self.pruned = LayerByLayer(dense, self.batches[0]), LayerByLayer(pruned, self.batches[0])
        self.reduce = reduce
        self.layers, self.roles = encoder_layers(pruned), architecture_of(pruned.config).roles

    def layer_after_layer(self) -> None:
        """Refit layer after layer. The states of both models are computed once."""
        count = len(self.batches)
        dense_states: list[Tensor | None] = [None] * count
        pruned_states: list[Tensor | None] = [None] * count
        after_attention, after_feed_forward = list(dense_states), list(dense_states)
        for use in range(len(self.pruned)):
            last = use + 1 == len(self.pruned)
            weights = self._token_weights(only_first=last and self.only_first)
            for index, batch in enumerate(self.batches):
                dense_states[index], after_attention[index], after_feed_forward[index] = self._dense_sums(
                    batch, use, dense_states[index]
                )
            for role, wanted in ((OUTPUT, after_attention), (DOWN, after_feed_forward)):
                problem = _Problem(self._linear(use, role), self.keep_zeros)
                for row in zip(self.batches, pruned_states, wanted, weights, strict=True):
                    self._add(problem, use, role, *row)
                problem.solve(self.reduce)
            if not last:
                for index, batch in enumerate(self.batches):
                    pruned_states[index] = self.pruned.run(batch, use, pruned_states[index])[0]

    def shared_layers(self) -> None:
        """Fit layers that are used several times to the tokens of all their uses, on the dense model's states."""
        weights = self._token_weights(only_first=False)
        for role in (OUTPUT, DOWN):
            first_uses = {layer: self.pruned.order.index(layer) for layer in sorted(set(self.pruned.order))}
            problems = {layer: _Problem(self._linear(use, role), self.keep_zeros) for layer, use in first_uses.items()}
            for batch, weight in zip(self.batches, weights, strict=True):
                state = None
                for use, layer in enumerate(self.pruned.order):
                    output, *wanted = self._dense_sums(batch, use, state)
                    self._add(problems[layer], use, role, batch, state, wanted[role == DOWN], weight)
                    state = output
            for problem in problems.values():
                problem.solve(self.reduce)

    def _dense_sums(self, batch: Mapping[str, Tensor], use: int, state: Tensor | None) -> tuple[Tensor, ...]:
        """(the dense layer's output, its residual stream after the attention, and after the feed-forward)"""
        attention_norm, feed_forward_norm = self.dense.norms(use)
        if self.dense.pre_norm:
            output, _, (after_attention,) = self.dense.run(batch, use, state, (feed_forward_norm,))
            return output, after_attention, output
        output, _, sums = self.dense.run(batch, use, state, (attention_norm, feed_forward_norm))
        return output, *sums

    def _linear(self, use: int, role: str) -> nn.Module:
        return self.layers[self.pruned.order[use]].module.get_submodule(self.roles[role])

    def _add(
        self,
        problem: _Problem,
        use: int,
        role: str,
        batch: Mapping[str, Tensor],
        state: Tensor | None,
        wanted: Tensor,
        weights: Tensor,
    ) -> None:
        given, stream = self._given(batch, use, role, state, problem.linear)
        kept = batch["attention_mask"].bool()
        problem.add(given[kept], wanted[kept].float() - stream[kept].float(), weights[kept])

    def _given(
        self, batch: Mapping[str, Tensor], use: int, role: str, state: Tensor | None, linear: nn.Module
    ) -> tuple[Tensor, Tensor]:
        """(c, the residual stream y that it is added to) of the pruned model."""
        if role == OUTPUT:
            _, stream, (given,) = self.pruned.run(batch, use, state, (linear,), stop_at=linear)
            return given, stream
        attention_norm, feed_forward_norm = self.pruned.norms(use)
        if self.pruned.pre_norm:
            _, _, (stream, given) = self.pruned.run(batch, use, state, (feed_forward_norm, linear), stop_at=linear)
            return given, stream
        _, _, (before, given) = self.pruned.run(batch, use, state, (attention_norm, linear), stop_at=linear)
        return given, attention_norm(before)

    def _token_weights(self, only_first: bool) -> list[Tensor]:
        weights = []
        for batch in self.batches:
            each = torch.ones_like(batch["attention_mask"], dtype=torch.float32)
            if only_first:
                each.fill_(_SMALLEST_TOKEN_WEIGHT)
                each[:, 0] = 1.0
            weights.append(each)
        return weights


class _Problem:
    """The least squares of one linear. The solution is the change of its weights and bias."""

    def __init__(self, linear: nn.Module, keep_zeros: bool = False) -> None:
        self.linear, self._keep_zeros = linear, keep_zeros
        weight = getattr(linear, "weight", None)  # a layer without heads or neurons has only its bias
        self.weight = linear.bias.new_zeros(linear.out_features, 0) if weight is None else weight
        self.equations = NormalEquations(self.weight.shape[1], linear.out_features, self.weight.device)

    def add(self, given: Tensor, wanted: Tensor, weights: Tensor) -> None:
        """Add rows: given (N, in), wanted (N, out), weights (N,)."""
        given, bias = given[:, : self.weight.shape[1]].float(), self.linear.bias
        with torch.autocast(given.device.type, enabled=False):
            present = functional.linear(given, self.weight.float(), None if bias is None else bias.float())
            self.equations.add(given, wanted - present, weights)

    def solve(self, reduce: Reduce | None) -> None:
        """Change the linear."""
        if reduce is not None:
            self.equations.reduce(reduce)
        mask, has_bias = self.weight != 0 if self._keep_zeros else None, self.linear.bias is not None
        with torch.autocast(self.weight.device.type, enabled=False):
            change, shift = self.equations.solve(RIDGE, mask, has_bias)
        if has_bias:
            self.linear.bias += shift
        self.weight += change
