"""More text without labels. The dense model, or a given teacher, labels it for the model that is pruned."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from emmental.data import FeatureDataset, load_features
from emmental.data.joined import JoinedDataset
from emmental.data.unknown_tokens import problem
from emmental.errors import UserError
from emmental.runs.processes import memory_of
from emmental.runs.run import Run
from emmental.tasks import unlabelled_task
from emmental.tasks.task import FILE_FLAGS
from emmental.training.tasks import reading_of

logger = logging.getLogger(__name__)

FLAG = "--unlabeled_file"
_MOST_BYTES = min(1 << 30, memory_of(torch.device("cpu")) // 8)
"""Reading takes five to six times the size of a file."""


def with_unlabelled(run: Run, dataset: FeatureDataset, tokenizer: Any, cache: Path) -> FeatureDataset:
    """The training rows, followed by those of `--unlabeled_file` if it is given.

    Raises:
        UserError: a file is empty, too large, no text, or has other columns than the task.
    """
    for file in run.unlabeled_file or ():
        more = _features(run, file, tokenizer, cache)
        if line := problem(more.unknown, f"{FLAG} {file}", run.accept_unknown_tokens):
            logger.warning("%s", line)
        logger.info("text without labels: %d rows of %s, which the teacher labels", len(more), file)
        for note in more.notes:
            logger.info("%s: %s", file, note)
    return joined_with_unlabelled(run, dataset, tokenizer, cache)


def joined_with_unlabelled(run: Run, dataset: FeatureDataset, tokenizer: Any, cache: Path) -> FeatureDataset:
    """`with_unlabelled` without its messages and checks."""
    for file in run.unlabeled_file or ():
        dataset = JoinedDataset(dataset, _features(run, file, tokenizer, cache))
    return dataset


def _features(run: Run, file: str, tokenizer: Any, cache: Path) -> FeatureDataset:
    if Path(file).is_file() and Path(file).stat().st_size > _MOST_BYTES:
        size = Path(file).stat().st_size
        raise UserError(f"{FLAG} {file} has {size / 1e9:.1f} GB; up to {_MOST_BYTES / 1e9:.1f} GB are accepted")
    with run.processes.main_first():
        try:
            task = unlabelled_task(file, run.task, reading_of(run))
            return load_features(
                task, None, "test", tokenizer, run.max_seq_length, cache, show_progress=run.processes.is_main
            )
        except UserError as error:
            raise UserError(str(error).replace(FILE_FLAGS["test"], FLAG)) from None
