"""The table at the end of a run: the dense model, the pruned one, and the bag of words that both must beat."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from emmental.architectures import encoder_linears, longest_input
from emmental.data import FeatureDataset
from emmental.inference.engines import ENGINES, measure_together
from emmental.latency import seconds_of_each
from emmental.pruning import remaining_weights
from emmental.runs.run import Run
from emmental.shrinking import layer_sizes
from emmental.structured.vocabulary import embedding_weights
from emmental.tasks import metric_text, read_split
from emmental.tasks.bag_of_words import Floor, bag_of_words
from emmental.training.budgets import SpeedTarget

logger = logging.getLogger(__name__)

BATCH, LENGTH = 1, 128
"""Shape of the timed input: one sentence of this number of tokens."""


@dataclass(frozen=True)
class Candidate:
    """One row of the table.

    Attributes:
        name: dense, pruned, bag of words.
        metric: on the dev data; None if it was not evaluated.
        weights: non-zero weights of the encoder's matrices; None for a bag of words.
        bytes: size of the file of weights; None if there is none.
        milliseconds: for one sentence of 128 tokens; None if it was not timed.
        original: weights of the encoder's matrices before any pruning, if the model's configuration says it.
        embeddings: share of the model's weights that are embeddings of tokens; None for a bag of words.
    """

    name: str
    metric: float | None = None
    weights: int | None = None
    bytes: int | None = None
    milliseconds: float | None = None
    original: int | None = None
    embeddings: float | None = None


@dataclass
class TrainedModels:
    """Results of a run: the finished model, and the models that it is compared with.

    Attributes:
        model: the finished one.
        tokenizer: its own.
        rows: the training rows in its tokens; None without training.
        candidates: rows of the table, the dense model first; empty if there is nothing to compare.
        models: name of a candidate -> model, to be timed together.
        floor: result of a bag of words; None if it was not fitted.
        cascade: of these models, as `emmental.cascade.build_cascade` returns it; None: not made.
    """

    model: nn.Module
    tokenizer: Any = None
    rows: FeatureDataset | None = None
    candidates: list[Candidate] = field(default_factory=list)
    models: dict[str, nn.Module] = field(default_factory=dict)
    floor: Floor | None = None
    cascade: dict[str, Any] | None = None
    _times: dict[str, float] = field(default_factory=dict)

    def add(self, one: Candidate, model: nn.Module) -> None:
        """Add a finished model; the last one is that of the run."""
        self.model = self.models[one.name] = model
        self.candidates.append(one)

    @property
    def remaining(self) -> float:
        """Encoder weights that remain, in % of the dense model's if there is one."""
        if len(self.models) < 2:
            return remaining_weights(self.model)
        return (
            100
            * nonzero_encoder_weights(self.model)
            / max(nonzero_encoder_weights(next(iter(self.models.values()))), 1)
        )

    @property
    def sizes(self) -> list[list[tuple[int, int]]]:
        """(heads, neurons) of each layer: of the last model, and of the first one."""
        models = (self.model, next(iter(self.models.values())))
        return [[(size.heads, size.neurons) for size in layer_sizes(model)] for model in models]

    def timed(self, metric: str) -> list[Candidate]:
        """The candidates with the milliseconds of their models, and the bag of words; the models are timed once,
        for one sentence in plain PyTorch fp32 on the CPU. It has `LENGTH` tokens, or as many as they all take.
        """
        if self.models and not self._times:
            length = min(LENGTH, *(longest_input(model.config) for model in self.models.values()))
            self._times = measure_together(self.models, BATCH, length)
        rows = [replace(one, milliseconds=self._times.get(one.name)) for one in self.candidates]
        words = [] if self.floor is None else [Candidate("bag of words", self.floor.metrics.get(metric))]
        return rows + words


def floor_of(run: Run) -> Floor | None:
    """Result of a bag of words on the dev data; None if the flags exclude it, and on ranks other than 0."""
    if not (run.floor and run.do_train and run.do_eval and run.processes.is_main):
        return None
    floor = bag_of_words(run.task, *(read_split(run.task, run.data_dir, split) for split in ("train", "dev")))
    reached = ", ".join(f"{name} {metric_text(name, value)}" for name, value in floor.metrics.items())
    logger.info("a bag of words reaches %s in %.1f s", reached, floor.seconds)
    return floor


def candidate(name: str, model: nn.Module, folder: Path, metric: float | None) -> Candidate:
    """The row of a model whose weights are in `folder`. Its time is measured later, together with the others."""
    file = folder / "model.safetensors"
    size = file.stat().st_size if file.exists() else None
    original = getattr(model.config, "dense_encoder_weights", None)
    share = embeddings_share(model)
    return Candidate(name, metric, nonzero_encoder_weights(model), size, original=original, embeddings=share)


