"""A model as ONNX, in float32 and int8, checked against PyTorch by running both.

    python -m emmental.export.onnx --model_name_or_path out --target_model_path served

The folder has the layout that transformers.js and text-embeddings-inference read: `onnx/model.onnx` and
`onnx/model_quantized.onnx` beside config.json, the tokenizer's files and a card. Single weights that were pruned are
exact zeros there, and ONNX Runtime multiplies by them: what makes those pay is `sparse`.
"""

from __future__ import annotations

import argparse
import copy
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
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
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from emmental import atomic
from emmental.architectures import architecture_of, base_model_type
from emmental.command_line import OneLineParser, switch, user_mistakes
from emmental.errors import UserError
from emmental.export.bertarize import add_masking_flags, bertarize
from emmental.export.model_folder import make_config, read_model
from emmental.export.tokenizer import read_tokenizer_files
from emmental.first_token import first_token_only
from emmental.patching import masked_layers

FOLDER = "onnx"
MODEL_FILE, INT8_FILE = f"{FOLDER}/model.onnx", f"{FOLDER}/model_quantized.onnx"
_EARLIER = {MODEL_FILE: "model.onnx", INT8_FILE: "model-int8.onnx"}
"""Where version 0.1 wrote these two; its folders are still read."""
TOLERANCE = 1e-5
LARGEST_FILE = 2_000_000_000
"""Bytes; protocol buffers end at 2 GiB."""

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUTS = ("logits", "start_logits", "end_logits", "last_hidden_state", "pooler_output")
_POSITIONS_BEHIND_PADDING = ("roberta", "xlm-roberta", "camembert", "mpnet")
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
        input_names, output_names: some of `INPUTS`, and fields of the output, some of `OUTPUTS`.
    """

    def __init__(self, session: onnxruntime.InferenceSession, config: PreTrainedConfig | None = None) -> None:
        super().__init__()
        self.session = session
        self.config = config
        self.input_names = tuple(value.name for value in session.get_inputs())
        self.output_names = tuple(output.name for output in session.get_outputs())

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> ModelOutput:
        """All inputs (batch, length) int64, multiple choice (batch, choices, length); outputs float32 on the CPU.

        Models without token types are not given any.
        """
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        token_type_ids = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        given = zip(INPUTS, (input_ids, attention_mask, token_type_ids), strict=True)
        taken = {name: value.long().cpu().numpy() for name, value in given if name in self.input_names}
        arrays = self.session.run(None, taken)
        return ModelOutput(zip(self.output_names, map(torch.from_numpy, arrays), strict=True))


class _Named(nn.Module):
    """A model whose outputs are the tensors among `OUTPUTS` that it has, in that order."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def named(self, *inputs: Tensor) -> dict[str, Tensor]:
        found = self.model(**dict(zip(INPUTS, inputs, strict=False)), return_dict=True)
        return {name: found[name] for name in OUTPUTS if name in found}

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.named(*inputs).values())


