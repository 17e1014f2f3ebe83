"""What a run will need, and which of its flags have no effect. Shown before it starts."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence

import torch
from transformers import AutoModelForSequenceClassification

from emmental.architectures import encoder_linears
from emmental.data import FeatureDataset
from emmental.methods import method_of
from emmental.runs.run import Run
from emmental.structured.information import MOST_PASSES
from emmental.structured.rungs import RUNGS
from emmental.structured.texts import INFORMATION_TEXTS, REFIT_TEXTS, REFIT_TOKENS
from emmental.training.models import load_config
from emmental.training.phases import dense_phase, in_phases, keep_folders, pruning_phase
from emmental.training.plan import Plan, plan_updates, trains
from emmental.training.recipe import STRUCTURED, cuts_weights, trains_dense

logger = logging.getLogger(__name__)

_NUMBER, _AVERAGES = 4, 8
"""Bytes of a weight, and of its state in Adam."""

_ROW_OF_REFIT, _OUTSIDE_THE_ENCODER, _MASKED_UPDATE = 1.4, 0.2, 1.1
"""Time of a row in the refit, of the rest of a small model's update, and of a masked update, in units of the dense
model's training. Measured with MiniLM on CPUs: on SST-2 and RTE the forecast of the rest was about 10 % too high."""


def forecast(run: Run, examples: int) -> list[str]:
    """Lines about the disk space that the run needs and about flags without effect. Warns if the disk is too small.

    Args:
        run: whose flags are complete.
        examples: rows of the training set.
    """
    needed, checkpoint = disk_needed(run, examples)
    folder = next(path for path in (run.folder.absolute(), *run.folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(folder).free
    if free < needed:
        logger.warning(
            "the run writes about %.0f MB to %s, where %.0f MB are free: give another --output_dir, or a smaller "
            "--save_total_limit (now %s)",
            needed / 1e6, run.folder, free / 1e6, run.save_total_limit,
        )  # fmt: skip
    lines = [f"disk: about {needed / 1e6:.0f} MB in {run.folder}, of which {checkpoint / 1e6:.0f} MB a checkpoint"]
    idle = without_effect(run)
    return [*lines, f"without effect here: {', '.join(idle)}"] if idle else lines


def disk_needed(run: Run, examples: int) -> tuple[int, int]:
    """(most bytes that the run has on the disk at one time, bytes of its largest checkpoint), to a few per cent."""
    weights, encoder, embeddings = _sizes(run)
    trainings: list[tuple[Run, int, int]] = []  # run, numbers in the model, numbers that Adam updates
    if in_phases(run):
        if run.dense_first is not False:
            trainings.append((dense_phase(run, examples), weights, weights))
        for share, folder in keep_folders(run):
            part, left = pruning_phase(run, share, folder), weights
            if run.granularity == STRUCTURED:
                left -= int(encoder * (1 - (1.0 if run.speedup is not None else share)))
                trainings.append((part, left, left))
            else:
                trainings.append((part, weights + encoder, weights + encoder - embeddings))
    elif run.model_type.startswith("masked_"):
        trainings.append((run, weights + encoder, weights + encoder - embeddings))
    else:
        trainings.append((run, weights, weights))
    total = largest = 0
    for part, numbers, trained in trainings:
        checkpoint = _NUMBER * numbers + _AVERAGES * trained
        plan = plan_updates(part, examples, run.processes.world_size)
        total += _kept(part, plan) * checkpoint + _NUMBER * numbers
        largest = max(largest, checkpoint)
    return total, largest


def tell_what_follows(run: Run, dense: Run | None, parts: Sequence[Run], dataset: FeatureDataset) -> None:
    """Set `work_after` of each training of a run in phases. It is rough: a cut that needs more rungs takes longer.

    Args:
        dense: the dense training; None if it is skipped.
        parts: the trainings after it, one for each of `keep_folders`.
        dataset: their rows.
    """
    after = updates = 0.0
    for part, (share, _) in reversed([*zip(parts, keep_folders(run), strict=True)]):
        left = share if run.speedup is None else 1 / run.speedup
        structured = run.granularity == STRUCTURED
        update = _OUTSIDE_THE_ENCODER + (1 - _OUTSIDE_THE_ENCODER) * left if structured else _MASKED_UPDATE
        part.work_after = after / update
        updates = plan_updates(part, len(dataset), run.processes.world_size).total_updates if trains(part) else 0
        after += update * updates + (_cut(run, dataset) if structured or cuts_weights(run.flags) else 0.0)
    if dense is not None:
        answered = min(updates, len(dataset) / _rows_of_update(run))  # a forward pass of the teacher, cached
        dense.work_after = after + answered / 3


def _cut(run: Run, dataset: FeatureDataset) -> float:
    """Updates of the dense model that take as long as a cut. A forward pass is a third of an update's work."""
    rows = 0.8 * len(dataset)  # the others are for the check
    passes = 1 + 2 * max(1, min(run.task.num_labels - 1, MOST_PASSES))
    refitted = min(rows, REFIT_TEXTS, REFIT_TOKENS / float(dataset.lengths.mean()))
    return RUNGS * (min(rows, INFORMATION_TEXTS) * passes / 3 + _ROW_OF_REFIT * refitted) / _rows_of_update(run)


def _rows_of_update(run: Run) -> int:
    return run.per_gpu_train_batch_size * run.gradient_accumulation_steps * run.processes.world_size


def without_effect(run: Run) -> list[str]:
    """Flags that the user gave and that change nothing in this run, with the reason."""
    structured = run.granularity == STRUCTURED and in_phases(run)
    reasons = {
        "no teacher": (
            not in_phases(run) and run.teacher_name_or_path is None,
            ("temperature", "alpha_ce", "alpha_distil"),
        ),
        "no --speedup": (run.speedup is None, ("speedup_batch_size", "speedup_length", "speedup_engine")),
        "heads and neurons have no mask scores": (structured, _OF_SCORES),
        f"{run.pruning_method} learns no scores": (
            not structured and not method_of(run.pruning_method).learns_scores,
            ("mask_init", "mask_scale", "mask_scores_learning_rate"),
        ),
        "dense training": (trains_dense(run.flags), ("pruning_method", *_OF_SCORES)),
        "no --fp16": (not run.fp16, ("fp16_opt_level",)),
        "on a CPU it is slower than float32": (run.fp16 and run.processes.device.type == "cpu", ("fp16",)),
        "no --push_to_hub": (not run.push_to_hub, ("hub_model_id",)),
    }
    return [
        f"--{name} ({reason})"
        for reason, (holds, names) in reasons.items()
        for name in names
        if holds and name in run.explicit
    ]


_OF_SCORES = (
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


def _sizes(run: Run) -> tuple[int, int, int]:
    """Numbers in the plain model, in its encoder's matrices, and in its word embeddings."""
    config, _ = load_config(run)
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    modules = dict(model.named_modules())
    encoder = sum(modules[name].weight.numel() for name in encoder_linears(model))
    return (
        sum(one.numel() for one in model.parameters()),
        encoder,
        model.get_input_embeddings().weight.numel(),
    )


def _kept(run: Run, plan: Plan) -> int:
    """Most checkpoints that are in the folder at one time, including the one being written."""
    if not trains(run):
        return 0
    written = -(-plan.total_updates // (run.save_steps or plan.updates_per_epoch))
    limit = written if run.save_total_limit is None else run.save_total_limit + bool(run.evaluate_during_training) + 1
    return min(written, limit)
