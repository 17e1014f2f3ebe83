"""Fisher information of gates: how much the model's answers depend on a head or neuron."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from emmental.modules.weight_information import Reduce
from emmental.structured.gates import all_open, gated
from emmental.structured.stepping import evaluating, inputs_on_device
from emmental.task_heads import TaskHead, task_head


def fisher_information(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    reduce: Reduce | None = None,
    head: TaskHead | None = None,
) -> list[Tensor]:
    """Sum over examples of the squared gradient with respect to the gates of that example.

    With `labels` in a batch, it is the gradient of the example's loss. Without labels, it is the expectation over the
    model's own distribution: for one label, the sum over classes of p_c (d log p_c / dz)^2. `emmental.task_heads` has
    the other kinds of answers. Dropout is off. (Kwon et al. 2022, arXiv 2204.09656, section 3.2: the diagonal of
    the empirical Fisher information; here of single examples, and of any distribution.)

    Args:
        model: it is left as it was.
        batches: inputs of the model, with `labels` or without.
        reduce: sums a float64 tensor over all processes and returns it; each process then has its own batches.
        head: what the model answers; by default the head of its class.

    Returns:
        For each of `sublayers(model)` a float64 tensor (count,).
    """
    total: list[Tensor] | None = None
    head = head or task_head(model)
    with evaluating(model):
        for batch in batches:
            inputs = inputs_on_device(batch, model)
            gates = [gate.requires_grad_() for gate in all_open(model, len(inputs["input_ids"]))]
            total = total or [torch.zeros(gate.shape[1], dtype=torch.float64, device=gate.device) for gate in gates]
            with torch.enable_grad(), gated(model, gates):
                scalars = list(head.derivatives(head.values(model(**inputs), batch), batch))
            for number, height in enumerate(scalars, 1):
                gradients = torch.autograd.grad(height, gates, retain_graph=number < len(scalars))
                for each, gradient in zip(total, gradients, strict=True):
                    each += gradient.double().square().sum(0)
    assert total is not None, "no batches"
    if reduce is None:
        return total
    summed = reduce(torch.cat(total))
    return list(summed.split([len(each) for each in total]))
