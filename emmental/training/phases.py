"""The phases of one command: dense first, then one pruning phase for each share."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import ROUND_UP, Context, Decimal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from emmental.architectures import base_model_type, longest_input
from emmental.data import FeatureDataset
from emmental.errors import UserError
from emmental.modules.binarizer import count_kept
from emmental.runs.evaluation import model_inputs
from emmental.runs.output_folder import RECORD, OutputFolder
from emmental.runs.precision import bf16_in_hardware
from emmental.runs.resuming import checkpoint_to_resume, lock_output, open_output
from emmental.runs.run import Run
from emmental.training.models import load_config
from emmental.training.plan import plan_updates, trains
from emmental.training.recipe import (
    HARD_CUT,
    STRUCTURED,
    Facts,
    cut_weights_values,
    cuts_weights,
    dense_model_teaches,
    dense_values,
    fill_in,
    structured_values,
    trains_dense,
    unstructured_values,
)
from emmental.training.structured import encoder_weights_of, fewest_rows, share_left, surgeon_fits

logger = logging.getLogger(__name__)

DENSE_FOLDER, KEEP_FOLDER = "dense", "keep-"
_ROWS_TO_JUDGE = 200


def phase(run: Run, folder: Path | None = None, **flags: Any) -> Run:
    """A part of a run: the same task, data and processes, other flags and, if given, another folder."""
    changed = copy.copy(run.flags)
    vars(changed).update(flags)
    if folder is not None:
        changed.output_dir = str(folder)
    part = Run(changed, run.names, run.processes)
    part.task, part.datasets, part.contents = run.task, run.datasets, dict(run.contents)
    return part


@contextmanager
def opened(part: Run, whole: Run) -> Iterator[None]:
    """Lock the part's folder inside the block. The folder of the whole run is locked already.

    Raises:
        UserError: see `open_output`.
    """
    own = part.folder != whole.folder
    part.output = None if own else whole.output
    try:
        open_output(part)
        yield
    finally:
        if own and part.output is not None:
            part.output.close()


def lock_whole(run: Run) -> None:
    """Lock the folder that the parts of a run share. `--overwrite_output_dir` clears it and those of earlier parts.

    Raises:
        UserError: another run is using it.
    """
    folders = [run.folder / DENSE_FOLDER, *sorted(run.folder.glob(f"{KEEP_FOLDER}*"))]
    with run.processes.main_first():
        if not run.processes.is_main:
            return
        lock_output(run)
        for folder in folders if run.overwrite_output_dir else []:
            if (folder / RECORD).is_file():
                part = OutputFolder(folder)
                part.start_afresh()
                part.close()


def in_phases(run: Run) -> bool:
    """Whether the run has several phases."""
    return dense_model_teaches(run.flags)


def facts_of(run: Run, examples: int) -> Facts:
    """The facts that the recipe depends on."""
    config, _ = load_config(run)
    on_gpu = run.processes.device.type == "cuda"
    has_bf16 = torch.cuda.is_bf16_supported() if on_gpu else bf16_in_hardware()
    return Facts(examples, config.hidden_size, run.processes.world_size, has_bf16)


def apply_recipe(run: Run, examples: int) -> dict[str, Any]:
    """Set the flags that the recipe decides for the last phase. Returns flag -> value of those that it set."""
    if run.recipe != "auto":
        return {}
    facts = facts_of(run, examples)
    if trains_dense(run.flags):
        return fill_in(run.flags, dense_values(facts))
    if run.granularity == STRUCTURED:
        return fill_in(run.flags, structured_values(facts, min(run.keep)))
    if cuts_weights(run.flags):
        return fill_in(run.flags, cut_weights_values(facts, min(run.keep), surgeon_fits(run, load_config(run)[0])))
    return fill_in(run.flags, unstructured_values(facts, run.pruning_method, min(run.keep)))


def dense_phase(run: Run, examples: int) -> Run:
    """The run that fine-tunes dense, in its own folder. The recipe decides its length and rates."""
    config, _ = load_config(run)
    flags: dict[str, Any] = {"model_type": base_model_type(config.model_type), "alpha_ce": 0.5, "alpha_distil": 0.5}
    flags["save_dtype"] = "float32"  # pruning starts from the unrounded weights
    if run.recipe == "auto":
        values = dense_values(facts_of(run, examples)) | {"warmup_steps": None, "max_steps": -1}
        own = {"num_train_epochs", "max_steps", "learning_rate", "warmup_steps"}
        flags |= {name: value for name, value in values.items() if name in own or name not in run.flags.explicit}
    return phase(run, run.folder / DENSE_FOLDER, **flags)


def pruning_phase(run: Run, share: float, folder: Path) -> Run:
    """The run that trains while the encoder is pruned to a share, or after that."""
    flags: dict[str, Any] = {"final_threshold": share}
    if run.granularity == STRUCTURED:
        config, _ = load_config(run)
        flags = {"model_type": base_model_type(config.model_type)}
        if _recipe_decides_rate(run):
            known = share_left(folder) if run.speedup is not None else None
            flags["learning_rate"] = facts_of(run, 0).recovery_rate(known or share)
    elif run.recipe == "paper":
        flags = {}
    elif cuts_weights(run.flags):
        flags["initial_threshold"] = share  # all that is pruned is zero before the first update
    return phase(run, None if folder == run.folder else folder, **flags)


def _recipe_decides_rate(run: Run) -> bool:
    return run.recipe == "auto" and "learning_rate" not in run.flags.explicit


def settle_rate(part: Run) -> None:
    """With `--speedup`, set the recipe's learning rate. It depends on the share that the cut has left."""
    if part.speedup is None or not _recipe_decides_rate(part) or (left := share_left(part.folder)) is None:
        return
    part.learning_rate = facts_of(part, 0).recovery_rate(left)
    part.record()
    logger.info("%.1f %% of the encoder stay; learning rate of the recovery: %g", 100 * left, part.learning_rate)


