"""The engines that a classifier runs on: which of them this machine has, their quality, their speed.

`prepare` loads a model into one engine; all engines are called in the same way. `measure` times it. `compare` tries
several on the same rows, and `best_engine` names the fastest of those that lose at most `MOST_POINTS` on them.
"""

from __future__ import annotations

import copy
import importlib.util
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from emmental.architectures import architecture_of, base_model_type, takes_token_types
from emmental.errors import UserError
from emmental.export.bertarize import bertarize
from emmental.export.calibration import DYNAMIC, FORMS, STATIC, Calibration
from emmental.export.openvino_int8 import OPENVINO_FILE, missing_package, write_openvino_int8
from emmental.export.outputs import OUTPUTS
from emmental.inference.latency import measure as measure_in_turns
from emmental.inference.latency import random_batch
from emmental.patching import masked_layers
from emmental.runs.precision import bf16_in_hardware
from emmental.shrinking import first_token_form

TORCH, TORCH_BF16, SPARSE = "torch", "torch-bf16", "sparse"
ONNX, ONNX_INT8 = "onnx", "onnx-int8"
OPENVINO, OPENVINO_BF16, OPENVINO_INT8 = "openvino", "openvino-bf16", "openvino-int8"
MOST_POINTS = 0.3
"""An engine that rounds is offered if it loses at most this number of points of the metric on the dev data."""


@dataclass(frozen=True)
class Engine:
    """One way to run a model.

    Attributes:
        title: its name for people.
        package: the package that it needs besides PyTorch, as pip calls it; None: none.
        bf16: it computes in bfloat16, which is only fast if the processor has it in hardware.
        rounds: its answers may differ, so it is compared on data first.
        calibrated: it needs its own file, which `emmental.export.onnx` writes with calibration texts.
        code: a line of Python that loads the model; `{folder}` is the model's folder, `{onnx}` that of its ONNX files.
    """

    title: str
    code: str
    package: str | None = None
    bf16: bool = False
    rounds: bool = False
    calibrated: bool = False


_LOAD = 'AutoModelForSequenceClassification.from_pretrained("{folder}"'
_OPENVINO = 'openvino.compile_model("{onnx}/onnx/model.onnx", "CPU", {{"INFERENCE_PRECISION_HINT": "%s"}})'
ENGINES = {
    TORCH: Engine("PyTorch fp32", f"model = {_LOAD})"),
    TORCH_BF16: Engine("PyTorch bf16", f'model = {_LOAD}, dtype="bfloat16")', bf16=True, rounds=True),
    SPARSE: Engine("sparse, emmental", 'model = emmental.export.sparse.load_sparse("{folder}")'),
    ONNX: Engine(
        "ONNX Runtime fp32", 'session = onnxruntime.InferenceSession("{onnx}/onnx/model.onnx")', "onnxruntime"
    ),
    ONNX_INT8: Engine(
        "ONNX Runtime int8",
        'session = onnxruntime.InferenceSession("{onnx}/onnx/model_quantized.onnx")',
        "onnxruntime",
        rounds=True,
    ),
    OPENVINO: Engine("OpenVINO fp32", f"model = {_OPENVINO % 'f32'}", "openvino"),
    OPENVINO_BF16: Engine("OpenVINO bf16", f"model = {_OPENVINO % 'bf16'}", "openvino", bf16=True, rounds=True),
    OPENVINO_INT8: Engine(
        "OpenVINO int8",
        f'model = openvino.compile_model("{{onnx}}/{OPENVINO_FILE}", "CPU")',
        "openvino",
        rounds=True,
        calibrated=True,
    ),
}


def costs_little(points: float) -> bool:
    """Whether an engine may change the metric by this number of points (of 100)."""
    return points >= -MOST_POINTS - 1e-9


def why_not(engine: str) -> str | None:
    """Why this machine does not offer an engine, in words; None if it does.

    Raises:
        UserError: no such engine.
    """
    if engine not in ENGINES:
        raise UserError(f"--engine accepts {', '.join(ENGINES)}, not {engine}")
    known = ENGINES[engine]
    for package in (known.package, "onnx", "onnxruntime") if known.package else ():  # the last two check every file
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed: pip install {package}"
    if known.bf16 and not bf16_in_hardware():
        return "the processor has no bfloat16 in hardware (AVX-512 BF16 or AMX)"
    return None


def why_not_timed(engine: str) -> str | None:
    """Why this machine cannot time models that have no files yet, in words; None if it can."""
    if (reason := why_not(engine)) is None and ENGINES[engine].calibrated and (package := missing_package()):
        reason = f"{package} is not installed: pip install {package}"
    return reason


