"""The cuts: heads and neurons, or single weights, go without training. A resumed run reads the result of the first."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from emmental import atomic
from emmental.architectures import architecture_of
from emmental.data import FeatureDataset
from emmental.methods import RECOMMENDED, method_of
from emmental.pretrained import from_pretrained, weights_fingerprint
from emmental.runs.processes import Processes
from emmental.runs.run import Run
from emmental.structured.gates import encoder_weights
from emmental.structured.rungs import CLIFF, CLIFF_BEFORE_RECOVERY, RUNGS, Pruned, prune_carefully, prune_in_rungs
from emmental.structured.single_weights import prune_weights
from emmental.structured.texts import INFORMATION_TEXTS, MOST_CHECKED, REFIT_TEXTS, REFIT_TOKENS, Batch, Material
from emmental.task_heads import MOST_PASSES
from emmental.training.facts import DataFacts
from emmental.training.phases.phase import SCORE_FLAGS, Phase, PhaseContext

logger = logging.getLogger(__name__)

_FOLDER, _RECORD = "pruned", "pruned.json"
_BATCH, _FEWEST_BATCHES = 32, 8
"""Few rows make smaller batches, so that up to eight processes have the same batches as one."""
_FEWEST_ROWS = 8
_ROW_OF_REFIT = 1.4
"""Time of a row in the refit, in units of a row of the dense model's training."""


@dataclass
class Cut(Phase):
    """A phase that prunes without training.

    Attributes:
        recovers: a recovery follows, so a larger share of the answers may change.
    """

    recovers: bool = True

    @property
    def trains(self) -> bool:
        """A cut makes no updates."""
        return False

    def cost(self, facts: DataFacts) -> float:
        """Time in updates of the dense model; a forward pass is a third of an update's work."""
        rows = 0.8 * facts.rows  # the others are for the check
        passes = 1 + 2 * max(1, min(facts.outputs - 1, MOST_PASSES))
        refitted = min(rows, REFIT_TEXTS, REFIT_TOKENS / facts.mean_length)
        of_update = self.rows_of_update(facts)
        return RUNGS * (min(rows, INFORMATION_TEXTS) * passes / 3 + _ROW_OF_REFIT * refitted) / of_update

    def _cut(
        self, part: Run, model: PreTrainedModel, rows: FeatureDataset, prune: Callable[..., Pruned], name: str
    ) -> PreTrainedModel:
        """The pruned model, read from `<folder>/pruned` if it is there.

        Each rank goes through its share of the rows. All choose by the sums over all ranks; rank 0 writes, all read.

        Args:
            part: the run of the folder; its seed chooses the rows.
            model: a fine-tuned classifier, plain or small.
            rows: training rows.
            prune: makes the pruned model.
            name: of the budget, such as `keep 0.25`; a result for another name is not used.
        """
        folder, processes = cut_folder(self.folder), part.processes
        identity = {"budget": name, "dense": weights_fingerprint(model), "data": rows.fingerprint, "seed": part.seed}
        if processes.any(processes.is_main and not is_complete(folder, _RECORD, identity)):
            material = rows_to_prune_on(rows, model, part.seed, processes)
            in_rungs = partial(prune, model.eval(), material, reduce=processes.sum)
            pruned = prune_carefully(in_rungs, CLIFF_BEFORE_RECOVERY if self.recovers else CLIFF)
            with processes.main_first():
                if processes.is_main:
                    _tell(pruned, self.recovers, self.target.milder)
                    with atomic.atomic_folder(part.output.record_folder(_FOLDER), damaged_too=True) as temporary:
                        pruned.model.save_pretrained(temporary)
                        left = encoder_weights(pruned.model) / encoder_weights(model)
                        record = identity | {"changed": pruned.agreement.changed, "left": left}
                        atomic.write_json(temporary / _RECORD, record)
        else:
            logger.info("using the pruned model of the earlier run: %s", folder)
        cut = from_pretrained(AutoModelForSequenceClassification, str(folder)).to(processes.device)
        return cut.eval()


@dataclass
class CutHeadsAndNeurons(Cut):
    """Cut attention heads and feed-forward neurons of the model before it, until the target is reached."""

    def run(self, model: nn.Module, part: Run, context: PhaseContext) -> nn.Module:
        """The small model, in evaluation mode."""
        budget, name = self.target.budget(part, model, context.dense)
        return self._cut(part, model, context.rows, partial(prune_in_rungs, budget=budget), name)

    def describe(self, facts: DataFacts) -> str:
        """How much stays."""
        return f"cut of heads and neurons: {self.target.text}"

    def flags_without_effect(self) -> dict[str, tuple[str, ...]]:
        """Those of mask scores."""
        return {"heads and neurons have no mask scores": SCORE_FLAGS}


