"""Teachers of fine-pruning: loaded, checked against the student, and asked once for all rows."""

from __future__ import annotations

import argparse
import hashlib
import logging
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from emmental import atomic
from emmental.data import FeatureDataset
from emmental.training.distributed import Environment
from emmental.training.evaluation import predict_logits
from emmental.training.precision import Precision

logger = logging.getLogger(__name__)

_LOGITS = "logits.safetensors"


def load_teacher(args: argparse.Namespace, tokenizer: Any, num_labels: int) -> nn.Module:
    """The teacher that the flags name, frozen and in evaluation mode.

    Raises:
        ValueError: it is of another type than `--teacher_type` says, was trained for another number of labels, or its
            tokenizer gives other token ids than the student's.
        OSError: it cannot be found.
    """
    name, cache_dir = args.teacher_name_or_path, args.cache_dir or None
    config = AutoConfig.from_pretrained(name, cache_dir=cache_dir)
    if args.teacher_type not in (None, config.model_type):
        raise ValueError(f"--teacher_type {args.teacher_type}, but {name} is a {config.model_type}")
    if config.num_labels != num_labels:
        raise ValueError(f"--teacher_name_or_path {name} has {config.num_labels} outputs, the task needs {num_labels}")
    _check_tokenizers(tokenizer, AutoTokenizer.from_pretrained(name, cache_dir=cache_dir), name)
    teacher, info = AutoModelForSequenceClassification.from_pretrained(
        name, cache_dir=cache_dir, output_loading_info=True
    )
    if info["missing_keys"]:
        raise ValueError(
            f"--teacher_name_or_path {name} is not fine-tuned: it lacks {sorted(info['missing_keys'])[0]} "
            f"and {len(info['missing_keys']) - 1} other weights"
        )
    return teacher.requires_grad_(False).eval()


def teacher_logits(
    args: argparse.Namespace, teacher: nn.Module, dataset: FeatureDataset, environment: Environment, cache_dir: Path
) -> Tensor:
    """The teacher's logits of every row, (N, C) float32 on this process' device: from the cache, or computed once.

    The cache's key holds the teacher's weights, masks and precision, and the rows.
    """
    precision = Precision(environment.device, args.fp16, args.bf16)
    name = f"teacher-{_fingerprint(teacher, dataset, str(precision.dtype), environment.device.type)}"
    folder = cache_dir / name
    cached = _read(folder, len(dataset)) if not args.overwrite_cache else None
    if environment.any(cached is None):
        teacher.to(environment.device)
        batch_size = args.per_gpu_eval_batch_size
        cached = predict_logits(teacher, dataset, batch_size, environment, precision, "Asking the teacher")
        if environment.is_main:
            with atomic.atomic_folder(folder) as temporary:
                save_file({"logits": cached}, temporary / _LOGITS)
        environment.barrier()
    return cached.to(environment.device)


def _check_tokenizers(student: Any, teacher: Any, name: str) -> None:
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours == theirs:
        return
    differing = sorted(token for token in {*ours, *theirs} if ours.get(token) != theirs.get(token))
    raise ValueError(
        f"--teacher_name_or_path {name} has another tokenizer than the student: {len(differing)} tokens differ, "
        f"such as {differing[0]!r}; teacher and student must give the same token ids"
    )


def _fingerprint(teacher: nn.Module, dataset: FeatureDataset, *others: str) -> str:
    digest = hashlib.sha256("/".join((dataset.fingerprint, teacher.config.to_json_string(), *others)).encode())
    for name, value in sorted(teacher.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def _read(folder: Path, rows: int) -> Tensor | None:
    if not folder.exists():
        return None
    try:
        atomic.verify_folder(folder)
        logits = load_file(folder / _LOGITS)["logits"]
    except (atomic.DamagedError, KeyError) as error:
        logger.warning("teacher cache %s is damaged and made anew: %s", folder.name, error)
        return None
    return logits if len(logits) == rows else None
