"""The dense training: nothing is pruned."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from emmental.data import FeatureDataset
from emmental.errors import UserError
from emmental.modules.output_linear import is_untrained, output_linear
from emmental.runs.evaluation import model_inputs
from emmental.runs.run import Run
from emmental.training.facts import DataFacts
from emmental.training.phases.phase import SCORE_FLAGS, Phase, PhaseContext

logger = logging.getLogger(__name__)

_ROWS_TO_JUDGE = 200


@dataclass
class DenseTraining(Phase):
    """Fine-tune the model as it is.

    Attributes:
        comes_first: the dense model is pruned afterwards. It learns from the labelled rows alone, and teaches the
            phases after it.
        unless_fine_tuned: the phase is left out if the model is fine-tuned for the task already.
    """

    comes_first: bool = False
    unless_fine_tuned: bool = False
    method: ClassVar[str] = "dense"
    follows_dense: ClassVar[bool] = False
    shows_schedule: ClassVar[bool] = True

    @property
    def type_to_load(self) -> str:
        """The type of the settings, as it is."""
        return self.settings.model_type

    def run(self, model: nn.Module, part: Run, context: PhaseContext) -> nn.Module:
        """Train the model in place."""
        rows = part.datasets[part.task.name, "train"] if self.comes_first else context.rows
        context.train_model(part, rows, model, context.tokenizer, context.teacher)
        context.dense = model
        return model

    def describe(self, facts: DataFacts) -> str:
        """Updates and learning rate."""
        return f"dense: {self.updates(facts)} updates at learning rate {self.settings.learning_rate:g}"

    def flags_without_effect(self) -> dict[str, tuple[str, ...]]:
        """Those of pruning."""
        return {"dense training": ("pruning_method", *SCORE_FLAGS)}

    def is_needed(self, run: Run, model: PreTrainedModel) -> bool:
        """Whether the model is trained dense. All processes agree.

        Raises:
            UserError: nothing is trained afterwards, and the model is not fine-tuned.
        """
        if not self.unless_fine_tuned:
            return True
        if not run.processes.any(not is_fine_tuned(model, run.datasets[run.task.name, "train"])):
            logger.info("the model is fine-tuned for this task already: no dense training")
            return False
        if not any(phase.trains for phase in run.phases if phase is not self):
            raise UserError(
                f"--num_train_epochs 0 needs a model fine-tuned for the task, but {run.model_name_or_path} is not; "
                f"omit the flag, or give --dense_first"
            )
        return True


def is_fine_tuned(model: PreTrainedModel, dataset: FeatureDataset) -> bool:
    """Whether a model is fine-tuned already: its classifier is trained, and it beats the majority class on 200 rows.

    Args:
        model: a classifier with the task's outputs. One output is a regression, which must beat the mean.
        dataset: training rows. Those used are spread evenly over all, because files are often sorted by class.
    """
    if is_untrained(output_linear(model)):
        return False
    rows = np.linspace(0, len(dataset) - 1, min(_ROWS_TO_JUDGE, len(dataset)), dtype=int)
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    with torch.no_grad():
        parts = [dataset.batch(rows[start : start + 32]) for start in range(0, len(rows), 32)]
        logits = torch.cat([model(**model_inputs(part, device, model)).logits.float().cpu() for part in parts])
    model.train(training)
    labels = torch.as_tensor(np.array(dataset.labels[rows]))
    if model.config.num_labels == 1:
        return bool(((logits[:, 0] - labels) ** 2).mean() < labels.float().var())
    return bool((logits.argmax(1) == labels).sum() > torch.bincount(labels).max())
