"""What a report judges any task head on: texts, with labels or without."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from emmental.data.pruning_texts import Columns, read_inputs
from emmental.export.calibration import CALIBRATION_ROWS
from emmental.export.load_for_pruning import LoadedModel
from emmental.inference.comparison import Evaluation
from emmental.reporting.calibration import CalibrationTexts, spread_rows
from emmental.reporting.prune_results import answers_in_engine
from emmental.structured.prune import known_labels
from emmental.structured.texts import Batch, longest_first, material, padded_batches
from emmental.task_heads import Answers, Figure, TaskHead

_ROWS_AT_ONCE = 32


@dataclass(frozen=True)
class TextData:
    """Texts and settings for evaluating the forms of a model.

    Attributes:
        head: what the models answer.
        batches: of the texts that are judged.
        groups: (N,) number of the query of each text; None: every text is on its own.
        labels: of the texts; None: agreement with the reference is the metric.
        reference: answers of the dense model, or of the model itself if that is unknown.
    """

    head: TaskHead
    batches: list[Batch]
    groups: Tensor | None
    labels: list[Any] | None
    reference: Answers

    @property
    def primary_metric(self) -> str:
        """The name of the metric that forms are judged by."""
        return next(iter(self._metrics(self.reference)))

    def evaluate(self, model: nn.Module, title: str) -> Evaluation:
        """Evaluate a form, which may run in any engine, on all texts."""
        found = answers_in_engine(model, self.head, self.batches)
        metrics = self._metrics(found)
        return Evaluation(found.values.numpy(), metrics, next(iter(metrics.values())), self._agrees)

    def _metrics(self, found: Answers) -> dict[str, float]:
        """The metric of the labels if there are any, and agreement with the reference."""
        labelled = [] if self.labels is None else [self.head.metric(found, self.labels)]
        agreement = kept(self.head.figures(self.reference, found, self.groups)[0])
        return {figure.name: figure.value for figure in (*labelled, agreement)}

    def _agrees(self, values: np.ndarray, others: np.ndarray) -> float | None:
        ours, theirs = (Answers(torch.from_numpy(each), self.reference.sizes) for each in (values, others))
        figure = self.head.figures(theirs, ours, self.groups)[0]
        return kept(figure).value if kept(figure) is not figure else None


def kept(figure: Figure) -> Figure:
    """A figure of agreement, of which more is better: `tokens that change` becomes `tokens that stay`."""
    for change, stay in (("that change", "that stay"), ("with a changed label", "with the same labels")):
        if change in figure.name:
            return Figure(figure.name.replace(change, stay), 1 - figure.value, figure.percent)
    return figure


def read_text_data(
    loaded: LoadedModel,
    file: str,
    columns: Columns,
    max_length: int,
    dense: PreTrainedModel | None,
    calibration: CalibrationTexts | None,
    accept_unknown_tokens: bool = False,
) -> tuple[TextData, CalibrationTexts]:
    """Read the texts that the forms of a model are judged on, and what int8 is calibrated on; no text is both.

    Args:
        loaded: the model.
        file: of texts, as for `emmental-prune`.
        columns: of the file; with one of labels, the metric is that of the labels.
        max_length: texts are cut to this many tokens.
        dense: the model that it came from, if that is known.
        calibration: texts for int8; default: some of the file, which are not judged.
        accept_unknown_tokens: go on although most tokens are unknown.

    Raises:
        UserError: see `read_inputs`, `known_labels` and `material`.
    """
    head = loaded.head
    texts, labels = read_inputs(file, head, columns)
    known = None if labels is None else known_labels(head, loaded.model, labels)
    rows = material(loaded.tokenizer, texts, known, max_length, _ROWS_AT_ONCE, accept_unknown_tokens, head)
    others, spelt = rows.spelling.others, rows.spelling.rows
    aside = spread_rows(len(others), min(CALIBRATION_ROWS, len(others) // 2)) if calibration is None else ()
    judged = sorted({*range(len(others))} - {*aside})
    order = [*rows.spelling.checked, *(others[place] for place in longest_first(rows.encodings, judged))]
    batches = [*rows.check, *padded_batches(loaded.tokenizer, rows.encodings, judged, _ROWS_AT_ONCE)]
    if calibration is None:
        parts = [spelt[others[place]].parts for place in aside]
        words = f"{len(aside)} texts of {Path(file).name}; points are counted on the others"
        strings = [each[0] if len(each) == 1 else each for each in parts]
        calibration = CalibrationTexts(strings, words, np.empty(0, np.int64))
    groups = None if rows.groups is None else torch.tensor([spelt[number].group for number in order])
    reference = answers_in_engine(loaded.model if dense is None else dense, head, batches)
    own = None if known is None else [spelt[number].label for number in order]
    return TextData(head, batches, groups, own, reference), calibration
