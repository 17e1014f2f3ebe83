"""What a run will need, and which of its flags have no effect. Shown before it starts."""

from __future__ import annotations

import logging
import shutil

import torch
from transformers import AutoModelForSequenceClassification

from emmental.architectures import encoder_linears
from emmental.runs.run import Run
from emmental.training.models import load_config
from emmental.training.phases import dense_phase, in_phases, keep_folders, pruning_phase
from emmental.training.plan import Plan, plan_updates, trains
from emmental.training.recipe import STRUCTURED, trains_dense

logger = logging.getLogger(__name__)

_NUMBER, _AVERAGES = 4, 8
"""Bytes of a weight, and of its state in Adam."""


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
            not structured and run.pruning_method in ("magnitude", "fisher"),
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
