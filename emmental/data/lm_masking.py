"""What a masked language model is asked: which tokens are hidden, and what stands in their place."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

IGNORED = -100
"""Label of a position that asks nothing."""


def token_probabilities(counts: np.ndarray | Tensor, smoothing: float, special_ids: Iterable[int]) -> Tensor:
    """How likely each token is to be masked, up to a factor: max(count, 1)^-smoothing; 0 for special tokens.

    Rare tokens are masked more often (Lample and Conneau 2019, arXiv 1901.07291).

    Args:
        counts: (V,) occurrences of each token id in the corpus.
        smoothing: 0 masks all tokens alike.
        special_ids: never masked.

    Returns:
        (V,) float32.
    """
    probabilities = torch.as_tensor(np.maximum(np.asarray(counts), 1)).double().pow(-smoothing).float()
    probabilities[sorted(set(special_ids))] = 0.0
    return probabilities


def mask_tokens(
    token_ids: Tensor,
    attended: Tensor,
    probabilities: Tensor,
    proportion: float,
    replacement: tuple[float, float, float],
    mask_id: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Hide ceil(proportion * number of tokens) tokens of a batch, drawn without replacement.

    Tokens of probability 0 are never drawn; when there are fewer others than that, all others are.

    Args:
        token_ids: (B, T) int64.
        attended: (B, T) bool, False at padding, which neither counts as tokens nor is drawn.
        probabilities: (V,) float, see `token_probabilities`.
        proportion: in [0, 1].
        replacement: shares of the drawn tokens that become the mask token, stay, and become a random token (uniform
            over the tokens of a probability above 0).
        mask_id: the mask token.
        generator: on the CPU.

    Returns:
        The token ids with the hidden ones replaced, and the labels: the hidden tokens, `IGNORED` elsewhere. (B, T).
    """
    weights = (probabilities[token_ids] * attended).double().flatten()
    wanted = math.ceil(proportion * int(attended.sum()) - 1e-9)
    count = min(wanted, int((weights > 0).sum()))
    masked, labels = token_ids.clone(), torch.full_like(token_ids, IGNORED)
    if count == 0:
        return masked, labels
    drawn = torch.multinomial(weights, count, replacement=False, generator=generator)
    true_ids = token_ids.flatten()[drawn]
    ordinary = probabilities.nonzero().squeeze(1)
    random_ids = ordinary[torch.randint(len(ordinary), (count,), generator=generator)]
    kind = torch.multinomial(torch.tensor(replacement).double(), count, replacement=True, generator=generator)
    options = torch.stack([torch.full_like(true_ids, mask_id), true_ids, random_ids])
    masked.view(-1)[drawn] = options.gather(0, kind[None]).squeeze(0)
    labels.view(-1)[drawn] = true_ids
    return masked, labels
