"""The phase of a run that prunes without training. It saves its result, so a resumed run has the same one."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel

from emmental import atomic
from emmental.architectures import architecture_of
from emmental.data import FeatureDataset
from emmental.errors import UserError
from emmental.methods import RECOMMENDED, RECOMMENDED_FOR_FEW, Method, method_of
from emmental.pretrained import from_pretrained, weights_fingerprint
from emmental.runs.processes import Processes, memory_of
from emmental.runs.run import Run
from emmental.structured.gates import encoder_weights
from emmental.structured.rungs import CLIFF, CLIFF_BEFORE_RECOVERY, Pruned, prune_carefully, prune_in_rungs
from emmental.structured.selection import Budget
from emmental.structured.single_weights import prune_weights
from emmental.structured.texts import INFORMATION_TEXTS, MOST_CHECKED, REFIT_TEXTS, REFIT_TOKENS, Batch, Material
from emmental.training.plan import trains

logger = logging.getLogger(__name__)

FOLDER = "pruned"
_FACTS = "pruned.json"
_BATCH, _FEWEST_BATCHES = 32, 8
"""Few rows make smaller batches, so that up to eight processes have the same batches as one."""
_FEWEST_ROWS = 8


def cut(run: Run, dense: PreTrainedModel, dataset: FeatureDataset, budget: Budget, name: str) -> PreTrainedModel:
    """The small model for the budget, read from `<output_dir>/pruned` if it is there.

    Each rank goes through its share of the rows. All choose by the sums over all ranks; rank 0 writes, all read it.

    Args:
        run: its seed chooses the rows.
        dense: a fine-tuned classifier, plain or small.
        dataset: training rows.
        budget: of weights or milliseconds.
        name: name of the budget, such as `keep 0.25`; a result for another name is not used.
    """
    folder = _pruned(run, dense, dataset, partial(prune_in_rungs, budget=budget), name)
    return from_pretrained(AutoModelForSequenceClassification, str(folder)).to(run.processes.device)


def cut_weights(run: Run, dense: PreTrainedModel, dataset: FeatureDataset, keep: float) -> Path:
    """The folder `<output_dir>/pruned` with the plain model that keeps this share of its single weights: see `cut`."""
    name, method = f"keep {keep:g} of single weights", method_of(run.pruning_method)
    name += "" if method is RECOMMENDED else f" by {method.name}"
    return _pruned(run, dense, dataset, partial(prune_weights, keep=keep, method=method), name)


def check_memory(run: Run, model: PreTrainedModel) -> None:
    """Whether the machine can hold what a cut of single weights needs.

    Raises:
        UserError: the method needs more memory than the machine, or its GPU, has.
    """
    method = method_of(run.pruning_method)
    needed, there = _memory_for_cut(run, method, encoder_weights(model))
    if needed > there:
        raise UserError(
            f"--pruning_method {method.name} needs {needed / 1e9:.0f} GB of memory for this encoder, and there are "
            f"{there / 1e9:.0f}; give --pruning_method {RECOMMENDED.name}"
        )


def surgeon_fits(run: Run, config: PreTrainedConfig) -> bool:
    """Whether the machine, or its GPU, has twice the memory that `RECOMMENDED_FOR_FEW` needs for this encoder."""
    needed, there = _memory_for_cut(run, RECOMMENDED_FOR_FEW, encoder_weights_of(config))
    return not run.processes.any(2 * needed > there)


def encoder_weights_of(config: PreTrainedConfig) -> int:
    """The encoder's matrix weights of a classifier with this config."""
    with torch.device("meta"):
        return encoder_weights(AutoModelForSequenceClassification.from_config(config))


def _memory_for_cut(run: Run, method: Method, weights: int) -> tuple[int, int]:
    """(needed, there), in bytes. Without GPUs, the processes share the machine's memory."""
    sharing = run.processes.world_size if run.processes.device.type == "cpu" else 1
    return method.bytes_a_weight * weights * sharing, memory_of(run.processes.device)


