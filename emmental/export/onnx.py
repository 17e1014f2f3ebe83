"""A pruned model as ONNX, in float32 and int8, checked against PyTorch by running both.

    python -m emmental.export.onnx --model_name_or_path out --target_model_path onnx --int8

Pruned weights are exact zeros there, and ONNX Runtime multiplies by them: what makes them pay is `sparse`.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
import transformers
from google.protobuf.message import DecodeError, Message
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.quant_utils import add_pre_process_metadata
from torch import Tensor, nn
from transformers import BertConfig, BertForMultipleChoice, PreTrainedModel
from transformers.utils import ModelOutput

from emmental import atomic
from emmental.command_line import OneLineParser, switch, user_mistakes
from emmental.errors import UserError
from emmental.export.bertarize import add_masking_flags, bertarize
from emmental.export.model_folder import make_config, read_model, read_settings
from emmental.export.tokenizer import read_tokenizer_files
from emmental.patching import masked_layers

MODEL_FILE, INT8_FILE = "model.onnx", "model-int8.onnx"
TOLERANCE = 1e-5
LARGEST_FILE = 2_000_000_000
"""Bytes; protocol buffers end at 2 GiB."""

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUTS = ("logits", "start_logits", "end_logits", "last_hidden_state", "pooler_output")
_OPSET = 17  # the first with LayerNormalization as one node
_SHAPES = ((1, 1), (1, 7), (2, 16), (3, 5), (5, 29))


@dataclass(frozen=True)
class OnnxExport:
    """What `export_onnx_folder` wrote.

    Attributes:
        difference: of the float32 file to PyTorch, see `largest_difference`.
        size: of the float32 file, in bytes.
        int8_difference, int8_size: likewise of the int8 file; None without one.
    """

    difference: float
    size: int
    int8_difference: float | None = None
    int8_size: int | None = None


class OnnxModel(nn.Module):
    """A session of ONNX Runtime that is called like the Transformers model it was made from.

    Attributes:
        config: of the model; None where the file stands alone.
        output_names: fields of the output, some of `OUTPUTS`.
    """

    def __init__(self, session: onnxruntime.InferenceSession, config: BertConfig | None = None) -> None:
        super().__init__()
        self.session = session
        self.config = config
        self.output_names = tuple(output.name for output in session.get_outputs())

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> ModelOutput:
        """All inputs (batch, length) int64, multiple choice (batch, choices, length); outputs float32 on the CPU."""
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        token_type_ids = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        given = zip(INPUTS, (input_ids, attention_mask, token_type_ids), strict=True)
        arrays = self.session.run(None, {name: value.long().cpu().numpy() for name, value in given})
        return ModelOutput(zip(self.output_names, map(torch.from_numpy, arrays), strict=True))


class _Named(nn.Module):
    """A model whose outputs are the tensors among `OUTPUTS` that it has, in that order."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def named(self, *inputs: Tensor) -> dict[str, Tensor]:
        found = self.model(**dict(zip(INPUTS, inputs, strict=True)), return_dict=True)
        return {name: found[name] for name in OUTPUTS if name in found}

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.named(*inputs).values())


def export_onnx(model: PreTrainedModel, path: str | Path, tolerance: float = TOLERANCE) -> float:
    """Write a model as one ONNX file with dynamic batch and length, whole or not at all; `model` stays as it is.

    Args:
        model: a plain BERT of any head, or a masked one, which is converted by `bertarize`.
        path: the file.
        tolerance: the largest difference accepted, see `largest_difference`.

    Returns:
        `largest_difference` of file and model.

    Raises:
        UserError: the model is too large for one file, or the file's outputs differ more than `tolerance`; it is not
            kept then.
    """
    plain = bertarize(model) if masked_layers(model) else copy.deepcopy(model).eval()
    size = sum(value.numel() * value.element_size() for value in plain.state_dict().values())
    if size > LARGEST_FILE:
        raise UserError(
            f"the model has {size / 1e9:.1f} GB of weights; one ONNX file holds {LARGEST_FILE / 1e9:.0f} GB, and "
            "models in several files are not written"
        )
    plain.set_attn_implementation("eager")  # its graph is the one whose attention ONNX Runtime runs fastest
    with atomic.atomic_file(path) as temporary:
        _trace(plain, temporary)
        difference = largest_difference(plain, load_session(temporary))
        if not difference <= tolerance:  # NaN is no agreement
            raise UserError(
                f"{path}: ONNX Runtime and PyTorch differ by {difference:.1e}, {tolerance:.0e} is accepted; not kept"
            )
    return difference