@dataclass
class CutSingleWeights(Cut):
    """Cut single weights of the dense model, until the target's share is left."""

    @property
    def method(self) -> str:
        """The pruning method."""
        return self.settings.pruning_method

    def run(self, model: nn.Module, part: Run, context: PhaseContext) -> nn.Module:
        """A plain model with exact zeros, in evaluation mode."""
        method, share = method_of(self.method), self.target.share
        name = f"keep {share:g} of single weights" + ("" if method is RECOMMENDED else f" by {method.name}")
        return self._cut(part, context.start, context.rows, partial(prune_weights, keep=share, method=method), name)

    def describe(self, facts: DataFacts) -> str:
        """Method and share."""
        return f"cut of single weights by {self.method}: {self.target.text}"

    def flags_without_effect(self) -> dict[str, tuple[str, ...]]:
        """Those of mask scores."""
        return {f"{self.method} learns no scores": SCORE_FLAGS}


def cut_folder(folder: Path) -> Path:
    """Where the result of a cut is kept in an output folder."""
    return folder / _FOLDER


def fewest_rows(processes: int) -> int:
    """The fewest training rows for pruning without training. With fewer, a process would have none for the check."""
    return _FEWEST_ROWS * processes


def share_left(folder: Path) -> float | None:
    """The share of the encoder's weights that the cut in an output folder left; None if there is no cut."""
    left = atomic.read_object(cut_folder(folder) / _RECORD).get("left")
    return left if isinstance(left, float) else None


def rows_to_prune_on(dataset: FeatureDataset, model: PreTrainedModel, seed: int, processes: Processes) -> Material:
    """This process' training rows for information and refit, and others for the check, drawn by the seed.

    Processes take turns at the batches, so that together they have those of one process. The data set must
    have `fewest_rows` or more.
    """
    count = processes.world_size
    checked, others = held_out_rows(len(dataset), seed)
    tokens = np.cumsum(dataset.lengths[others])
    enough = min(REFIT_TEXTS, int(np.searchsorted(tokens, REFIT_TOKENS)) + 1)

    def batches(chosen: np.ndarray) -> list[Batch]:
        longest_first = chosen[np.argsort(-dataset.lengths[chosen], kind="stable")]
        size = max(1, min(_BATCH, len(chosen) // max(_FEWEST_BATCHES, count)))
        starts = range(0, len(chosen), size)[processes.rank :: count]
        return [_inputs(dataset, longest_first[start : start + size], model) for start in starts]

    return Material(batches(others[:INFORMATION_TEXTS]), batches(others[:enough]), batches(checked))


def held_out_rows(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the rows that check a cut, and of the others, drawn from `count` rows by the seed."""
    rows = np.random.default_rng(seed).permutation(count)
    checked, others = np.split(rows, [min(MOST_CHECKED, count // 5)])
    return checked, others


def _inputs(dataset: FeatureDataset, rows: np.ndarray, model: PreTrainedModel) -> Batch:
    names = ["input_ids", "attention_mask"]
    names += ["token_type_ids"] if architecture_of(model.config).token_types else []
    batch = dataset.batch(rows)
    return {name: batch[name] for name in names}


def is_complete(folder: Path, record: str, identity: dict[str, Any]) -> bool:
    """Whether the folder holds the undamaged result of this identity, which is in its file `record`."""
    try:
        atomic.verify_folder(folder)
    except atomic.DamagedError:
        return False
    recorded = atomic.read_object(folder / record)
    return all(recorded.get(key) == value for key, value in identity.items())


def _tell(pruned: Pruned, recovers: bool, milder: str) -> None:
    changed = 100 * pruned.agreement.changed
    logger.info("cut in %d rungs: %.1f %% of the answers to held-out rows change", pruned.rungs, changed)
    if pruned.agreement.changed > CLIFF:
        remedy = "if the recovery does not make up for it, give" if recovers else "train (--num_train_epochs), or give"
        logger.warning("more than %.0f %% of the answers change: %s %s", 100 * CLIFF, remedy, milder)