def available(calibrated: bool = False) -> list[str]:
    """Names of the engines that this machine offers. `calibrated`: include those that need a calibrated file."""
    return [name for name, known in ENGINES.items() if why_not(name) is None and calibrated >= known.calibrated]


class TorchEngine(nn.Module):
    """A Transformers classifier in plain PyTorch, called like every other engine.

    If it reads only the first token, its last layer is computed for that one: same logits, less work.
    """

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model = copy.deepcopy(first_token_form(model)).to(dtype).eval().requires_grad_(False)
        self.config = _named_config(model)

    @torch.inference_mode()
    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> ModelOutput:
        """All inputs (batch, length) int64; the outputs among `OUTPUTS`, such as `logits`, float32."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask}
        if takes_token_types(self.config) and token_type_ids is not None:
            given["token_type_ids"] = token_type_ids
        found = self.model(**given)
        return ModelOutput({name: found[name].float() for name in OUTPUTS if name in found})


class OpenVinoEngine(nn.Module):
    """An ONNX file in OpenVINO, on the CPU."""

    def __init__(self, path: Path, config: Any, threads: int, precision: str) -> None:
        """Args:
        path: of an ONNX file, or of OpenVINO's own.
        config: of the model.
        threads: of OpenVINO.
        precision: `f32` or `bf16`.
        """
        import openvino

        super().__init__()
        options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
        self.compiled = openvino.compile_model(path, "CPU", options)
        self.config = config
        self.input_names = [value.any_name for value in self.compiled.inputs]
        self.output_names = [value.any_name for value in self.compiled.outputs]

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> ModelOutput:
        """All inputs (batch, length) int64; the outputs of the file, such as `logits`, float32."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        given = {"input_ids": input_ids, "attention_mask": mask, "token_type_ids": types}
        found = self.compiled({name: given[name].numpy() for name in self.input_names})
        values = (torch.from_numpy(found[place].copy()) for place in range(len(self.output_names)))
        return ModelOutput(zip(self.output_names, values, strict=True))


def prepare(
    model: PreTrainedModel,
    engine: str = TORCH,
    threads: int | None = None,
    onnx_folder: Path | None = None,
    calibration: Sequence[Mapping[str, Tensor]] = (),
) -> nn.Module:
    """A model loaded into one engine: call `engine(input_ids, attention_mask, token_type_ids).logits`.

    Args:
        model: masked, plain or small; it stays as it is.
        engine: a name among `ENGINES`.
        threads: number of threads of engines that have their own; default: PyTorch's number.
        onnx_folder: where `export_onnx_folder` wrote the model; default: the model is exported to a temporary folder.
        calibration: batches of inputs for an engine that needs its own file, if there is no `onnx_folder`.

    Raises:
        UserError: no such engine, this machine does not offer it, or the file that it needs is missing.
    """
    reason = why_not(engine)
    if reason is not None:
        raise UserError(f"engine {engine}: {reason}")
    plain = bertarize(model) if masked_layers(model) else model
    if engine in (TORCH, TORCH_BF16):
        return TorchEngine(plain, torch.bfloat16 if engine == TORCH_BF16 else torch.float32)
    if engine == SPARSE:
        from emmental.inference.sparse import sparsify

        return sparsify(plain)
    from emmental.export.onnx import export_onnx, onnx_file, quantize_int8

    config = _named_config(plain)
    threads = torch.get_num_threads() if threads is None else threads
    if onnx_folder is not None:
        return from_onnx(file_for(engine, onnx_folder), engine, threads, config)
    if ENGINES[engine].calibrated and not calibration:
        raise UserError(f"engine {engine} needs the folder that `python -m emmental.export.onnx --openvino` writes")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        exact, path = onnx_file(folder), file_for(engine, folder)
        exact.parent.mkdir()
        export_onnx(plain, exact)
        if engine == ONNX_INT8:
            quantize_int8(exact, path)
        elif ENGINES[engine].calibrated:
            write_openvino_int8(exact, folder, calibration)
        return from_onnx(path, engine, threads, config)


def _named_config(model: PreTrainedModel) -> PreTrainedConfig:
    """The configuration with the name of the class: files record it, models in memory do not."""
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    return config


def file_for(engine: str, folder: Path) -> Path:
    """The file in a folder of `export_onnx_folder` that an engine runs."""
    from emmental.export.onnx_session import onnx_file

    return folder / OPENVINO_FILE if engine == OPENVINO_INT8 else onnx_file(folder, engine == ONNX_INT8)