def quantize_int8(path: str | Path, target: str | Path) -> None:
    """Write `path`, an ONNX file of `export_onnx`, as `target` with int8 weights, whole or not at all.

    Matrices get a scale for each output, embeddings one for each table; activations are quantised as they come, so
    that no calibration data are needed. Weights use 7 of the 8 bits: processors without VNNI saturate otherwise.

    Raises:
        UserError: `path` is no such file, or a damaged one.
    """
    checked = _read_checked(Path(path))
    add_pre_process_metadata(checked)  # the shape inference that is missed otherwise is what quantising starts with
    with atomic.atomic_file(target) as temporary:
        quantize_dynamic(checked, temporary, per_channel=True, reduce_range=True, weight_type=QuantType.QInt8)


def load_session(path: str | Path, threads: int = 1) -> OnnxModel:
    """The model of an ONNX file, ready to be called. Nothing is read but this file and the config.json beside it.

    Args:
        path: a file, or a folder of `export_onnx_folder` (its float32 model).
        threads: of ONNX Runtime.

    Raises:
        UserError: no such file, a damaged one, one that is no BERT export, or that refers to other files; a folder
            of `export_onnx_folder` that is damaged, also when a file in it is named.
    """
    path = Path(path)
    if threads < 1:
        raise UserError(f"threads accepts numbers from 1, not {threads}")
    if path.is_dir():
        atomic.verify_folder(path)
        path = path / MODEL_FILE
    else:
        atomic.verify_if_listed(path.parent)
    checked = _read_checked(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4  # errors come as exceptions
    try:
        session = onnxruntime.InferenceSession(
            checked.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime's own types have no common base
        raise UserError(f"{path}: ONNX Runtime refuses it ({_one_line(error)})") from error
    return OnnxModel(session, _config_beside(path))


@torch.no_grad()
def largest_difference(model: PreTrainedModel, session: OnnxModel) -> float:
    """The largest difference of an output's element, over batches of several shapes, padded and full.

    Outputs whose largest element exceeds 1 are compared relative to it: float32 rounds that way.
    """
    largest = []
    for inputs in _batches(model):
        wanted, got = _Named(model).named(*inputs), session(*inputs)
        for name, value in wanted.items():
            largest.append(float((got[name] - value).abs().max() / value.abs().max().clamp(min=1)))
    return max(largest) if np.isfinite(largest).all() else float("nan")


def export_onnx_folder(
    source: str | Path,
    target: str | Path,
    int8: bool = False,
    pruning_method: str | None = None,
    threshold: float | None = None,
) -> OnnxExport:
    """Write the model in `source` as the folder `target`, whole or not at all.

    `target` gets model.onnx, with `int8` model-int8.onnx, config.json, the tokenizer's files and a manifest.

    Args:
        source: folder of a masked or plain model, see `read_model`.
        target: a new folder, or one that this function made.
        int8: write an int8 model too.
        pruning_method, threshold: override what a masked model records.

    Raises:
        UserError: as `read_model` and `export_onnx`.
        FileExistsError: `target` is something else.
    """
    source, target = Path(source), Path(target)
    _refuse_foreign(target)
    model = read_model(source, pruning_method, threshold)
    plain = bertarize(model) if masked_layers(model) else model
    with atomic.atomic_folder(target) as temporary:
        config = copy.deepcopy(plain.config)
        config.architectures = [type(plain).__name__]
        config.save_pretrained(temporary)
        for name, text in read_tokenizer_files(source).items():
            atomic.write_text(temporary / name, text)
        difference = export_onnx(plain, temporary / MODEL_FILE)
        result = OnnxExport(difference, (temporary / MODEL_FILE).stat().st_size)
        if int8:
            quantize_int8(temporary / MODEL_FILE, temporary / INT8_FILE)
            of_int8 = largest_difference(plain, load_session(temporary / INT8_FILE))
            result = OnnxExport(difference, result.size, of_int8, (temporary / INT8_FILE).stat().st_size)
    return result


def _trace(plain: PreTrainedModel, path: Path) -> None:
    """Write the graph with PyTorch's tracing exporter: the other one needs two more packages for the same graph."""
    named = _Named(plain).eval()  # the exporter restores the mode of the whole
    example = _batch(plain, 2, 7)
    with torch.no_grad():
        outputs = named.named(*example)
    axes = {name: {0: "batch", value.dim() - 1: "length"} for name, value in zip(INPUTS, example, strict=True)}
    axes |= {name: {0: "batch"} for name in outputs}
    for name in {*outputs} - {"pooler_output"}:
        if outputs[name].shape[1:2] == example[0].shape[-1:]:
            axes[name] |= {1: "length"}
    if isinstance(plain, BertForMultipleChoice):
        for axis in axes.values():
            axis[1] = "choices"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # deprecation, and constants of the trace: the outputs are checked
        torch.onnx.export(
            named,
            example,
            str(path),
            input_names=list(INPUTS),
            output_names=list(outputs),
            dynamic_axes=axes,
            opset_version=_OPSET,
            dynamo=False,
        )


def _batches(model: PreTrainedModel) -> Iterator[tuple[Tensor, ...]]:
    longest = model.config.max_position_embeddings
    for rows, length in (*_SHAPES, (1, 128), (2, longest)):
        yield _batch(model, rows, min(length, longest))


def _batch(model: PreTrainedModel, rows: int, length: int) -> tuple[Tensor, ...]:
    """Random input_ids, attention_mask and token_type_ids, each row one token shorter than the one before it."""
    config, generator = model.config, torch.Generator().manual_seed(0)
    shape = (rows, 2, length) if isinstance(model, BertForMultipleChoice) else (rows, length)
    ids = torch.randint(config.vocab_size, shape, generator=generator)
    types = torch.randint(config.type_vocab_size, shape, generator=generator)
    lengths = (length - torch.arange(rows)).clamp(min=1).view(-1, *[1] * (len(shape) - 1))
    return ids, (torch.arange(length) < lengths).expand(shape).long(), types


def _read_checked(path: Path) -> onnx.ModelProto:
    """The graph of a file, once it is known to be whole, a BERT's, and to need nothing outside itself."""
    if not path.is_file():
        raise UserError(f"{path} is no ONNX file: it does not exist")
    if path.stat().st_size > LARGEST_FILE:
        raise UserError(f"{path} is larger than {LARGEST_FILE / 1e9:.0f} GB, which one ONNX file may hold")
    try:
        model = onnx.ModelProto.FromString(path.read_bytes())
    except DecodeError as error:
        raise UserError(f"{path} is damaged, or no ONNX file") from error
    for message in _messages(model):
        if isinstance(message, onnx.TensorProto) and (
            message.data_location == onnx.TensorProto.EXTERNAL or message.external_data
        ):
            raise UserError(f"{path}: {message.name or 'a tensor'} lies in another file, which is not read")
        if isinstance(message, onnx.FunctionProto | onnx.AttributeProto) and _has_code(message):
            raise UserError(f"{path} has functions or branches, which no model written here has")
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # its error type is not public, and shape inference has its own
        raise UserError(f"{path} is damaged: {_one_line(error)}") from error
    inputs, outputs = ({value.name for value in values} for values in (model.graph.input, model.graph.output))
    if inputs != set(INPUTS) or not outputs or not outputs <= set(OUTPUTS):
        raise UserError(f"{path} is no BERT written here: {', '.join(sorted(inputs))} -> {', '.join(sorted(outputs))}")
    return model


def _has_code(message: onnx.FunctionProto | onnx.AttributeProto) -> bool:
    """Loops and branches hold graphs; ONNX Runtime would run some of them while it loads."""
    return isinstance(message, onnx.FunctionProto) or message.HasField("g") or bool(message.graphs)


def _messages(message: Message) -> Iterator[Message]:
    """A protocol buffer and all that it is made of."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if isinstance(value, Message) else value:
                yield from _messages(part)


def _config_beside(path: Path) -> BertConfig | None:
    if not (path.parent / "config.json").is_file():
        return None
    settings = read_settings(path.parent)
    return make_config(BertConfig, {k: v for k, v in settings.items() if k != "model_type"}, str(path.parent))


def _refuse_foreign(target: Path) -> None:
    """Checkpoints and bertarized models have a manifest too: only one that lists a graph is ours to replace."""
    if target.exists() and not ((target / atomic.MANIFEST).is_file() and MODEL_FILE in atomic.read_manifest(target)):
        raise FileExistsError(f"--target_model_path {target} exists and is no ONNX folder; it is left alone")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _summary(result: OnnxExport, target: Path) -> str:
    lines = [f"{MODEL_FILE:16} {result.size / 1e6:9.3f} MB  largest difference to PyTorch {result.difference:.1e}"]
    if result.int8_size is not None:
        lines.append(
            f"{INT8_FILE:16} {result.int8_size / 1e6:9.3f} MB  largest difference to PyTorch "
            f"{result.int8_difference:.1e}"
        )
    return "\n".join([*lines, str(target)])


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser("Write a masked or plain model as ONNX and check it against PyTorch.")
    parser.add_argument("--model_name_or_path", required=True, help="folder of a masked or bertarized model")
    parser.add_argument("--target_model_path", help="folder to write; onnx_<name> beside the model if absent")
    switch(parser, "--int8", f"write {INT8_FILE} too, with int8 weights and dynamic quantisation")
    add_masking_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Export what the command line names; a mistake is one line on stderr and exit status 2."""
    args = _parser().parse_args(argv)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    source = Path(args.model_name_or_path)
    target = Path(args.target_model_path or source.resolve().parent / f"onnx_{source.resolve().name}")
    with user_mistakes():
        result = export_onnx_folder(source, target, args.int8, args.pruning_method, args.threshold)
    print(_summary(result, target))


if __name__ == "__main__":
    main()
