"""The recovery: training of what a cut has left, with the dense model as teacher."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from emmental.export.bertarize import bertarize
from emmental.pruning import freeze_scores
from emmental.runs.run import Run
from emmental.training.facts import DataFacts
from emmental.training.phases.cut import cut_folder, share_left
from emmental.training.phases.fine_pruning import flags_of_unlearned_scores, load_masked
from emmental.training.phases.phase import SCORE_FLAGS, Phase, PhaseContext
from emmental.training.recipe import HARD_CUT

logger = logging.getLogger(__name__)


@dataclass
class Recovery(Phase):
    """Train the small model that a cut of heads and neurons has left.

    Attributes:
        hard_rate: for a target in speed, the learning rate if the cut leaves `HARD_CUT` or less, which is known only
            after the cut; None: always that of the settings.
    """

    hard_rate: float | None = None

    def part_of(self, run: Run) -> Run:
        """The run with this phase's settings. A resumed one knows what the cut has left."""
        part = super().part_of(run)
        part.learning_rate = self._rate()
        return part

    def _rate(self) -> float:
        left = None if self.hard_rate is None else share_left(self.folder)
        return self.hard_rate if left is not None and left <= HARD_CUT else self.settings.learning_rate

    def run(self, model: nn.Module, part: Run, context: PhaseContext) -> nn.Module:
        """Train the model in place."""
        if self.hard_rate is not None and (left := share_left(self.folder)) is not None:
            part.learning_rate = self._rate()
            part.record()
            logger.info(
                "%.1f %% of the encoder stay; learning rate of the recovery: %g", 100 * left, part.learning_rate
            )
        context.train_model(part, context.rows, model, context.tokenizer, context.teacher or context.dense)
        return model

    def describe(self, facts: DataFacts) -> str:
        """Updates and learning rate."""
        rate = f"{self.settings.learning_rate:g}"
        if self.hard_rate is not None:
            rate += f", or {self.hard_rate:g} if {HARD_CUT:.0%} or less of the encoder stay"
        return f"recovery: {self.updates(facts)} updates at learning rate {rate}"

    def flags_without_effect(self) -> dict[str, tuple[str, ...]]:
        """Those of mask scores."""
        return {"heads and neurons have no mask scores": SCORE_FLAGS}


@dataclass
class MaskedRecovery(Phase):
    """Train the single weights that a cut has left. What is zero stays zero."""

    masked: ClassVar[bool] = True

    @property
    def method(self) -> str:
        """The pruning method of the cut."""
        return self.settings.pruning_method

    def run(self, model: nn.Module, part: Run, context: PhaseContext) -> nn.Module:
        """Train a masked form of the model. Returns a plain model with exact zeros."""
        masked = load_masked(part, str(cut_folder(self.folder)), False, context)
        freeze_scores(masked)
        context.train_model(part, context.rows, masked, context.tokenizer, context.teacher or context.dense)
        return bertarize(masked)

    def describe(self, facts: DataFacts) -> str:
        """Updates and learning rate."""
        return f"recovery: {self.updates(facts)} updates at learning rate {self.settings.learning_rate:g}"

    def flags_without_effect(self) -> dict[str, tuple[str, ...]]:
        """Those of scores that the method does not learn."""
        return flags_of_unlearned_scores(self.method)