def export_onnx(model: PreTrainedModel, path: str | Path, tolerance: float = TOLERANCE) -> float:
    """Write a model as one ONNX file with dynamic batch and length, whole or not at all; `model` stays as it is.

    Args:
        model: a plain or small encoder with any head, or a masked one, which is converted by `bertarize`.
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


def load_session(path: str | Path, threads: int = 1, int8: bool = False) -> OnnxModel:
    """The model of an ONNX file, ready to be called. Nothing is read but this file and its folder's config.json.

    Args:
        path: a file, or a folder of `export_onnx_folder`.
        threads: of ONNX Runtime.
        int8: of a folder, its int8 model and not the float32 one.

    Raises:
        UserError: no such file, a damaged one, no export of an encoder, one that refers to other files; a folder
            of `export_onnx_folder` that is damaged, also when a file in it is named.
    """
    path = Path(path)
    if threads < 1:
        raise UserError(f"threads accepts numbers from 1, not {threads}")
    if path.is_dir():
        atomic.verify_folder(path)
        path = onnx_file(path, int8)
    else:
        atomic.verify_if_listed(_folder_of(path))
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
    return OnnxModel(session, _config_beside(_folder_of(path)))


def onnx_file(folder: str | Path, int8: bool = False) -> Path:
    """Where the float32 or the int8 file of an exported folder lies, of this version or of an earlier one."""
    name = INT8_FILE if int8 else MODEL_FILE
    earlier = Path(folder) / _EARLIER[name]
    return earlier if earlier.is_file() else Path(folder) / name


def _folder_of(path: Path) -> Path:
    """The folder with the configuration of an ONNX file."""
    return path.parent.parent if path.parent.name == FOLDER else path.parent


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

    Args:
        source: folder of a masked, plain or small model, see `read_model`.
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
    card = source / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    return write_onnx_folder(model, read_tokenizer_files(source), target, int8, source.resolve().name, text)


def write_onnx_folder(
    model: PreTrainedModel,
    tokenizer_files: Mapping[str, str],
    target: Path,
    int8: bool = False,
    name: str = "model",
    card: str = "",
) -> OnnxExport:
    """Write `model` as the folder `target`: two ONNX files, config.json, the tokenizer, a card and a manifest.

    config.json has the type of the stock model: of a small model the ONNX file itself holds the sizes.

    Args:
        model: masked, plain or small, in evaluation mode; it stays as it is.
        tokenizer_files: name -> text.
        target: a new folder, or one that is ours.
        int8: write an int8 model too.
        name, card: of the model, for the new card.
    """
    plain = bertarize(model) if masked_layers(model) else model
    with atomic.atomic_folder(target) as temporary:
        (temporary / FOLDER).mkdir()
        stock_config(plain).save_pretrained(temporary)
        for file, text in tokenizer_files.items():
            atomic.write_text(temporary / file, text)
        difference = export_onnx(plain, temporary / MODEL_FILE)
        result = OnnxExport(difference, (temporary / MODEL_FILE).stat().st_size)
        if int8:
            quantize_int8(temporary / MODEL_FILE, temporary / INT8_FILE)
            of_int8 = largest_difference(plain, load_session(temporary / INT8_FILE))
            result = OnnxExport(difference, result.size, of_int8, (temporary / INT8_FILE).stat().st_size)
        atomic.write_text(temporary / "README.md", _card(card, name, type(plain).__name__, result))
    return result


def stock_config(model: PreTrainedModel) -> PreTrainedConfig:
    """The configuration as Transformers itself knows it: less what masks or a small model added to it."""
    settings = model.config.to_dict()
    stock = CONFIG_MAPPING[base_model_type(model.config.model_type)]
    known = {*stock().to_dict(), "id2label", "label2id", "problem_type"} - {
        "model_type",
        "transformers_version",
        "dtype",
    }
    config = stock(**{key: value for key, value in settings.items() if key in known and value is not None})
    config.architectures = [type(model).__name__.removeprefix("Small")]
    return config


def _card(card: str, name: str, class_name: str, result: OnnxExport) -> str:
    """The model's own card with what is said of its ONNX files on top."""
    rows = [("onnx/model.onnx", "fp32", result.size, result.difference)]
    if result.int8_size is not None:
        rows.append(("onnx/model_quantized.onnx", "q8", result.int8_size, result.int8_difference))
    lines = [f"| {file} | `{dtype}` | {size / 1e6:.1f} | {diff:.1e} |" for file, dtype, size, diff in rows]
    front, body = _front_matter(card)
    front = [line for line in front if not line.startswith(("library_name:", "pipeline_tag:"))]
    task = "text-classification" if class_name.endswith("ForSequenceClassification") else None
    front = ["library_name: transformers.js", *([f"pipeline_tag: {task}"] if task else []), *front]
    table = ["| file | dtype | MB | largest difference to PyTorch |", "|---|---|---:|---:|", *lines]
    call = ["```js", 'import { pipeline } from "@huggingface/transformers";', ""]
    call += [f'const classify = await pipeline("{task}", "{name}", {{ dtype: "fp32" }});', "```", ""] if task else []
    text = f"ONNX files of `{name}`, for ONNX Runtime, transformers.js and what else reads this layout."
    return "\n".join(
        ["---", *front, "---", f"# {name}, ONNX", "", text, "", *table, "", *(call if task else []), body]
    )


def _front_matter(card: str) -> tuple[list[str], str]:
    """Lines of the metadata on top of a card, and the rest."""
    if not card.startswith("---\n") or "\n---\n" not in card:
        return [], card
    front, _, body = card.removeprefix("---\n").partition("\n---\n")
    return front.splitlines(), body.lstrip("\n")


def _trace(plain: PreTrainedModel, path: Path) -> None:
    """Write the graph with PyTorch's tracing exporter: the other one needs two more packages for the same graph."""
    named = _Named(plain).eval()  # the exporter restores the mode of the whole
    example = _batch(plain, 2, 7)
    with torch.no_grad():
        outputs = named.named(*example)
    names = INPUTS[: len(example)]
    axes = {name: {0: "batch", value.dim() - 1: "length"} for name, value in zip(names, example, strict=True)}
    axes |= {name: {0: "batch"} for name in outputs}
    for name in {*outputs} - {"pooler_output"}:
        if outputs[name].shape[1:2] == example[0].shape[-1:]:
            axes[name] |= {1: "length"}
    if _has_choices(plain):
        for axis in axes.values():
            axis[1] = "choices"
    with warnings.catch_warnings(), torch.no_grad(), first_token_only(plain):
        warnings.simplefilter("ignore")  # deprecation, and constants of the trace: the outputs are checked
        torch.onnx.export(
            named,
            example,
            str(path),
            input_names=list(names),
            output_names=list(outputs),
            dynamic_axes=axes,
            opset_version=_OPSET,
            dynamo=False,
        )


