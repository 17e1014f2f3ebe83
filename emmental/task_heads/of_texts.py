"""Task heads with one answer a text: classes, several labels, scores, embeddings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from emmental.task_heads.head import GROUP, PAIR, TEXT, Agreement, Answers, Batch, Figure, TaskHead
from emmental.task_heads.signs import MOST_PASSES, fisher_factors
from emmental.tasks.metrics import correlations, ranking_figures

Pool = Callable[[Tensor, Tensor], Tensor]
"""(hidden states (B, T, H), attention mask (B, T)) -> embeddings (B, E)."""


class Classes(TaskHead):
    """One of several classes for a text."""

    title = "sequence classifiers"

    def derivatives(self, values: Tensor, batch: Batch) -> Iterator[Tensor]:
        """See `TaskHead.derivatives`: C - 1 passes are exact; with more than nine classes 8 come close."""
        if "labels" in batch:
            yield from super().derivatives(values, batch)
            return
        factors = fisher_factors(values.detach(), self.passes)
        for index in range(factors.shape[2]):
            yield (factors[:, :, index] * values).sum()

    def labelled_loss(self, values: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy."""
        return functional.cross_entropy(values, labels, reduction="sum")


class SeveralLabels(TaskHead):
    """Any number of labels for a text, each with a probability of its own."""

    title = "models of several labels"

    @classmethod
    def accepts(cls, model: nn.Module) -> bool:
        """By the problem type in the configuration."""
        return super().accepts(model) and model.config.problem_type == "multi_label_classification"

    def score_factors(self, values: Tensor, signs: Tensor, batch: Batch) -> Tensor:
        """Each label has the information p (1 - p)."""
        return signs * (values.sigmoid() * (-values).sigmoid()).sqrt()

    def labelled_loss(self, values: Tensor, labels: Tensor) -> Tensor:
        """Binary cross entropy."""
        return functional.binary_cross_entropy_with_logits(values, labels.float(), reduction="sum")

    def changed(self, dense: Answers, pruned: Answers) -> Tensor:
        """Texts with any change."""
        return ((dense.values > 0) != (pruned.values > 0)).any(1)

    def divergences(self, dense: Tensor, pruned: Tensor, sizes: Tensor) -> Tensor:
        """Sum over labels of the KL of the Bernoulli distributions."""
        p = dense.sigmoid()
        yes = functional.logsigmoid(dense) - functional.logsigmoid(pruned)
        no = functional.logsigmoid(-dense) - functional.logsigmoid(-pruned)
        return (p * yes + (1 - p) * no).sum(1)

    def figures(self, dense: Answers, pruned: Answers, groups: Tensor | None = None) -> list[Figure]:
        """See `TaskHead.figures`."""
        labels = ((dense.values > 0) != (pruned.values > 0)).double().mean()
        found = self.agreement(self.sums(dense, pruned))
        return [
            Figure("texts with a changed label", found.changed, True),
            Figure("labels that change", float(labels), True),
            Figure("KL", found.divergence),
        ]

    def metric(self, answers: Answers, labels: Sequence[Any]) -> Figure:
        """Micro F1 at a threshold of 0.5."""
        given, wanted = answers.values.cpu() > 0, torch.as_tensor(np.asarray(labels)).bool()
        total = int(given.sum() + wanted.sum())
        return Figure("micro F1", 2 * int((given & wanted).sum()) / total if total else 1.0)


class Scores(TaskHead):
    """A number for a text or a pair: regression, rerankers."""

    title = "regressors and rerankers"
    shapes = (TEXT, PAIR, GROUP)

    @classmethod
    def accepts(cls, model: nn.Module) -> bool:
        """One output, or the problem type of the configuration."""
        return super().accepts(model) and (model.config.num_labels == 1 or model.config.problem_type == "regression")

    def labelled_loss(self, values: Tensor, labels: Tensor) -> Tensor:
        """The sum of the outputs: the gradient of a score is taken with and without labels."""
        return values.sum()

    def score_factors(self, values: Tensor, signs: Tensor, batch: Batch) -> Tensor:
        """Squared gradients of the scores."""
        return signs

    def sums(self, dense: Answers, pruned: Answers) -> Tensor:
        """Squared differences, texts, and for each output the sum and the sum of squares of the dense scores."""
        first, second = dense.values.double(), pruned.values.double()
        ends = torch.stack(((first - second).square().sum(), first.new_tensor(len(first))))
        return torch.cat((ends, first.sum(0), first.square().sum(0)))

    def agreement(self, sums: Tensor) -> Agreement:
        """Agreement from `sums`."""
        apart, count = sums[:2].tolist()
        totals, squares = sums[2:].chunk(2)
        variance = max(float((squares / count - (totals / count).square()).sum()), 1e-30)
        return Agreement(apart / count / variance, apart / count)

    def divergences(self, dense: Tensor, pruned: Tensor, sizes: Tensor) -> Tensor:
        """Squared differences."""
        return (dense - pruned).square().sum(1)

    def figures(self, dense: Answers, pruned: Answers, groups: Tensor | None = None) -> list[Figure]:
        """See `TaskHead.figures`."""
        first, second = (each.values[:, 0].double().cpu().numpy() for each in (dense, pruned))
        found = ranking_figures(first, second, None if groups is None else groups.numpy())
        percent = ("first place kept",)
        return [Figure(name, value, name in percent) for name, value in found.items()] + [
            Figure("squared difference / variance", self.agreement(self.sums(dense, pruned)).changed)
        ]

    def metric(self, answers: Answers, labels: Sequence[Any]) -> Figure:
        """Mean of Pearson's and Spearman's correlation."""
        return Figure("corr", correlations(answers.values[:, 0].cpu().numpy(), np.asarray(labels, float))["corr"])


