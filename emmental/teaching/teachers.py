"""Teachers: loaded, checked against the student, and run once over all rows."""

from __future__ import annotations

import hashlib
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from emmental import atomic
from emmental.architectures import longest_input
from emmental.data import FeatureDataset
from emmental.data.features import writing_cache
from emmental.data.tokenization import differing_tokens, load_tokenizer
from emmental.errors import UserError
from emmental.pretrained import bytes_of, from_pretrained, weights_fingerprint
from emmental.runs.evaluation import predict_logits
from emmental.runs.precision import Precision, precision_of_answers
from emmental.runs.processes import Processes
from emmental.runs.run import Run
from emmental.tasks import Task, class_order
from emmental.tasks.classes import say_if_unnamed
from emmental.teaching.hidden_states import (
    HiddenStateMatch,
    TeacherStates,
    compared_layers,
    layer_map,
    projection_between,
)
from emmental.teaching.units import in_unit_of_labels

logger = logging.getLogger(__name__)

_LOGITS = "logits.safetensors"
_PROBE = "Café: the model, PRUNED to 10 %, isn't unaffordable."
"""A text with case, accents, punctuation and word pieces: tokenizers that share a vocabulary can differ here."""


def load_teacher(run: Run, tokenizer: Any, task: Task) -> nn.Module:
    """The teacher that the flags name, frozen and in evaluation mode; its fingerprint is added to the run's contents.

    Raises:
        UserError: it is of another type than `--teacher_type` says, was trained for other classes than the task's, or
            its tokenizer gives other token ids than the student's.
    """
    name, found = run.teacher_name_or_path, {"flag": "--teacher_name_or_path", "cache_dir": run.cache_dir or None}
    config = from_pretrained(AutoConfig, name, **found)
    if run.teacher_type not in (None, config.model_type):
        raise UserError(f"--teacher_type {run.teacher_type}, but {name} is a {config.model_type}")
    class_order(task, config, *_teachers_classes(run))
    if getattr(config, "max_position_embeddings", None) and run.max_seq_length > longest_input(config):
        raise UserError(
            f"--max_seq_length {run.max_seq_length} is more than the {longest_input(config)} positions of "
            f"--teacher_name_or_path {name}"
        )
    say_if_unnamed(task, config, f"--teacher_name_or_path {name}")
    _check_tokenizers(tokenizer, load_tokenizer(name, **found), name)
    teacher, info = from_pretrained(
        AutoModelForSequenceClassification, name, config=config, output_loading_info=True, **found
    )
    if info["missing_keys"]:
        raise UserError(
            f"--teacher_name_or_path {name} is not fine-tuned: it lacks {sorted(info['missing_keys'])[0]} "
            f"and {len(info['missing_keys']) - 1} other weights"
        )
    run.contents["teacher_weights"] = weights_fingerprint(teacher)
    return teacher.requires_grad_(False).eval()


def teacher_logits(
    run: Run,
    teacher: nn.Module,
    dataset: FeatureDataset,
    processes: Processes,
    cache_dir: Path,
    rows: np.ndarray | None = None,
) -> Tensor:
    """The teacher's logits of `rows` (default: all), from the cache, or computed once.

    Column `c` is class `c` of the task, whatever the order of the teacher's outputs. The cache has
    the teacher's own order; its key holds the teacher's weights, masks and precision, the data set and the rows.

    Returns:
        (N, C) float32 on this process' device, NaN in the other rows.
    """
    rows = None if rows is not None and len(rows) == len(dataset) else rows
    folder = _folder(run, teacher, dataset, processes, cache_dir, rows)
    cached = _read(folder, len(dataset)) if not run.overwrite_cache else None
    if processes.any(cached is None):
        cached = _ask(run, teacher, dataset, processes, folder, rows)
    order = class_order(run.task, teacher.config, *_teachers_classes(run))
    if run.task.is_regression:
        cached = in_unit_of_labels(cached, dataset.labels, _teachers_classes(run)[0])
    return cached[:, np.argsort(order)].to(processes.device)


def teaching(
    run: Run, teacher: nn.Module | None, model: nn.Module, dataset: FeatureDataset, cache_dir: Path, rows: np.ndarray
) -> tuple[Tensor | None, HiddenStateMatch | None]:
    """The teacher's logits of `rows`, and how hidden states are compared; each None if not used."""
    if teacher is None:
        return None, None
    hidden = hidden_state_match(run, teacher, model)
    asked = dataset if dataset.for_teacher is None else dataset.for_teacher
    return teacher_logits(run, teacher, asked, run.processes, cache_dir, rows), hidden


