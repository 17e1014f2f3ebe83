"""The phases of one command: dense first, then pruning, one after the other for each share that is to stay."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from emmental.data import FeatureDataset
from emmental.pretrained import weights_fingerprint
from emmental.runs.run import Run
from emmental.structured.selection import Budget, weight_budget
from emmental.structured.speed import SpeedTable, measure_speed, speed_budget

DENSE_FOLDER = "dense"
SPEED_FILE = "speed.json"
_ROWS_TO_JUDGE = 200


def phase(run: Run, folder: Path | None = None, **flags: Any) -> Run:
    """A part of a run: its task, data and processes, with other flags and, if given, a folder of its own."""
    changed = copy.copy(run.flags)
    changed.__dict__.update(run.flags.__dict__)
    for name, value in flags.items():
        setattr(changed, name, value)
    if folder is not None:
        changed.output_dir = str(folder)
    part = Run(changed, run.names, run.processes)
    part.task, part.datasets, part.contents = run.task, run.datasets, dict(run.contents)
    part.output = run.output if folder is None else None
    return part


def keep_folders(run: Run) -> list[tuple[float, Path]]:
    """(share, folder) of every model that the run makes, the largest first; a single one is the run's own folder."""
    if len(run.keep) == 1:
        return [(run.keep[0], run.folder)]
    return [(share, run.folder / f"keep-{share:g}") for share in run.keep]


def is_fine_tuned(model: PreTrainedModel, fresh: Sequence[str], dataset: FeatureDataset, classes: int) -> bool:
    """Whether a model knows its task already: no weight is new, and it beats the majority class on 200 rows.

    Args:
        model: a classifier with the task's outputs.
        fresh: names of weights that its checkpoint lacks.
        dataset: training rows; the first 200 are asked.
        classes: of the task; 1 is a regression, for which predicting must beat the mean.
    """
    from emmental.runs.evaluation import model_inputs

    if fresh:
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
    if classes == 1:
        return bool(((logits[:, 0] - labels) ** 2).mean() < labels.float().var())
    return bool((logits.argmax(1) == labels).sum() > torch.bincount(labels).max())


def budget_of(run: Run, model: PreTrainedModel, keep: float) -> tuple[Budget, str]:
    """What may stay, and its name: a share of the weights, or the milliseconds that `--speedup` leaves.

    The table of milliseconds is measured once, by rank 0, and lies in the output folder: a resumed run reads it.
    """
    if run.speedup is None:
        return weight_budget(model, keep), f"keep {keep:g}"
    file, name = run.folder / SPEED_FILE, f"speedup {run.speedup:g} at {run.speedup_batch_size} x {run.speedup_length}"
    key = {"model": weights_fingerprint(model), "batch_size": run.speedup_batch_size, "length": run.speedup_length}
    with run.processes.main_first():
        if run.processes.is_main and not (file.exists() and _read(file)["of"] == key):
            table = measure_speed(copy.deepcopy(model).cpu(), run.speedup_batch_size, run.speedup_length)
            run.output.write_json(SPEED_FILE, {"of": key, "table": asdict(table)})
    stored = _read(file)["table"]
    times = {name: _by_count(value) if isinstance(value, dict) else value for name, value in stored.items()}
    return speed_budget(SpeedTable(**times), model, run.speedup), name


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def _by_count(table: dict[str, float]) -> dict[int, float]:
    """JSON keeps numbers as the keys of objects only as text."""
    return {int(count): float(value) for count, value in table.items()}