def _pruned(
    run: Run, dense: PreTrainedModel, dataset: FeatureDataset, prune: Callable[..., Pruned], name: str
) -> Path:
    folder = run.folder / FOLDER
    identity = {"budget": name, "dense": weights_fingerprint(dense), "data": dataset.fingerprint, "seed": run.seed}
    if run.processes.any(run.processes.is_main and not _stands(folder, identity)):
        rows = rows_to_prune_on(dataset, dense, run.seed, run.processes)
        in_rungs = partial(prune, dense.eval(), rows, reduce=run.processes.sum)
        found = prune_carefully(in_rungs, CLIFF_BEFORE_RECOVERY if trains(run) else CLIFF)
        with run.processes.main_first():
            if run.processes.is_main:
                _say(found, recovers=trains(run))
                with atomic.atomic_folder(run.output.record_folder(FOLDER), damaged_too=True) as temporary:
                    found.model.save_pretrained(temporary)
                    left = encoder_weights(found.model) / encoder_weights(dense)
                    facts = identity | {"changed": found.agreement.changed, "left": left}
                    atomic.write_json(temporary / _FACTS, facts)
    else:
        logger.info("using the pruned model of the earlier run: %s", folder)
    return folder


def fewest_rows(processes: Processes) -> int:
    """The fewest training rows for pruning without training. With fewer, a process would have none for the check."""
    return _FEWEST_ROWS * processes.world_size


def share_left(folder: Path) -> float | None:
    """The share of the encoder's weights that the cut in an output folder left; None if there is no cut."""
    left = _facts(folder / FOLDER).get("left")
    return left if isinstance(left, float) else None


def rows_to_prune_on(dataset: FeatureDataset, model: PreTrainedModel, seed: int, processes: Processes) -> Material:
    """This process' training rows for information and refit, and others for the check, drawn by the seed.

    Processes take turns at the batches, so that together they have those of one process. The data set must
    have `fewest_rows` or more.
    """
    count = processes.world_size
    rows = np.random.default_rng(seed).permutation(len(dataset))
    checked, others = np.split(rows, [min(MOST_CHECKED, len(rows) // 5)])
    tokens = np.cumsum(dataset.lengths[others])
    enough = min(REFIT_TEXTS, int(np.searchsorted(tokens, REFIT_TOKENS)) + 1)

    def batches(chosen: np.ndarray) -> list[Batch]:
        longest_first = chosen[np.argsort(-dataset.lengths[chosen], kind="stable")]
        size = max(1, min(_BATCH, len(chosen) // max(_FEWEST_BATCHES, count)))
        starts = range(0, len(chosen), size)[processes.rank :: count]
        return [_inputs(dataset, longest_first[start : start + size], model) for start in starts]

    return Material(batches(others[:INFORMATION_TEXTS]), batches(others[:enough]), batches(checked))


def _inputs(dataset: FeatureDataset, rows: np.ndarray, model: PreTrainedModel) -> Batch:
    names = ["input_ids", "attention_mask"]
    names += ["token_type_ids"] if architecture_of(model.config).token_types else []
    batch = dataset.batch(rows)
    return {name: batch[name] for name in names}


def _stands(folder: Path, identity: dict[str, Any]) -> bool:
    """Whether the folder holds the undamaged result of this identity."""
    try:
        atomic.verify_folder(folder)
    except atomic.DamagedError:
        return False
    facts = _facts(folder)
    return all(facts.get(key) == value for key, value in identity.items())


def _facts(folder: Path) -> dict[str, Any]:
    try:
        facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _say(found: Pruned, recovers: bool) -> None:
    changed = 100 * found.agreement.changed
    logger.info("cut in %d rungs: %.1f %% of the answers to held-out rows change", found.rungs, changed)
    if found.agreement.changed > CLIFF:
        remedy = "if the recovery does not make up for it, give" if recovers else "train (--num_train_epochs), or give"
        logger.warning("more than %.0f %% of the answers change: %s a larger --keep", 100 * CLIFF, remedy)
