"""The budget of a cut of heads and neurons: a share of the weights, or milliseconds, which are measured once."""

from __future__ import annotations

import copy
import json
import logging
import math
import platform
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from emmental.runs.run import Run
from emmental.shrinking import layer_sizes
from emmental.structured.gates import encoder_weights
from emmental.structured.selection import Budget, MakeCandidate, Settle, weight_budget
from emmental.structured.speed import SpeedTable, Timed, measure_speed, settled_price, speed_budget

logger = logging.getLogger(__name__)

SPEED_FILE = "speed.json"


def budget_of(
    run: Run, model: PreTrainedModel, keep: float, dense: PreTrainedModel, timed: Timed | None = None
) -> tuple[Budget, str]:
    """The budget of `model`, and its name: a share of the dense model's weights, or milliseconds for `--speedup`.

    Rank 0 measures the table of milliseconds once, in the engine `timed`, and writes it to the output folder. A
    resumed run reads it. The table does not depend on the weights, so this can be called before training.

    Raises:
        UserError: `--speedup` is out of reach.
    """
    if run.speedup is None:
        return weight_budget(model, min(1.0, keep * encoder_weights(dense) / encoder_weights(model))), f"keep {keep:g}"
    file, shape = run.folder / SPEED_FILE, (run.speedup_batch_size, run.speedup_length)
    here = platform.node()
    name = f"speedup {run.speedup:g} in {run.speedup_engine} at {shape[0]} x {shape[1]}"
    sizes = _sizes(model)
    key = {
        "type": model.config.model_type,
        "width": model.config.hidden_size,
        "sizes": sizes,
        "shape": list(shape),
        "engine": run.speedup_engine,
    }
    with run.processes.main_first():
        if run.processes.is_main and measured_speed(file, key, len(sizes)) is None:
            table = measure_speed(copy.deepcopy(model).cpu(), *shape, timed)
            run.output.write_json(SPEED_FILE, {"machine": here, "of": key, "table": asdict(table)})
            for line in table.lines():
                logger.info("%s", line)
        elif run.processes.is_main and (elsewhere := _stored(file).get("machine", here)) != here:
            logger.warning("%s was measured on %r, not here: --overwrite_output_dir measures anew", file, elsewhere)
    budget = speed_budget(measured_speed(file, key, len(sizes)), model, run.speedup, "--speedup")
    settle = partial(settled_price, budget, model, run.speedup, shape=shape, timed=timed)
    return replace(budget, settle=partial(_settled_once, run, file, settle)), name


def _settled_once(run: Run, file: Path, settle: Settle, candidate: MakeCandidate, price: float) -> float:
    """The price that rank 0 settles at, kept in `speed.json`: a resumed run and the other ranks read it there."""
    first = f"{_sizes(candidate(price))} for {price!r} ms"
    with run.processes.main_first():
        if run.processes.is_main and settled_before(file, first) is None:
            found = settle(candidate, price)
            stored = _stored(file)
            known = stored.get("settled") if isinstance(stored.get("settled"), dict) else {}
            run.output.write_json(SPEED_FILE, stored | {"settled": known | {first: found}})
    found = settled_before(file, first)
    assert found is not None
    return found


def settled_before(file: Path, first: str) -> float | None:
    """The price that was settled at for a first candidate; None if it is missing or damaged."""
    try:
        price = float(_stored(file)["settled"][first])
    except (LookupError, TypeError, ValueError, OverflowError):
        return None
    return price if math.isfinite(price) and price >= 0 else None


def _sizes(model: PreTrainedModel) -> list[list[int]]:
    return [[size.heads, size.neurons] for size in layer_sizes(model)]


def measured_speed(file: Path, key: dict[str, Any], layers: int) -> SpeedTable | None:
    """The table that was measured for `key`; None if it is missing or damaged.

    Args:
        layers: how many the model has.
    """
    stored = _stored(file)
    try:
        return SpeedTable.of(stored.get("table"), layers) if stored.get("of") == key else None
    except ValueError:
        return None


def _stored(file: Path) -> dict[str, Any]:
    """The content of `speed.json`; empty if it is missing or damaged."""
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return stored if isinstance(stored, dict) else {}