def plan_of_run(run: Run, examples: int) -> list[str]:
    """Set the flags that the recipe decides, and describe the run, a line for each phase.

    Raises:
        UserError: the plan cannot work.
    """
    filled = apply_recipe(run, examples)
    last = pruning_phase(run, *keep_folders(run)[-1]) if in_phases(run) else run
    plan = plan_updates(last, examples, run.processes.world_size)
    problem = (plan.problem() if trains(run) else None) or (phases_problem(run) if in_phases(run) else None)
    if problem := problem or (keep_problem(run) if run.keep else None):
        raise UserError(problem)
    if run.unlabeled_file and run.recipe == "auto" and trains(run):
        run.max_steps = plan.total_updates  # more text must not change the number of updates
    _refuse_misfits(run, examples)
    if warning := plan.warning():
        logger.warning("%s", warning)
    lines = phases_text(run, examples) if in_phases(run) else []
    if run.granularity == STRUCTURED:
        filled.pop("learning_rate", None)  # the line of the phase has it for each share
    if filled:
        lines.insert(
            0, "filled in by --recipe auto: " + ", ".join(f"--{name} {value}" for name, value in filled.items())
        )
    return lines if run.granularity == STRUCTURED or cuts_weights(run.flags) else [*lines, *plan.lines()]


def _refuse_misfits(run: Run, examples: int) -> None:
    """Check that the output folder and the number of rows fit a run whose flags are complete.

    Raises:
        UserError: a folder holds another run, or there are too few training rows.
    """
    parts = [pruning_phase(run, share, folder) for share, folder in keep_folders(run)] if in_phases(run) else [run]
    for part in parts if not run.overwrite_output_dir else []:
        checkpoint_to_resume(part, flags_only=True)
    fewest = fewest_rows(run.processes)
    cuts = run.granularity == STRUCTURED or cuts_weights(run.flags)
    if in_phases(run) and cuts and examples < fewest:
        raise UserError(f"--granularity {run.granularity} needs {fewest} training rows or more, not {examples}")


