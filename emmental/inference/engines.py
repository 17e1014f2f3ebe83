"""The engines that a classifier runs on: which of them this machine has, and how a model is loaded into one.

`prepare` loads a model into one engine; all engines are called in the same way. `measure_together`
times models in one, and `emmental.inference.comparison` compares several.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from emmental import latency
from emmental.architectures import architecture_of, base_model_type, takes_token_types
from emmental.errors import UserError
from emmental.export.bertarize import bertarize
from emmental.export.calibration import DYNAMIC, STATIC
from emmental.export.openvino_int8 import OPENVINO_FILE, missing_package, write_openvino_int8
from emmental.export.outputs import OUTPUTS
from emmental.openvino_core import compile_model
from emmental.optional import why_missing
from emmental.patching import masked_layers
from emmental.runs.precision import bf16_in_hardware
from emmental.shrinking import first_token_form

TORCH, TORCH_BF16, SPARSE = "torch", "torch-bf16", "sparse"
ONNX, ONNX_INT8 = "onnx", "onnx-int8"
OPENVINO, OPENVINO_BF16, OPENVINO_INT8 = "openvino", "openvino-bf16", "openvino-int8"


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


_AUTO = "AutoModelForSequenceClassification"
_LOAD = f'{_AUTO}.from_pretrained("{{folder}}"'
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


def why_not(engine: str) -> str | None:
    """Why this machine does not offer an engine, in words; None if it does.

    Raises:
        UserError: no such engine.
    """
    if engine not in ENGINES:
        raise UserError(f"--engine accepts {', '.join(ENGINES)}, not {engine}")
    known = ENGINES[engine]
    for package in (known.package, "onnx", "onnxruntime") if known.package else ():  # the last two check every file
        if reason := why_missing(package):
            return reason
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
        self.config = named_config(model)

    @torch.inference_mode()
    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> ModelOutput:
        """All inputs (batch, length) int64; the outputs among `OUTPUTS`, such as `logits`, float32."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask}
        if takes_token_types(self.config) and token_type_ids is not None:
            given["token_type_ids"] = token_type_ids
        outputs = self.model(**given)
        return ModelOutput({name: outputs[name].float() for name in OUTPUTS if name in outputs})


class OpenVinoEngine(nn.Module):
    """An ONNX file in OpenVINO, on the CPU."""

    def __init__(self, path: Path, config: Any, threads: int, precision: str) -> None:
        """Args:
        path: of an ONNX file, or of OpenVINO's own.
        config: of the model.
        threads: of OpenVINO.
        precision: `f32` or `bf16`.
        """
        super().__init__()
        self.compiled = compile_model(path, threads, precision)
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
        arrays = self.compiled({name: given[name].numpy() for name in self.input_names})
        values = (torch.from_numpy(arrays[place].copy()) for place in range(len(self.output_names)))
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
    plain = latency.on_cpu(bertarize(model) if masked_layers(model) else model)
    if engine in (TORCH, TORCH_BF16):
        return TorchEngine(plain, torch.bfloat16 if engine == TORCH_BF16 else torch.float32)
    if engine == SPARSE:
        from emmental.inference.sparse import sparsify

        return sparsify(plain)
    from emmental.export.onnx import export_onnx, onnx_file, quantize_int8

    config = named_config(plain)
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


def named_config(model: PreTrainedModel) -> PreTrainedConfig:
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
    tokens = dict(zip(names, latency.random_batch(batch, length, words), strict=True))
    ready = {name: prepare(model, engine, threads, calibration=[tokens]) for name, model in models.items()}
    return {row.model: row.median_ms for row in latency.measure(ready, batch, length, threads, words, seconds)}


def engines_for(model: PreTrainedModel, calibrated: bool) -> list[str]:
    """Engines of this machine for a model: the sparse runtime only if it computes such a model."""
    small = model.config.model_type.startswith("small_")
    sparse = not small and architecture_of(model.config).sparse_runtime
    return [name for name in available(calibrated) if name != SPARSE or sparse]


def code_line(engine: str, folder: str | Path, model_type: str, form: str | None = None, auto: str = _AUTO) -> str:
    """Lines of Python that load the model of `folder` in an engine, for users to copy.

    ONNX files are expected in `<folder>-onnx`, where the command of the first line writes them. `form`: of int8 in
    ONNX Runtime, if it was chosen with calibration data. `auto`: the class of Transformers that loads the model.
    """
    known, onnx = ENGINES[engine], f"{folder}-onnx"
    lines = [known.code.format(folder=folder, onnx=onnx).replace(_AUTO, auto)]
    if known.package is None:
        stock = base_model_type(model_type) == model_type and engine != SPARSE
        needed = f"from transformers import {auto}"
        imports = [needed] if stock else ["import emmental", needed]
        return "\n".join([*(["import emmental.export.sparse"] if engine == SPARSE else imports), *lines])
    export = f"# first: python -m emmental.export.onnx --model_name_or_path {folder} --output {onnx}"
    export += " --openvino" if known.calibrated else ""
    export += " --calibration_file texts.txt" if known.calibrated or form else ""
    export += f" --int8_scales {form}" if form in (DYNAMIC, STATIC) else ""
    return "\n".join([export, f"import {known.package}", *lines])