def _batches(model: PreTrainedModel) -> Iterator[tuple[Tensor, ...]]:
    longest = longest_input(model.config)
    for rows, length in (*_SHAPES, (1, 128), (2, longest)):
        yield _batch(model, rows, min(length, longest))


def longest_input(config: PreTrainedConfig) -> int:
    """Tokens that a model takes: RoBERTa and its relatives number their positions from the padding token's on."""
    behind_padding = base_model_type(config.model_type) in _POSITIONS_BEHIND_PADDING
    return config.max_position_embeddings - (config.pad_token_id + 1 if behind_padding else 0)


def takes_token_types(config: PreTrainedConfig) -> bool:
    """Whether a model's forward pass makes a difference between token types."""
    return architecture_of(config).token_types and getattr(config, "type_vocab_size", 0) > 0


def _batch(model: PreTrainedModel, rows: int, length: int) -> tuple[Tensor, ...]:
    """Random input_ids, attention_mask and, where it takes them, token_type_ids; each row a token shorter."""
    config, generator = model.config, torch.Generator().manual_seed(0)
    shape = (rows, 2, length) if _has_choices(model) else (rows, length)
    ids = torch.randint(config.vocab_size, shape, generator=generator)
    lengths = (length - torch.arange(rows)).clamp(min=1).view(-1, *[1] * (len(shape) - 1))
    mask = (torch.arange(length) < lengths).expand(shape).long()
    if config.pad_token_id is not None:  # positions of RoBERTa count the tokens that are not padding
        ids = torch.where(ids == config.pad_token_id, (ids + 1) % config.vocab_size, ids)
        ids = ids.masked_fill(mask == 0, config.pad_token_id)
    if not takes_token_types(config):
        return ids, mask
    return ids, mask, torch.randint(config.type_vocab_size, shape, generator=generator)


def _has_choices(model: PreTrainedModel) -> bool:
    return "ForMultipleChoice" in type(model).__name__


def _read_checked(path: Path) -> onnx.ModelProto:
    """The graph of a file, once it is known to be whole, an encoder's, and to need nothing outside itself."""
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
    if not set(INPUTS[:2]) <= inputs <= set(INPUTS) or not outputs or not outputs <= set(OUTPUTS):
        raise UserError(
            f"{path} is no encoder written here: {', '.join(sorted(inputs))} -> {', '.join(sorted(outputs))}"
        )
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


def _config_beside(folder: Path) -> PreTrainedConfig | None:
    file = folder / "config.json"
    if not file.is_file():
        return None
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        stock = CONFIG_MAPPING[settings.pop("model_type")]
    except (OSError, ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{file} is unreadable, or of no known model type ({type(error).__name__})") from error
    return make_config(stock, settings, str(file))


def _refuse_foreign(target: Path) -> None:
    """Checkpoints and bertarized models have a manifest too: only one that lists a graph is ours to replace."""
    listed = atomic.read_manifest(target) if (target / atomic.MANIFEST).is_file() else {}
    if target.exists() and not {MODEL_FILE, _EARLIER[MODEL_FILE]} & {*listed}:
        raise FileExistsError(f"--target_model_path {target} exists and is no ONNX folder; it is left alone")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _summary(result: OnnxExport, target: Path) -> str:
    lines = [f"{MODEL_FILE:25} {result.size / 1e6:9.3f} MB  largest difference to PyTorch {result.difference:.1e}"]
    if result.int8_size is not None:
        lines.append(
            f"{INT8_FILE:25} {result.int8_size / 1e6:9.3f} MB  largest difference to PyTorch "
            f"{result.int8_difference:.1e}"
        )
    return "\n".join([*lines, str(target)])


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser("Write a model as ONNX, as transformers.js reads it, and check it against PyTorch.")
    parser.add_argument("--model_name_or_path", required=True, help="folder of a masked, plain or small model")
    parser.add_argument(
        "--target_model_path", "--output", help="folder to write; onnx_<name> beside the model if absent"
    )
    switch(parser, "--int8", f"write {INT8_FILE} too, with int8 weights and dynamic quantisation", default=True)
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
