"""Masking for language models: which tokens are hidden, and what replaces them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from emmental.data.padding import pad_rows
from emmental.teaching.losses import IGNORED


def token_probabilities(counts: np.ndarray | Tensor, smoothing: float, special_ids: Iterable[int]) -> Tensor:
    """How likely each token is to be masked, up to a factor: max(count, 1)^-smoothing; 0 for special tokens.

    Rare tokens are masked more often (Lample and Conneau 2019, arXiv 1901.07291).

    Args:
        counts: (V,) occurrences of each token id in the corpus.
        smoothing: 0 masks all tokens equally often.
        special_ids: never masked.

    Returns:
        (V,) float32.
    """
    probabilities = torch.as_tensor(np.maximum(np.asarray(counts), 1)).double().pow(-smoothing).float()
    probabilities[sorted(set(special_ids))] = 0.0
    return probabilities


@dataclass(frozen=True)
class Masking:
    """How tokens are hidden.

    Attributes:
        probabilities: (V,) float, see `token_probabilities`.
        proportion: share of the tokens to hide, in [0, 1].
        replacement: shares of the hidden tokens that become the mask token, stay, and become a random token (uniform
            over the tokens with a probability above 0).
        mask_id: the mask token.
    """

    probabilities: Tensor
    proportion: float
    replacement: tuple[float, float, float]
    mask_id: int


def mask_tokens(
    token_ids: Tensor, attended: Tensor, masking: Masking, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Hide ceil(proportion * number of tokens) tokens of a batch, drawn without replacement.

    Tokens of probability 0 are never drawn. If there are too few others, all of them are hidden.

    Args:
        token_ids: (B, T) int64.
        attended: (B, T) bool, False at padding, which is neither counted nor drawn.
        masking: how to draw tokens, and how to replace them.
        generator: random generator on the CPU.

    Returns:
        The token ids with the hidden ones replaced, and the labels: the hidden tokens, `IGNORED` elsewhere. (B, T).
    """
    weights = (masking.probabilities[token_ids] * attended).double().flatten()
    # 0.07 * 100 is above 7 in floating point.
    wanted = math.ceil(masking.proportion * int(attended.sum()) - 1e-9)
    count = min(wanted, int((weights > 0).sum()))
    masked, labels = token_ids.clone(), torch.full_like(token_ids, IGNORED)
    if count == 0:
        return masked, labels
    drawn = torch.multinomial(weights, count, replacement=False, generator=generator)
    true_ids = token_ids.flatten()[drawn]
    ordinary = masking.probabilities.nonzero().squeeze(1)
    random_ids = ordinary[torch.randint(len(ordinary), (count,), generator=generator)]
    shares = torch.tensor(masking.replacement, dtype=torch.float64)
    kind = torch.multinomial(shares, count, replacement=True, generator=generator)
    options = torch.stack([torch.full_like(true_ids, masking.mask_id), true_ids, random_ids])
    masked.view(-1)[drawn] = options.gather(0, kind[None]).squeeze(0)
    labels.view(-1)[drawn] = true_ids
    return masked, labels


class LmBatchMaker:
    """Makes inputs and labels of a language model from padded sequences.

    Args:
        pad_token_id: the token that pads sequences.
        pad_to_multiple_of: lengths are rounded up to a multiple of it; no sequence is dropped.
        masking: for a masked language model; None for a causal one.
        seed: seed of the masking.
    """

    def __init__(self, pad_token_id: int, pad_to_multiple_of: int, masking: Masking | None, seed: int) -> None:
        self.pad_token_id = pad_token_id
        self.pad_to_multiple_of = pad_to_multiple_of
        self.masking = masking
        self.seed = seed
        self._generator = torch.Generator().manual_seed(seed)

    def rounded(self, token_ids: Tensor) -> Tensor:
        """Token ids (B, T) padded to a multiple of `pad_to_multiple_of`."""
        rows, width = token_ids.shape
        lengths = np.full(rows, width)
        padded, _ = pad_rows(
            token_ids.flatten().numpy(), np.arange(rows) * width, lengths, self.pad_token_id, self.pad_to_multiple_of
        )
        return torch.from_numpy(padded)

    def masked(self, token_ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids (B, T) with some masked, attention mask (bool) and labels; (B, T') each."""
        assert self.masking is not None, "a causal language model masks nothing"
        token_ids = self.rounded(token_ids)
        attended = torch.arange(token_ids.shape[1]) < lengths[:, None]
        masked, labels = mask_tokens(token_ids, attended, self.masking, self._generator)
        return masked, attended, labels

    def causal(self, token_ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids (B, T), attention mask (bool) and, as labels, the tokens; (B, T') each."""
        token_ids = self.rounded(token_ids)
        attended = torch.arange(token_ids.shape[1]) < lengths[:, None]
        return token_ids, attended, token_ids.masked_fill(~attended, IGNORED)

    def share(self, batch: dict[str, Tensor], epoch: int, rank: int, world_size: int) -> list[Tensor | None]:
        """One rank's part of a global batch. All ranks mask the global batch in the same way, whatever their number.

        The masking depends on the seed, the epoch and the batch's first row, which no other batch begins with.

        Args:
            batch: `input_ids` (B, T), `lengths` (B,) and `index` (B,) of a `CorpusDataset`.
            epoch: number of the pass over the data.
            rank: takes the rows from rank * ceil(B / world_size) on.
            world_size: number of ranks. If it does not divide B, repeated rows that do not count fill the last ones.

        Returns:
            Token ids, attention mask, labels, (b, T) each, and which rows count, (b,) bool; None if all do.
        """
        number = np.random.SeedSequence([self.seed, epoch, int(batch["index"][0])]).generate_state(1, np.uint64)
        self._generator.manual_seed(int(number[0] >> 1))
        ask = self.causal if self.masking is None else self.masked
        inputs = ask(batch["input_ids"], batch["lengths"])
        size = len(batch["lengths"])
        if world_size == 1:
            return [*inputs, None]
        each = -(-size // world_size)
        rows = torch.arange(rank * each, (rank + 1) * each)
        return [*(value[rows % size] for value in inputs), rows < size]
