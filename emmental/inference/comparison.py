"""Compares the forms of a model: quality, time and size of each, and which of them are not offered.

Rows are dictionaries, ready for JSON. The end of a run, the report, the card and the page show them.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from emmental import latency
from emmental.export.calibration import DYNAMIC, NO_DATA, STATIC, Calibration
from emmental.export.openvino_int8 import missing_package
from emmental.export.storage import package_sizes
from emmental.inference.engines import (
    ENGINES,
    ONNX_INT8,
    OPENVINO_INT8,
    TORCH,
    engines_for,
    from_onnx,
    named_config,
    prepare,
)
from emmental.tasks.kinds import CLASSES

MASKED, DENSE, INT8_PACKAGE = "masked", "dense", "int8 package"
FORM_TITLES = {
    MASKED: "masked, as trained",
    DENSE: "dense model, PyTorch",
    INT8_PACKAGE: "int8 package, PyTorch",
    **{name: engine.title for name, engine in ENGINES.items()},
}
"""Form or engine -> its name for people. `dense` is the model that the pruned one came from."""
MOST_POINTS = 0.3
"""An engine that rounds is offered if it loses at most this number of points of the metric on the dev data."""

FormRow = dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """Answers of one form to the rows that it is judged on, and what they are worth.

    Attributes:
        logits: (N, C), the classes of all forms in the same order.
        metrics: name -> value.
        judged: the primary metric, which says whether the form is offered.
        agrees: two forms' logits -> the share of rows to which both give the same answer; None for scores.
    """

    logits: np.ndarray
    metrics: Mapping[str, float]
    judged: float
    agrees: Callable[[np.ndarray, np.ndarray], float | None] = CLASSES.agreement


@dataclass
class Judge:
    """Evaluates the forms of one model on the same rows, each form once.

    Attributes:
        evaluate: form as a model, and its title for people -> its evaluation.
        threads: of engines that have their own.
        config: of the model.
        evaluations: of each form; the first form is the model that the others are compared with.
    """

    evaluate: Callable[[nn.Module, str], Evaluation]
    threads: int
    config: PreTrainedConfig
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    _int8: dict[str, Evaluation] = field(default_factory=dict)

    def judge(self, form: str, model: nn.Module, int8_form: str | None = None) -> None:
        """Evaluate a form, unless that is done. `int8_form`: of int8 in ONNX Runtime, which `accepts` may know."""
        if form not in self.evaluations:
            known = self._int8.get(int8_form) if form == ONNX_INT8 else None
            self.evaluations[form] = known or self.evaluate(model, FORM_TITLES[form])

    def accepts(self, file: Path) -> bool:
        """Whether int8 in an ONNX file, named after its form of int8, loses little enough to be offered."""
        model = from_onnx(file, ONNX_INT8, self.threads, self.config)
        int8 = self._int8[file.stem.partition("-")[0]] = self.evaluate(model, FORM_TITLES[ONNX_INT8])
        return costs_little(100 * (int8.judged - next(iter(self.evaluations.values())).judged))


@dataclass(frozen=True)
class Comparison:
    """Forms of one model on this machine.

    Attributes:
        quality: rows of `quality`; the first form is the one that the others are compared with.
        latency: rows of `latencies`.
        not_offered: form -> why, see `not_offered`.
        int8_form: of int8 in ONNX Runtime, a name in `emmental.export.calibration.FORMS`; None without it.
    """

    quality: list[FormRow]
    latency: list[FormRow]
    not_offered: dict[str, str]
    int8_form: str | None


def compare(
    judge: Judge,
    models: Mapping[str, nn.Module],
    shapes: Sequence[tuple[int, int]],
    vocab_size: int,
    seconds: float = 2.0,
    int8_form: str | None = None,
) -> Comparison:
    """Evaluate and time forms of one model.

    Args:
        judge: has judged the form that the others are compared with.
        models: form -> model. The int8 package is not timed: it is PyTorch fp32 once it is loaded.
        shapes: (rows, tokens of each).
        vocab_size: of the model.
        seconds: for each form and shape.
        int8_form: see `Comparison`.
    """
    for form, model in models.items():
        judge.judge(form, model, int8_form)
    rows = quality(judge.evaluations)
    timed = {form: model for form, model in models.items() if form in ENGINES or form == DENSE}
    times = latencies(timed, shapes, judge.threads, vocab_size, seconds)
    return Comparison(rows, times, not_offered(rows), int8_form)


def compare_engines(
    model: PreTrainedModel,
    evaluate: Callable[[nn.Module, str], Evaluation],
    shape: tuple[int, int] = (1, 128),
    engines: Iterable[str] | None = None,
    threads: int | None = None,
    calibration: Sequence[Mapping[str, Tensor]] = (),
) -> Comparison:
    """Try engines on the same rows and the same shape.

    With `calibration`, dynamic and static int8 are tried: of those that cost little, the one closer to fp32 is kept.

    Args:
        model: masked, plain or small.
        evaluate: an engine, and its title -> its evaluation.
        shape: rows, and tokens of each, that are timed.
        engines: names; all that this machine offers for the model if absent. PyTorch fp32 is always among them.
        threads: PyTorch's number if absent.
        calibration: batches of inputs that are not among the rows judged, each (batch, length) int64.
    """
    model, threads = latency.on_cpu(model), torch.get_num_threads() if threads is None else threads
    calibrated = bool(calibration) and missing_package() is None
    names = dict.fromkeys([TORCH, *(engines_for(model, calibrated) if engines is None else engines)])
    judge = Judge(evaluate, threads, named_config(model))
    judge.judge(TORCH, prepare(model, TORCH, threads))
    choice = Calibration(calibration, (DYNAMIC, STATIC), judge.accepts)
    with in_engines(model, names, threads, choice) as (models, int8_form):
        return compare(judge, models, [shape], model.config.vocab_size, int8_form=int8_form)


@contextmanager
def in_engines(
    model: PreTrainedModel, engines: Iterable[str], threads: int, calibration: Calibration = NO_DATA
) -> Iterator[tuple[dict[str, nn.Module], str | None]]:
    """Engine -> the model in it, and the form of int8 that was kept, if any. Files that they need are temporary."""
    with tempfile.TemporaryDirectory() as place:
        folder, names, int8_form = Path(place) / "onnx", list(engines), None
        if any(ENGINES[name].package for name in names):
            from emmental.export.onnx import write_onnx_folder

            int8, openvino = ONNX_INT8 in names, OPENVINO_INT8 in names
            export = write_onnx_folder(model, {}, folder, int8, calibration=calibration, openvino=openvino)
            int8_form = export.int8_form
        yield {name: prepare(model, name, threads, folder) for name in names}, int8_form


def quality(evaluations: Mapping[str, Evaluation]) -> list[FormRow]:
    """How well each form answers, and how far its logits are from those of the first.

    Returns:
        A row for each: `name`, `metrics` (name -> value), `judged`, the primary metric that decides, `rows`,
        `largest_difference` of a logit, and `agreement`, the share of rows with the same answer (scores: None).
    """
    first = next(iter(evaluations.values())).logits
    return [
        {
            "name": form,
            "metrics": dict(one.metrics),
            "judged": one.judged,
            "rows": len(first),
            "largest_difference": float(np.abs(one.logits - first).max()),
            "agreement": one.agrees(one.logits, first),
        }
        for form, one in evaluations.items()
    ]


def latencies(
    models: Mapping[str, nn.Module],
    shapes: Sequence[tuple[int, int]],
    threads: int,
    vocab_size: int,
    seconds: float = 2.0,
) -> list[FormRow]:
    """Times of each model at every shape (rows, tokens of each): the fields of `latency.Latency`, and `speedup`.

    `speedup` is against the dense model, or, if that is unknown, against plain PyTorch.
    """
    rows, baseline = [], DENSE if DENSE in models else TORCH
    for batch, length in shapes:
        measured = latency.measure(models, batch, length, threads, vocab_size, seconds)
        ratios = latency.speedups(measured, baseline)
        rows += [asdict(row) | {"speedup": ratios[row.model, batch, length, threads]} for row in measured]
    return rows


def sizes(files: Mapping[str, Path], model: PreTrainedModel, dense: PreTrainedModel | None = None) -> list[FormRow]:
    """Bytes of each file.

    Args:
        files: form -> its file of weights, or its package.
        model: the one that they hold.
        dense: the one that the form `dense` holds.

    Returns:
        A row for each: `name`, `bytes`, `without_embeddings`, and of packages `matrices`, the pruned matrices with
        their positions, and `bound`, the entropy of the positions and the bits of the values.
    """
    rows = []
    for form, file in files.items():
        if file.suffix == ".emmental":
            parts = package_sizes(file)
            rows.append({"name": form, "bytes": parts.file, "without_embeddings": parts.without_embeddings})
            rows[-1] |= {"matrices": parts.matrices, "bound": parts.bound}
        else:
            size, width = file.stat().st_size, 1 if form == ONNX_INT8 else 4
            embeddings = _embeddings(dense if form == DENSE and dense is not None else model)
            rows.append({"name": form, "bytes": size, "without_embeddings": size - width * embeddings})
    return rows


def _embeddings(model: PreTrainedModel) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if name.endswith("_embeddings.weight"))


def costs_little(points: float) -> bool:
    """Whether an engine may change the metric by this number of points (of 100)."""
    return points >= -MOST_POINTS - 1e-9


def not_offered(rows: Sequence[FormRow]) -> dict[str, str]:
    """Engine -> why, for engines that round and lose too much; `rows` are those of `quality`."""
    refused = {}
    for row in rows:
        points = 100 * (row["judged"] - rows[0]["judged"])
        if row["name"] in ENGINES and ENGINES[row["name"]].rounds and not costs_little(points):
            changed = f" and changes {changed_answers(row)}" if row["agreement"] is not None else ""
            title = FORM_TITLES[row["name"]]
            refused[row["name"]] = f"{title} loses {-points:.2f} points{changed}; at most {MOST_POINTS} may be lost"
    return refused


def best_engine(times: Sequence[FormRow], excluded: Iterable[str]) -> FormRow | None:
    """The row of `latencies` with the highest speed-up of the best engine; None if none was timed.

    The best engine has the highest speed-up over all shapes (geometric mean). The dense model and `excluded`
    engines, which lose too much, are left out.
    """
    rows = [row for row in times if row["model"] not in (DENSE, *excluded)]
    names = dict.fromkeys(row["model"] for row in rows)
    if not names:
        return None
    best = max(names, key=lambda name: math.fsum(math.log(row["speedup"]) for row in rows if row["model"] == name))
    return max((row for row in rows if row["model"] == best), key=lambda row: row["speedup"])


def changed_answers(row: FormRow) -> str:
    """As `0.30 % of the answers`: the answer to so many rows differs from that of the first form."""
    return f"{100 * (1 - row['agreement']):.2f} % of the answers"
