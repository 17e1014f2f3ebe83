"""Task heads whose answers belong to tokens: classes of tokens, answers in a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from emmental.task_heads.head import PAIR, READ, TEXT, Answers, Batch, Figure, TaskHead
from emmental.task_heads.signs import centred
from emmental.tasks.entities import shared_entities


class _OfTokens(TaskHead):
    """What the heads share whose values are those of the tokens that are read."""

    takes_labels, needs_words = False, True

    def values(self, outputs: Any, batch: Batch) -> Tensor:
        return self.rows(self.token_values(outputs), batch).float()

    def token_values(self, outputs: Any) -> Tensor:
        """(B, T, C)."""
        return outputs.logits

    def sizes(self, batch: Batch) -> Tensor:
        return _read(batch).sum(1).cpu()

    def passes_for(self, values: Tensor) -> int:
        return self.passes

    def rows(self, given: Tensor, batch: Batch) -> Tensor:
        return given[_read(batch).to(given.device)]


class Tokens(_OfTokens):
    """A class for every token: entities, personal data."""

    title = "token classifiers"
    suffix, pipeline, shapes = "ForTokenClassification", "token-classification", (TEXT,)
    unit = "tokens of"

    def score_factors(self, values: Tensor, signs: Tensor, batch: Batch) -> Tensor:
        """See `centred`, with the distribution of each token."""
        shares = values.softmax(1)
        return centred(shares, signs, lambda each: each.sum(1, keepdim=True))

    def figures(self, dense: Answers, pruned: Answers, groups: Tensor | None = None) -> list[Figure]:
        """See `TaskHead.figures`."""
        tags = [
            [[self.names[index] for index in text.argmax(1).tolist()] for text in each.of_texts()]
            for each in (dense, pruned)
        ]
        found = self.agreement(self.sums(dense, pruned))
        spans = 1 - shared_entities(zip(*tags, strict=True))
        return [
            Figure("tokens that change", found.changed, True),
            Figure("spans that change", spans, True),
            Figure("KL", found.divergence),
        ]


class Spans(_OfTokens):
    """Where an answer begins and ends: question answering."""

    title = "question-answering models"
    suffix, pipeline, shapes = "ForQuestionAnswering", "question-answering", (PAIR,)

    def read(self, sequences: Sequence[int | None]) -> list[int]:
        """The context, which is the second string, and the first token, which stands for no answer."""
        return [int(place == 0 or number == 1) for place, number in enumerate(sequences)]

    def token_values(self, outputs: Any) -> Tensor:
        """(B, T, 2): start and end."""
        return torch.stack((outputs.start_logits, outputs.end_logits), -1)

    def score_factors(self, values: Tensor, signs: Tensor, batch: Batch) -> Tensor:
        """See `centred`, with the distributions of the start and of the end over the tokens of a text."""
        sizes = self.sizes(batch).tolist()
        shares = torch.cat([text.softmax(0) for text in values.split(sizes)])
        return centred(
            shares, signs, lambda each: torch.cat([t.sum(0, keepdim=True).expand_as(t) for t in each.split(sizes)])
        )

    def changed(self, dense: Answers, pruned: Answers) -> Tensor:
        """Texts with another start or end."""
        pairs = zip(dense.of_texts(), pruned.of_texts(), strict=True)
        return torch.stack([(one.argmax(0) != other.argmax(0)).any() for one, other in pairs])

    def divergences(self, dense: Tensor, pruned: Tensor, sizes: Tensor) -> Tensor:
        """(N,): KL of the start plus that of the end."""
        pairs = zip(dense.split(sizes.tolist()), pruned.split(sizes.tolist()), strict=True)
        return torch.stack([super(Spans, self).divergences(one.T, other.T, sizes).sum() for one, other in pairs])


def _read(batch: Batch) -> Tensor:
    return batch.get(READ, batch["attention_mask"]).bool()