def from_onnx(path: Path, engine: str, threads: int, config: Any = None) -> nn.Module:
    """The model of a file in ONNX Runtime or OpenVINO; `config` is used if there is no config.json beside it.

    Raises:
        UserError: no such file, or a damaged one.
    """
    from emmental.export.onnx_session import load_session, onnx_file

    if not path.is_file():
        raise UserError(f"engine {engine}: {path} does not exist")
    written_with = onnx_file(path.parent.parent) if ENGINES[engine].calibrated else path
    session = load_session(written_with, threads)  # reads and checks files and configuration for every engine
    session.config = config if session.config is None else session.config
    if engine in (ONNX, ONNX_INT8):
        return session
    bf16 = ENGINES[engine].bf16 or (ENGINES[engine].calibrated and bf16_in_hardware())
    return OpenVinoEngine(path, session.config, threads, "bf16" if bf16 else "f32")


def measure(
    model: PreTrainedModel, batch: int, length: int, engine: str = TORCH, *, threads: int | None = None
) -> float:
    """Median milliseconds of repeated calls with a batch without padding.

    To compare models, use `measure_together`: there they take turns.
    """
    return measure_together({"": model}, batch, length, engine, threads=threads)[""]


def measure_together(
    models: Mapping[str, PreTrainedModel],
    batch: int,
    length: int,
    engine: str = TORCH,
    *,
    threads: int | None = None,
    seconds: float = 2.0,
) -> dict[str, float]:
    """Name -> median milliseconds of each model in one engine, timed in turns on the same random tokens.

    Static int8 is calibrated on these tokens, which is enough to time it.

    Args:
        models: masked, plain or small ones.
        batch, length: rows, and tokens of each.
        engine: a name among `ENGINES`.
        threads: PyTorch's number if absent.
        seconds: for each model.
    """
    threads = torch.get_num_threads() if threads is None else threads
    words = min(model.config.vocab_size for model in models.values())
    names = ("input_ids", "attention_mask", "token_type_ids")
    tokens = [dict(zip(names, random_batch(batch, length, words), strict=True))] if ENGINES[engine].calibrated else []
    ready = {name: prepare(model, engine, threads, calibration=tokens) for name, model in models.items()}
    return {row.model: row.median_ms for row in measure_in_turns(ready, batch, length, threads, words, seconds)}


@dataclass(frozen=True)
class Trial:
    """Results of one engine on this machine, on the dev data of a task.

    Attributes:
        engine: its name.
        ms: median for the shape that was asked for.
        speedup: times as fast as the same model in PyTorch fp32.
        points: change of the metric against PyTorch fp32, in points of 100; negative is worse.
        changed: share of the rows whose class changes (regression: 0).
        form: of int8 in ONNX Runtime, a name among `FORMS`; None for other engines.
    """

    engine: str
    ms: float
    speedup: float
    points: float
    changed: float
    form: str | None = None

    @property
    def offered(self) -> bool:
        """Whether it loses little enough of the metric."""
        return not ENGINES[self.engine].rounds or costs_little(self.points)

    def __str__(self) -> str:
        """One line for the foot of a table, or for a log."""
        text = f"{title_of(self.engine, self.form)}: {self.ms:.2f} ms, {self.speedup:.1f} times PyTorch fp32"
        if ENGINES[self.engine].rounds:
            text += f"; {self.points:+.2f} points, {100 * self.changed:.2f} % of the answers change"
        return text if self.offered else f"{text}: not offered, at most {MOST_POINTS} points may be lost"


def title_of(engine: str, form: str | None = None) -> str:
    """Name of an engine for people, with its form of int8 if that is known."""
    return ENGINES[engine].title + ("" if form is None else f" ({FORMS[form]})")


def _tried(model: PreTrainedModel, calibrated: bool) -> list[str]:
    """Engines of this machine for a model: the sparse runtime only if it computes such a model."""
    small = model.config.model_type.startswith("small_")
    sparse = not small and architecture_of(model.config).sparse_runtime
    return [name for name in available(calibrated) if name != SPARSE or sparse]


