"""Vectors whose products with the answers have the information as their squared gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

MOST_PASSES = 8
"""Most backward passes for one batch without labels."""
MOST_SIGNS = 64
"""Most passes that random signs are made for."""


def fisher_factors(logits: Tensor, most: int = MOST_PASSES) -> Tensor:
    """(B, C, K) float: diag(p) - p p^T = F F^T for each text, as K = C - 1 orthogonal columns (the largest ones).

    The expectation of (d log p_c / dz)^2 over the classes c is J^T (diag(p) - p p^T) J, with J the gradient of the
    logits: K backward passes are enough; one for each class would be C.
    """
    shares = torch.softmax(logits.double(), 1)
    if shares.shape[1] == 2:
        half = shares.prod(1).sqrt()
        return torch.stack((half, -half), 1)[:, :, None].to(logits.dtype)
    values, vectors = torch.linalg.eigh(torch.diag_embed(shares) - shares[:, :, None] * shares[:, None])
    most = min(shares.shape[1] - 1, most)
    factors = vectors[:, :, -most:] * values[:, None, -most:].clamp_min(0).sqrt()
    return factors.to(logits.dtype)


def centred(shares: Tensor, signs: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
    """U = a - p sum(a), with a = sign * sqrt(p): over all signs, the mean of u u^T is diag(p) - p p^T.

    Args:
        shares: (R, C), p of one or more distributions.
        signs: (R, C).
        total: sums over each distribution, and gives the sum to each of its members.
    """
    drawn = signs * shares.sqrt()
    return drawn - shares * total(drawn)


def random_signs(shape: Sequence[int], passes: int, seed: int) -> Tensor:
    """(K, *shape) of +1 and -1 for K passes: the power of two from `passes` on if that is at most `MOST_SIGNS`.

    They are rows of a Hadamard matrix whose columns are repeated along the flattened shape, and flipped by random
    signs. So two places disturb each other only if their distance is a multiple of K.
    """
    rows = torch.ones(1, 1)
    while len(rows) < min(passes, MOST_SIGNS):
        rows = torch.cat((torch.cat((rows, rows), 1), torch.cat((rows, -rows), 1)))
    places = math.prod(shape)
    flips = 2.0 * torch.randint(2, (places,), generator=torch.Generator().manual_seed(seed)) - 1
    return (rows[:, torch.arange(places) % len(rows)] * flips).view(len(rows), *shape)