class Embeddings(TaskHead):
    """A vector for a text, compared by the cosine.

    Args:
        model: a model without a head.
        passes: most backward passes for one batch.
        pool: makes a text's embedding; default: the mean over its tokens.
        first_token_only: `pool` reads only the first token.
    """

    title = "embedding models"
    suffix, pipeline, shapes = "Model", "feature-extraction", (TEXT,)
    unit, takes_labels = "nearest neighbours among", False

    def __init__(
        self, model: nn.Module, passes: int = MOST_PASSES, pool: Pool | None = None, first_token_only: bool = False
    ) -> None:
        self.passes, self.names, self.first_token_only = passes, (), first_token_only
        self.pool = pool or mean_of_tokens

    @classmethod
    def accepts(cls, model: nn.Module) -> bool:
        """Models without a head."""
        return model.base_model is model

    def values(self, outputs: Any, batch: Batch) -> Tensor:
        """(B, E) float32, of length 1."""
        hidden = outputs.last_hidden_state
        return functional.normalize(self.pool(hidden, batch["attention_mask"].to(hidden.device)).float(), dim=-1)

    def score_factors(self, values: Tensor, signs: Tensor, batch: Batch) -> Tensor:
        """Squared gradients of every part of the embedding, whose sum is the second derivative of 1 - cosine."""
        return signs

    def changed(self, dense: Answers, pruned: Answers) -> Tensor:
        """Texts whose nearest neighbour among the texts is another; of equally near ones, any will do."""
        if len(dense.values) < 2:
            return torch.zeros(len(dense.values), dtype=torch.bool)
        first, second = (_similarities(each.values) for each in (dense, pruned))
        found = first.gather(1, second.argmax(1, keepdim=True))[:, 0]
        return found < first.amax(1) - 1e-6

    def divergences(self, dense: Tensor, pruned: Tensor, sizes: Tensor) -> Tensor:
        """1 - cosine."""
        return 1 - (dense * pruned).sum(1)

    def figures(self, dense: Answers, pruned: Answers, groups: Tensor | None = None) -> list[Figure]:
        """See `TaskHead.figures`."""
        found = self.agreement(self.sums(dense, pruned))
        above = torch.ones(len(dense.values), len(dense.values), dtype=torch.bool).triu(1)
        first, second = (_similarities(each.values).cpu()[above].numpy() for each in (dense, pruned))
        rank = correlations(second, first)["spearmanr"] if len(first) > 1 else 1.0
        return [
            Figure("nearest neighbours that change", found.changed, True),
            Figure("cosine", 1 - found.divergence),
            Figure("Spearman of the similarities", rank),
        ]

    def distance(self, student: Tensor, teacher: Tensor, sizes: Tensor) -> Tensor:
        """1 - cosine, plus the squared error of the similarities inside the batch."""
        apart = self.divergences(teacher, student, sizes).mean()
        if len(student) < 2:
            return apart
        error = (student @ student.T - teacher @ teacher.T).square().sum() / (len(student) * (len(student) - 1))
        return apart + error

    def last_linear(self, model: nn.Module) -> None:
        """None: nothing is behind the encoder that could be refitted."""


def mean_of_tokens(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean of the hidden states (B, T, H) over the attended tokens, (B, H)."""
    weights = mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


def first_token(hidden: Tensor, mask: Tensor) -> Tensor:
    """The hidden state of the first token, (B, H); padding is on the right."""
    return hidden[:, 0]


def _similarities(values: Tensor) -> Tensor:
    """(N, N) cosines of vectors of length 1; -inf on the diagonal."""
    values = values.double()  # bfloat16, inside of autocast, would make many of them equal
    return (values @ values.T).fill_diagonal_(-math.inf)