def phases_text(run: Run, examples: int) -> list[str]:
    """What the run will do, a line for each phase."""
    before = dense_phase(run, examples)
    dense = plan_updates(before, examples, run.processes.world_size)
    after = plan_updates(run, examples, run.processes.world_size)
    rate = f"at learning rate {before.learning_rate:g}"
    first = "omitted" if run.dense_first is False else f"{dense.total_updates} updates {rate}"
    unless = " (skipped if the model is fine-tuned already)" if run.dense_first is None else ""
    lines = [f"phase 1, dense: {first}{unless}"]
    each = " each" if len(run.keep or ()) > 1 else ""
    updates = after.total_updates if trains(run) else 0
    if run.granularity == STRUCTURED:
        shares = ", ".join(f"{share:.1%}" for share in run.keep) + " of the encoder stay"
        budget = shares if run.speedup is None else f"until {run.speedup:g} times as fast"
        rates = f" at learning rate {_rates_text(run)}" if updates else ""
        lines.append(f"phase 2, heads and neurons: {budget}, then {updates} updates{each}{rates}")
    else:
        shares = ", ".join(f"{share:.1%}" for share in run.keep or [run.final_threshold])
        then = "then " if cuts_weights(run.flags) else ""
        lines.append(f"phase 2, single weights by {run.pruning_method}: {shares} stay, {then}{updates} updates{each}")
    return lines


def _rates_text(run: Run) -> str:
    if not _recipe_decides_rate(run):
        return f"{run.learning_rate:g}"
    rate = facts_of(run, 0).recovery_rate
    if run.speedup is not None:
        return f"{rate(1.0):g}, or {rate(HARD_CUT):g} if {HARD_CUT:.0%} or less of the encoder stay"
    return ", ".join(f"{rate(share):g}" for share in run.keep)


def phases_problem(run: Run) -> str | None:
    """Why a part of the run cannot work, in one line; None if no reason is known."""
    config, called = load_config(run)
    if run.speedup is not None and run.speedup_length > longest_input(config):
        return f"--speedup_length {run.speedup_length} is more than the {longest_input(config)} positions of {called}"
    return None


def keep_problem(run: Run) -> str | None:
    """Why so few weights cannot stay, in one line; None if at least one stays."""
    config, called = load_config(run)
    whole = encoder_weights_of(config)
    if count_kept(min(run.keep), whole) > 0:
        return None
    least = Context(prec=2, rounding=ROUND_UP).divide(Decimal(1), Decimal(whole))
    asked = f"--keep {min(run.keep):g}"
    return f"{asked} is less than one of the {whole:,} encoder weights of {called}; give {least:g} or more"


def keep_folders(run: Run) -> list[tuple[float, Path]]:
    """(share, folder) of every model of the run, the largest first. A single model is in the run's own folder."""
    if len(run.keep or ()) < 2:
        return [(run.keep[0] if run.keep else run.final_threshold, run.folder)]
    return [(share, run.folder / f"{KEEP_FOLDER}{share:.12g}") for share in run.keep]


def is_fine_tuned(model: PreTrainedModel, dataset: FeatureDataset) -> bool:
    """Whether a model is fine-tuned already: its classifier is trained, and it beats the majority class on 200 rows.

    Args:
        model: a classifier with the task's outputs. One output is a regression, which must beat the mean.
        dataset: training rows; the first 200 are used.
    """
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    if last.bias is not None and not last.bias.any():
        # Every type starts its classifier with a bias of exactly zero; the first update changes it.
        return False
    rows = np.arange(min(_ROWS_TO_JUDGE, len(dataset)))
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


def needs_dense_phase(run: Run, model: PreTrainedModel, dataset: FeatureDataset) -> bool:
    """Whether the model is fine-tuned dense before it is pruned.

    Raises:
        UserError: nothing is trained, and the model is not fine-tuned.
    """
    if run.dense_first is not None:
        return run.dense_first
    known = not run.processes.any(not is_fine_tuned(model, dataset))
    if not known and not trains(run):
        raise UserError(
            f"--num_train_epochs 0 needs a model fine-tuned for the task, but {run.model_name_or_path} is not; "
            f"omit the flag, or give --dense_first"
        )
    return not known
