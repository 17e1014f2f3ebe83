"""What all task heads share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from emmental.errors import UserError
from emmental.first_token import reads_first_token
from emmental.modules.output_linear import output_linear
from emmental.task_heads.signs import MOST_PASSES, random_signs

READ = "read"
"""Name in a batch: (B, T), 1 at the tokens whose answers somebody reads. Without it, all attended tokens are read."""
NOT_INPUTS = ("labels", READ)
"""Names in a batch that no model takes."""
TEXT, PAIR, GROUP = "a string", "a pair of strings", "a query with its list of documents"
"""Shapes of one input."""

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Answers:
    """A model's answers to some texts, in order.

    Attributes:
        values: (R, C) float32, a row for each text or for each token that is read.
        sizes: (N,) int64, rows of each text.
    """

    values: Tensor
    sizes: Tensor

    def of_texts(self) -> list[Tensor]:
        """The rows of each text."""
        return list(self.values.split(self.sizes.tolist()))


def joined(parts: Sequence[Answers]) -> Answers:
    """The answers of several batches, one after the other."""
    return Answers(torch.cat([part.values for part in parts]), torch.cat([part.sizes for part in parts]))


@dataclass(frozen=True)
class Agreement:
    """A model compared with the dense one on the same texts.

    Attributes:
        changed: share of answers that are others (of texts, or of tokens); for scores the mean squared difference,
            divided by the variance of the dense model's scores; for embeddings the texts with another nearest
            neighbour.
        divergence: KL(dense || pruned), nats, mean over answers; for scores the mean squared difference; for
            embeddings the mean of 1 - cosine.
    """

    changed: float
    divergence: float

    def __str__(self) -> str:
        return f"{100 * self.changed:.1f} % of the answers change, divergence {self.divergence:.4f}"


@dataclass(frozen=True)
class Figure:
    """A number of a report: its name, its value, and whether people read it in %."""

    name: str
    value: float
    percent: bool = False

    @property
    def text(self) -> str:
        """The value for people."""
        return f"{100 * self.value:.2f} %" if self.percent else f"{self.value:.4f}"

    def __str__(self) -> str:
        return f"{self.name} {self.text}"


class TaskHead:
    """What all task heads share: an answer is one row of logits a text.

    Args:
        model: plain or small; masked ones are not pruned here.
        passes: most backward passes for one batch.

    Attributes:
        title: of such a model, for messages.
        suffix: end of the name of its class in Transformers.
        pipeline: its tag on the Hub and in pipelines.
        shapes: of inputs.
        unit: what `Agreement.changed` is a share of, before the words "held-out texts".
        takes_labels: labels of texts can be used.
        needs_words: only some tokens are read, see `read`.
        first_token_only: the head reads only the first token of the last layer.
        names: of the outputs.
    """

    title: ClassVar[str]
    suffix: ClassVar[str] = "ForSequenceClassification"
    pipeline: ClassVar[str] = "text-classification"
    shapes: ClassVar[tuple[str, ...]] = (TEXT, PAIR)
    unit: ClassVar[str] = "answers to"
    takes_labels: ClassVar[bool] = True
    needs_words: ClassVar[bool] = False

    def __init__(self, model: nn.Module, passes: int = MOST_PASSES) -> None:
        self.passes = passes
        self.first_token_only = reads_first_token(model)
        self.names = tuple(model.config.id2label[index] for index in range(model.config.num_labels))

    @classmethod
    def accepts(cls, model: nn.Module) -> bool:
        """Whether this is the head of a model."""
        return type(model).__name__.endswith(cls.suffix)

    def values(self, outputs: Any, batch: Batch) -> Tensor:
        """(R, C) float32: the answers in a model's outputs."""
        return outputs.logits.float()

    def sizes(self, batch: Batch) -> Tensor:
        """(B,) int64: rows of `values` for each text."""
        return torch.ones(len(batch["input_ids"]), dtype=torch.int64)

    def answers(self, outputs: Any, batch: Batch) -> Answers:
        """The answers to one batch."""
        return Answers(self.values(outputs, batch), self.sizes(batch))

    def derivatives(self, values: Tensor, batch: Batch) -> Iterator[Tensor]:
        """Scalars, each the sum of one scalar for each text: the squared gradients add up to the information.

        Without `labels` in the batch, the information is the expectation over the model's own distribution. Where
        random signs estimate it, it is exact in expectation over them.
        """
        if "labels" in batch:
            yield self.labelled_loss(values, batch["labels"].to(values.device))
            return
        signs = random_signs(values.shape, self.passes_for(values), int(batch["input_ids"].sum())).to(values.device)
        for sign in signs:
            yield (self.score_factors(values.detach(), sign, batch) * values).sum() / math.sqrt(len(signs))

    def passes_for(self, values: Tensor) -> int:
        """Backward passes: as many as columns make the estimate exact if the columns are independent."""
        return min(self.passes, values.shape[1])

    def labelled_loss(self, values: Tensor, labels: Tensor) -> Tensor:
        """The loss whose gradient is taken where labels are given, summed over texts."""
        raise UserError(f"labels: {self.title} are pruned without labels; omit them")

    def score_factors(self, values: Tensor, signs: Tensor, batch: Batch) -> Tensor:
        """(R, C) u for signs (R, C) of +1 and -1. Over all signs, the mean of u u^T is the values' own information."""
        raise NotImplementedError

    def sums(self, dense: Answers, pruned: Answers) -> Tensor:
        """Float64 numbers that add up over processes, for `agreement`: changed answers, divergence, answers."""
        first, second = dense.values.double(), pruned.values.double()
        far = self.changed(dense, pruned)
        return torch.stack((far.sum().double(), self.divergences(first, second, dense.sizes).sum(), _count(far)))

    def agreement(self, sums: Tensor) -> Agreement:
        """Agreement from `sums`."""
        far, divergence, count = sums.tolist()
        return Agreement(far / max(count, 1), divergence / max(count, 1))

    def changed(self, dense: Answers, pruned: Answers) -> Tensor:
        """Bool, one for each answer: it is another."""
        return dense.values.argmax(1) != pruned.values.argmax(1)

    def divergences(self, dense: Tensor, pruned: Tensor, sizes: Tensor) -> Tensor:
        """(answers,): how far each answer is from the dense model's, nats. `sizes`: rows of each text."""
        log = dense.log_softmax(1)
        return functional.kl_div(pruned.log_softmax(1), log, reduction="none", log_target=True).sum(1)

    def figures(self, dense: Answers, pruned: Answers, groups: Tensor | None = None) -> list[Figure]:
        """How far two models' answers are apart, for people, the most important figure first.

        Args:
            groups: (N,) numbers of the query that each text belongs to; None: each is on its own.
        """
        found = self.agreement(self.sums(dense, pruned))
        return [Figure("answers that change", found.changed, True), Figure("KL", found.divergence)]

    def distance(self, student: Tensor, teacher: Tensor, sizes: Tensor) -> Tensor:
        """The loss with which a small model learns the dense model's values (R, C), a scalar."""
        return self.divergences(teacher.float(), student.float(), sizes).mean()

    def metric(self, answers: Answers, labels: Sequence[Any]) -> Figure:
        """The metric where labels are given, one for each text."""
        right = answers.values.argmax(1).cpu() == torch.as_tensor(labels)
        return Figure("acc", float(right.double().mean()))

    def last_linear(self, model: nn.Module) -> nn.Linear | None:
        """The linear outside of the encoder that gives the values; it is refitted last. None if there is none."""
        return output_linear(model)

    def rows(self, given: Tensor, batch: Batch) -> Tensor:
        """(R, H): the inputs of that linear that belong to the values."""
        return given

    def read(self, sequences: Sequence[int | None]) -> list[int]:
        """1 for each token that is read. `sequences`: the number of a token's string, None for special tokens."""
        return [int(number is not None) for number in sequences]


def _count(values: Tensor) -> Tensor:
    return values.new_tensor(len(values), dtype=torch.float64)