def embeddings_share(model: nn.Module) -> float:
    """Share of a model's weights, and so of its file, that are embeddings of tokens."""
    return embedding_weights(model) / sum(parameter.numel() for parameter in model.parameters())


def nonzero_encoder_weights(model: nn.Module) -> int:
    """Non-zero weights of the encoder's matrices. Matrices that layers share count once."""
    modules = dict(model.named_modules())
    return sum(
        int(modules[name].weight.count_nonzero())
        for name in encoder_linears(model)
        if getattr(modules[name], "weight", None) is not None
    )


def save_ladder(made: TrainedModels, metric: str, folder: Path, title: str) -> list[Path]:
    """Write `ladder.png`, if the run made several models and has a metric: they are compared with the dense one."""
    from emmental.pictures.ladder import ladder

    first, *others = made.candidates or [Candidate("none")]
    if len(others) < 2 or not first.weights or any(one.metric is None for one in made.candidates):
        return []
    times = [one.milliseconds for one in made.timed(metric) if one.name in made.models]
    chart = ladder(
        [one.name for one in made.candidates],
        metric,
        [one.metric for one in made.candidates],
        [times[0] / each for each in times],
        [100 * one.weights / first.weights for one in made.candidates],
        title,
    )
    return [chart.save(folder / "ladder.png")]


def speed_reached(target: SpeedTarget, made: TrainedModels) -> str:
    """How many times as fast as dense the last model is, and was asked to be."""
    seconds = seconds_of_each(len(made.models))
    times = [*measure_together(made.models, *target.shape, target.engine, seconds=seconds).values()]
    where = f"{target.shape[0]} x {target.shape[1]}, {ENGINES[target.engine].title}"
    return f"{times[0] / times[-1]:.2f} times as fast as dense ({where}), {target.speedup:g} asked"


def before_and_after(candidates: Sequence[Candidate], metric: str) -> list[str]:
    """The table as lines of text; the others are compared with the first candidate."""
    head = ("", metric, "encoder weights", "MB (embeddings)", f"ms ({BATCH} x {LENGTH})")
    first = candidates[0]
    rows = [head, *(_cells(one, first) for one in candidates)]
    return aligned(rows)


def no_better_than_words(results: Mapping[str, float], floor: Floor, primary_metric: str) -> bool:
    """Whether a model is within two standard errors of the bag of words, or below it.

    Accuracies are compared if there are any, else the primary metric. Micro F1 is taken for a share of the rows, as
    accuracies are; others are correlations, whose standard error is that of Fisher's z.

    Args:
        results: metrics of the model on the dev data.
        floor: those of the bag of words on the same rows.
        primary_metric: of the task.
    """
    metric = next((name for name in floor.metrics if name.rpartition("/")[2] == "acc"), primary_metric)
    model, words, rows = results[metric], floor.metrics[metric], len(floor.predictions)
    if metric.rpartition("/")[2] in ("acc", "micro_f1"):
        error = math.sqrt(max(model * (1 - model), 1e-12) / rows + max(words * (1 - words), 1e-12) / rows)
        return model - words <= 2 * error
    first, second = (math.atanh(max(-0.999999, min(0.999999, value))) for value in (model, words))
    return rows <= 3 or first - second <= 2 * math.sqrt(2 / (rows - 3))


def _cells(one: Candidate, first: Candidate) -> tuple[str, ...]:
    weights = times = "-"
    if one.weights is not None:
        weights = f"{one.weights / 1e6:.2f} M{_shares(one.weights, first, one is first)}"
    if one.milliseconds is not None:
        faster = f" ({first.milliseconds / one.milliseconds:.1f} x)" if first.milliseconds and one is not first else ""
        times = f"{one.milliseconds:.1f}{faster}"
    return (
        one.name,
        "-" if one.metric is None else f"{one.metric:.4f}",
        weights,
        "-" if one.bytes is None else f"{one.bytes / 1e6:.1f}{_embeddings(one)}",
        times,
    )


def _embeddings(one: Candidate) -> str:
    return "" if one.embeddings is None else f" ({100 * one.embeddings:.0f} %)"


def _shares(weights: int, first: Candidate, is_first: bool) -> str:
    """What `weights` are of the first model, and, if that was pruned before, of its original; in brackets."""
    shares = [f"{100 * weights / first.weights:.1f} %"] if first.weights and not is_first else []
    shares += [f"{100 * weights / first.original:.1f} % of the original"] if first.original else []
    return f" ({', '.join(shares)})" if shares else ""


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Cells as lines of text: names to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