def _teachers_classes(run: Run) -> tuple[str, list[str] | None, str]:
    """The teacher's name in messages, the class names that the user gave for it, and the flag that takes them."""
    return f"--teacher_name_or_path {run.teacher_name_or_path}", run.teacher_label_names, "--teacher_label_names"


def teacher_layer_map(run: Run, teacher: nn.Module, student: nn.Module) -> list[int] | None:
    """For each layer of the student the teacher's, as in `layer_map`; None if hidden states are not compared.

    Raises:
        UserError: `--teacher_layers` does not fit.
    """
    if run.alpha_hidden_cos == 0 and run.alpha_hidden_mse == 0:
        return None
    return layer_map(student.config.num_hidden_layers, teacher.config.num_hidden_layers, run.teacher_layers)


def hidden_state_match(run: Run, teacher: nn.Module, student: nn.Module) -> HiddenStateMatch | None:
    """How hidden states are compared, as the flags say; None when both weights are 0.

    Raises:
        UserError: see `teacher_layer_map`.
    """
    if (layers := teacher_layer_map(run, teacher, student)) is None:
        return None
    device = run.processes.device
    projection = projection_between(student.config.hidden_size, teacher.config.hidden_size, run.seed).to(device)
    precision = Precision(device, run.fp16, run.bf16)
    return HiddenStateMatch(TeacherStates(teacher.to(device), compared_layers(layers), precision), layers, projection)


def _ask(
    run: Run,
    teacher: nn.Module,
    dataset: FeatureDataset,
    processes: Processes,
    folder: Path,
    rows: np.ndarray | None = None,
) -> Tensor:
    """Logits of `rows` (default: all), in one pass, cached in `folder`."""
    started = time.monotonic()
    precision = precision_of_answers(processes.device, run.fp16, run.bf16, run.task.is_regression)
    logits = predict_logits(
        teacher.to(processes.device),
        dataset,
        run.per_gpu_train_batch_size,  # the evaluation's batch size must not change the result
        processes,
        precision,
        "Running the teacher",
        rows,
    )
    if processes.is_main:
        with writing_cache(folder), atomic.atomic_folder(folder, damaged_too=True) as temporary:
            save_file({"logits": logits}, temporary / _LOGITS)
    processes.barrier()
    seconds = time.monotonic() - started
    count = len(dataset if rows is None else rows)
    logger.info("the teacher computed logits of %d rows in %.1f s, once for the whole run", count, seconds)
    return logits


def _folder(
    run: Run,
    teacher: nn.Module,
    dataset: FeatureDataset,
    processes: Processes,
    cache_dir: Path,
    rows: np.ndarray | None = None,
) -> Path:
    precision = precision_of_answers(processes.device, run.fp16, run.bf16, run.task.is_regression)
    some = [] if rows is None else [hashlib.sha256(rows.tobytes()).hexdigest()]
    fingerprint = _fingerprint(teacher, dataset, str(precision.dtype), processes.device.type, *some)
    return _place(cache_dir / f"teacher-{fingerprint}")


def _place(meant: Path) -> Path:
    folder = atomic.unclaimed(meant)
    if folder != meant:
        logger.warning("%s is not a complete teacher cache; it is left alone and another folder is used", meant)
    return folder


def _is_sound(folder: Path) -> bool:
    if not folder.exists():
        return False
    try:
        atomic.verify_folder(folder)
    except atomic.DamagedError as error:
        logger.warning("teacher cache %s is damaged and made again: %s", folder.name, error)
        return False
    return True


def _check_tokenizers(student: Any, teacher: Any, name: str) -> None:
    differing = differing_tokens(student, teacher)
    if not differing and student(_PROBE)["input_ids"] == teacher(_PROBE)["input_ids"]:
        return
    if not differing:
        raise UserError(
            f"--teacher_name_or_path {name} has the student's vocabulary but splits texts differently (upper case, "
            "accents, special tokens); teacher and student must give the same token ids"
        )
    raise UserError(
        f"--teacher_name_or_path {name} has another tokenizer than the student: {len(differing)} tokens differ, "
        f"such as {differing[0]!r}; teacher and student must give the same token ids"
    )


def _fingerprint(teacher: nn.Module, dataset: FeatureDataset, *others: str) -> str:
    digest = hashlib.sha256("/".join((dataset.fingerprint, teacher.config.to_json_string(), *others)).encode())
    for name, value in sorted(teacher.state_dict().items()):
        digest.update(name.encode())
        digest.update(bytes_of(value))
    return digest.hexdigest()[:32]


def _read(folder: Path, rows: int) -> Tensor | None:
    if not _is_sound(folder):
        return None
    logits = load_file(folder / _LOGITS).get("logits")
    return logits if logits is not None and len(logits) == rows else None
