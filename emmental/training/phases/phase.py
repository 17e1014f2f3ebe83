"""A phase: one step on the way from the model given to the model handed over. A run is a list of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from emmental.data import FeatureDataset
from emmental.methods import STRUCTURED
from emmental.runs.run import Run
from emmental.training.budgets import Target
from emmental.training.facts import DataFacts
from emmental.training.plan import Plan, plan_updates
from emmental.training.settings import TrainSettings

OUTSIDE_THE_ENCODER, MASKED_UPDATE = 0.2, 1.1
"""Time of the rest of a small model's update, and of a masked update, in units of the dense model's. Measured with
MiniLM on CPUs."""
_BYTES_OF_WEIGHT, _BYTES_OF_ADAM = 4, 8
"""Bytes of a weight, and of its state in Adam."""
SCORE_FLAGS = (
    "initial_threshold",
    "final_threshold",
    "initial_warmup",
    "final_warmup",
    "mask_init",
    "mask_scale",
    "mask_scores_learning_rate",
    "regularization",
    "final_lambda",
    "global_topk",
    "global_topk_frequency_compute",
)
"""Flags of the schedule and of mask scores."""


@dataclass
class PhaseContext:
    """What the phases of a run share.

    Attributes:
        run: the whole run.
        tokenizer: of the model that is made.
        rows: training rows, with those of `--unlabeled_file`, in its tokens.
        dense: the model that cuts are compared with, and that teaches.
        source: folder or Hub name of the model that cuts start from.
        teacher: the one that the flags name, or None.
        train_model: train a model: (part of the run, rows, model, tokenizer, teacher).
        tokenise: open all data of the run with another tokenizer. Returns the training rows.
        reduced: the dense model with fewer tokens, if some were removed.
    """

    run: Run
    tokenizer: Any
    rows: FeatureDataset
    dense: nn.Module
    source: str
    teacher: nn.Module | None
    train_model: Callable[[Run, FeatureDataset, nn.Module, Any, nn.Module | None], None]
    tokenise: Callable[[Any], FeatureDataset]
    reduced: nn.Module | None = None

    @property
    def start(self) -> nn.Module:
        """The model that cuts start from."""
        return self.dense if self.reduced is None else self.reduced


@dataclass
class Phase(ABC):
    """One step of a run.

    Attributes:
        folder: where it saves; phases with the same folder make one model together.
        settings: of its training.
        target: how much stays; None for a dense model.
        tokens_left: about this share of the tokens is left in its model.
        method: how the model is made, in a word, for tables and cards.
        follows_dense: it starts from a dense model, which also teaches.
        masked: it trains a masked model.
        shows_schedule: the plan shows the schedule of its training.
    """

    folder: Path
    settings: TrainSettings
    target: Target | None = None
    tokens_left: float = field(default=1.0, kw_only=True)
    method: ClassVar[str] = STRUCTURED
    follows_dense: ClassVar[bool] = True
    masked: ClassVar[bool] = False
    shows_schedule: ClassVar[bool] = False

    @abstractmethod
    def run(self, model: nn.Module, part: Run, context: PhaseContext) -> nn.Module:
        """Make the phase's model from the one before it.

        Args:
            model: of the phase before; the given model for the first phase.
            part: the run of the folder, with the settings of the last phase that saves there.
            context: what all phases share.
        """

    @abstractmethod
    def describe(self, facts: DataFacts) -> str:
        """What it does, in one line for the plan."""

    @property
    def trains(self) -> bool:
        """Whether it makes updates."""
        return self.settings.trains

    @property
    def type_to_load(self) -> str:
        """The model type as which the given model is loaded if this is the first phase."""
        return self.settings.model_type.removeprefix("masked_")

    @property
    def name(self) -> str:
        """Of its model, in tables."""
        return self.target.name if self.target else self.method

    def plan(self, facts: DataFacts) -> Plan:
        """The updates of its training."""
        return plan_updates(self.settings, facts.examples, facts.processes)

    def updates(self, facts: DataFacts) -> int:
        """How many updates it makes."""
        return self.plan(facts).total_updates if self.trains else 0

    def rows_of_update(self, facts: DataFacts) -> int:
        """Training rows of one update, of all processes together."""
        rows = self.settings.per_gpu_train_batch_size * self.settings.gradient_accumulation_steps
        return rows * facts.processes

    def part_of(self, run: Run) -> Run:
        """The run with this phase's settings and folder."""
        return run.part(self.folder, **self.settings.as_flags())

    def prepare(self, run: Run, model: nn.Module) -> None:
        """Measure what must be known before anything is trained.

        Raises:
            UserError: the target is out of reach.
        """
        if self.target is not None:
            self.target.prepare(run, model)

    def milder_flag(self) -> str:
        """The flag that prunes less, for advice."""
        return "--keep"

    def flags_without_effect(self) -> dict[str, tuple[str, ...]]:
        """Reason -> flags that do nothing if this is the last phase."""
        return {}

    def update_cost(self) -> float:
        """Time of one update, in units of the dense model's."""
        if self.masked:
            return MASKED_UPDATE
        left = self.target.expected_share if self.target else 1.0
        return OUTSIDE_THE_ENCODER + (1 - OUTSIDE_THE_ENCODER) * left

    def cost(self, facts: DataFacts) -> float:
        """Time of the phase, in updates of the dense model. It is rough."""
        return self.update_cost() * self.updates(facts)

    def model_bytes(self, facts: DataFacts) -> int:
        """Bytes of the model that it leaves, in float32."""
        return _BYTES_OF_WEIGHT * self._numbers(facts)

    def checkpoint_bytes(self, facts: DataFacts) -> int:
        """Bytes of one of its checkpoints; 0 if it writes none."""
        if not self.trains:
            return 0
        numbers = self._numbers(facts)
        frozen = int(facts.embedding_weights * self.tokens_left) if self.masked else 0  # while pruning
        trained = numbers - frozen
        return _BYTES_OF_WEIGHT * numbers + _BYTES_OF_ADAM * trained

    def _numbers(self, facts: DataFacts) -> int:
        """Numbers in the model that it trains or leaves."""
        weights = facts.weights - int(facts.embedding_weights * (1 - self.tokens_left))
        if self.masked:
            return weights + facts.encoder_weights
        most = self.target.most_left if self.target else 1.0
        return weights - int(facts.encoder_weights * (1 - most))