def compare(
    model: PreTrainedModel,
    answer: Callable[[nn.Module], np.ndarray],
    score: Callable[[np.ndarray], float],
    batch: int = 1,
    length: int = 128,
    engines: Iterable[str] | None = None,
    threads: int | None = None,
    calibration: Sequence[Mapping[str, Tensor]] = (),
) -> list[Trial]:
    """Try engines on the same rows and the same shape.

    With `calibration`, dynamic and static int8 are tried: of those that cost little, the one closer to fp32 is kept.

    Args:
        model: masked, plain or small.
        answer: an engine -> logits (N, labels) of the dev rows, as `predict_logits` gives them.
        score: logits -> the task's metric, in [0, 1] or [-1, 1].
        batch, length: shape that is timed.
        engines: names; all that this machine offers for the model if absent. PyTorch fp32 is always among them.
        threads: PyTorch's number if absent.
        calibration: batches of inputs that are not among the rows judged, each (batch, length) int64.
    """
    threads = torch.get_num_threads() if threads is None else threads
    calibrated = bool(calibration) and missing_package() is None
    names = dict.fromkeys([TORCH, *(_tried(model, calibrated) if engines is None else engines)])
    exact = answer(prepare(model, TORCH, threads))
    of_forms: dict[str, np.ndarray] = {}

    def points(logits: np.ndarray) -> float:
        return 100 * (score(logits) - score(exact))

    def accepts(file: Path) -> bool:
        of_forms[file.stem] = answer(from_onnx(file, ONNX_INT8, threads, _named_config(model)))
        return costs_little(points(of_forms[file.stem]))

    with tempfile.TemporaryDirectory() as place:
        folder, form = Path(place) / "onnx", None
        if any(ENGINES[name].package for name in names):
            form = _write_files(model, folder, names, calibration, accepts)
        ready = {name: prepare(model, name, threads, folder) for name in names}
        rows = measure_in_turns(ready, batch, length, threads, model.config.vocab_size)
        known = {TORCH: exact} | ({ONNX_INT8: of_forms[form]} if form in of_forms else {})
        logits = {name: known[name] if name in known else answer(engine) for name, engine in ready.items()}
    times = {row.model: row.median_ms for row in rows}
    return [
        Trial(
            name,
            times[name],
            times[TORCH] / times[name],
            points(logits[name]),
            changed_answers(exact, logits[name]),
            form if name == ONNX_INT8 else None,
        )
        for name in names
    ]


def _write_files(
    model: PreTrainedModel,
    folder: Path,
    engines: Iterable[str],
    calibration: Sequence[Mapping[str, Tensor]],
    accepts: Callable[[Path], bool],
) -> str | None:
    """Write the files that these engines run into a folder. Returns the form of int8 that is kept, if any."""
    from emmental.export.onnx import write_onnx_folder

    choice = Calibration(calibration, (DYNAMIC, STATIC), accepts)
    int8, openvino = ONNX_INT8 in engines, OPENVINO_INT8 in engines
    return write_onnx_folder(model, {}, folder, int8, calibration=choice, openvino=openvino).int8_form


def changed_answers(exact: np.ndarray, rounded: np.ndarray) -> float:
    """Share of the rows of (N, labels) logits whose class differs; 0 for one label, which is a score."""
    return float((exact.argmax(1) != rounded.argmax(1)).mean())


def best_engine(trials: Iterable[Trial]) -> Trial:
    """The fastest of those that are offered."""
    return min((trial for trial in trials if trial.offered), key=lambda trial: trial.ms)


def advice(trials: Sequence[Trial], folder: str | Path, model_type: str, batch: int = 1, length: int = 128) -> str:
    """The last lines of a run: the best engine, code that loads the model, engines that are not offered."""
    best = best_engine(trials)
    refused = [str(trial) for trial in trials if not trial.offered]
    absent: dict[str, list[str]] = {}
    for name, engine in ENGINES.items():
        if reason := why_not_timed(name):
            absent.setdefault(reason, []).append(engine.title)
    missing = [f"{', '.join(titles)}: {reason}" for reason, titles in absent.items()]
    begin = f"The best engine on this machine, for {batch} x {length} tokens, is {best}"
    return "\n".join([begin, code_line(best.engine, folder, model_type, best.form), *refused, *missing])


def code_line(engine: str, folder: str | Path, model_type: str, form: str | None = None) -> str:
    """Lines of Python that load the model of `folder` in an engine, for users to copy.

    ONNX files are expected in `<folder>-onnx`, where the command of the first line writes them. `form`: of int8 in
    ONNX Runtime, if it was chosen with calibration data.
    """
    known, onnx = ENGINES[engine], f"{folder}-onnx"
    lines = [known.code.format(folder=folder, onnx=onnx)]
    if known.package is None:
        stock = base_model_type(model_type) == model_type and engine != SPARSE
        needed = "from transformers import AutoModelForSequenceClassification"
        imports = [needed] if stock else ["import emmental", needed]
        return "\n".join([*(["import emmental.export.sparse"] if engine == SPARSE else imports), *lines])
    export = f"# first: python -m emmental.export.onnx --model_name_or_path {folder} --output {onnx}"
    export += " --openvino" if known.calibrated else ""
    export += " --calibration_file texts.txt" if known.calibrated or form else ""
    export += f" --int8_scales {form}" if form in (DYNAMIC, STATIC) else ""
    return "\n".join([export, f"import {known.package}", *lines])
