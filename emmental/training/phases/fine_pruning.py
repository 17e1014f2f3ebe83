"""Fine-pruning: single weights go by a schedule while the model trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from emmental.export.bertarize import bertarize
from emmental.methods import method_of
from emmental.runs.run import Run
from emmental.runs.state import seed_generators
from emmental.training.facts import DataFacts
from emmental.training.models import load_model
from emmental.training.phases.phase import Phase, PhaseContext


@dataclass
class FinePruning(Phase):
    """Prune single weights by the schedule of the settings.

    Attributes:
        follows_dense: it starts from the dense model of the run, and ends with a plain model with exact zeros. If
            False, it starts from the model that the flags name, and ends with a masked one.
    """

    follows_dense: bool = True
    masked: ClassVar[bool] = True
    shows_schedule: ClassVar[bool] = True

    @property
    def method(self) -> str:
        """The pruning method."""
        return self.settings.pruning_method

    @property
    def type_to_load(self) -> str:
        """Masked if it starts from the given model."""
        return super().type_to_load if self.follows_dense else self.settings.model_type

    def run(self, model: nn.Module, part: Run, context: PhaseContext) -> nn.Module:
        """Train a masked model."""
        if not self.follows_dense:
            context.train_model(part, context.rows, model, context.tokenizer, context.teacher)
            return model
        masked = load_masked(
            part, context.source, part.new_classifier and context.source == part.model_name_or_path, context
        )
        context.train_model(part, context.rows, masked, context.tokenizer, context.teacher or context.dense)
        return bertarize(masked)

    def describe(self, facts: DataFacts) -> str:
        """Method, share, updates and learning rate."""
        how_much = "" if self.target is None else f": {self.target.text}"
        rate = f"{self.updates(facts)} updates at learning rate {self.settings.learning_rate:g}"
        return f"fine-pruning of single weights by {self.method}{how_much}, {rate}"

    def milder_flag(self) -> str:
        """The flag that prunes less."""
        return "--keep" if self.target else "--final_lambda" if self.settings.final_lambda else "--final_threshold"

    def flags_without_effect(self) -> dict[str, tuple[str, ...]]:
        """Those of scores that the method does not learn."""
        return flags_of_unlearned_scores(self.method)


def flags_of_unlearned_scores(method: str) -> dict[str, tuple[str, ...]]:
    """Reason -> flags of the learning of scores, if a method does not learn any."""
    if method_of(method).learns_scores:
        return {}
    return {f"{method} learns no scores": ("mask_init", "mask_scale", "mask_scores_learning_rate")}


def load_masked(part: Run, source: str, new_classifier: bool, context: PhaseContext) -> nn.Module:
    """The masked form of a saved model.

    Args:
        part: the run of the phase.
        source: folder or Hub name of a plain model.
        new_classifier: start with a new classifier.
        context: what all phases share.
    """
    seed_generators(part.seed)  # a resumed run has drawn other random numbers before
    loaded = part.part(model_name_or_path=source, new_classifier=new_classifier)
    return load_model(loaded, part.task, context.tokenizer).to(part.processes.device)
