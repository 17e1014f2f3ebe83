"""Reads ONNX files without trusting them, and runs them in ONNX Runtime like Transformers models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import onnxruntime
import torch
from google.protobuf.message import DecodeError, Message
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.utils import ModelOutput

from emmental import atomic
from emmental.errors import UserError
from emmental.export.model_folder import make_config, read_settings
from emmental.export.outputs import OUTPUTS

FOLDER = "onnx"
MODEL_FILE, INT8_FILE = f"{FOLDER}/model.onnx", f"{FOLDER}/model_quantized.onnx"
EARLIER_FILES = {MODEL_FILE: "model.onnx", INT8_FILE: "model-int8.onnx"}
"""Where version 0.1 wrote these two files. Its folders are still read."""
LARGEST_FILE = 2_000_000_000
"""In bytes. Protocol buffers cannot be larger than 2 GiB."""
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class OnnxModel(nn.Module):
    """A session of ONNX Runtime that is called like the Transformers model it was made from.

    Attributes:
        config: of the model; None if the file is alone.
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

        Token types are not passed to models without them.
        """
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        token_type_ids = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        given = zip(INPUTS, (input_ids, attention_mask, token_type_ids), strict=True)
        taken = {name: value.long().cpu().numpy() for name, value in given if name in self.input_names}
        arrays = self.session.run(None, taken)
        return ModelOutput(zip(self.output_names, map(torch.from_numpy, arrays), strict=True))


def load_session(path: str | Path, threads: int = 1, int8: bool = False) -> OnnxModel:
    """The model of an ONNX file, ready to be called. Nothing is read but this file and its folder's config.json.

    Args:
        path: a file, or a folder of `export_onnx_folder`.
        threads: of ONNX Runtime.
        int8: load the int8 model of a folder, not the float32 one.

    Raises:
        UserError: `threads` below 1; the file is missing, damaged, not an exported encoder, or refers to other files;
            the folder of `export_onnx_folder` that it is in is damaged.
    """
    path = Path(path)
    if threads < 1:
        raise UserError(f"threads accepts numbers from 1, not {threads}")
    if path.is_dir():
        atomic.verify_folder(path)
        path = onnx_file(path, int8)
    else:
        atomic.verify_if_listed(_folder_of(path))
    checked = read_checked(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4  # errors come as exceptions
    try:
        session = onnxruntime.InferenceSession(
            checked.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime's own types have no common base
        raise UserError(f"{path}: ONNX Runtime refuses it ({one_line(error)})") from error
    return OnnxModel(session, _config_beside(_folder_of(path)))


def onnx_file(folder: str | Path, int8: bool = False) -> Path:
    """The float32 or int8 file of an exported folder, of this version or of an earlier one."""
    name = INT8_FILE if int8 else MODEL_FILE
    earlier = Path(folder) / EARLIER_FILES[name]
    return earlier if earlier.is_file() else Path(folder) / name


def _folder_of(path: Path) -> Path:
    """The folder with the configuration of an ONNX file."""
    return path.parent.parent if path.parent.name == FOLDER else path.parent


def read_checked(path: Path) -> onnx.ModelProto:
    """The graph of a file, after checking that it is whole, is an encoder, and needs no other file."""
    if not path.is_file():
        raise UserError(f"{path} is not an ONNX file: it does not exist")
    if path.stat().st_size > LARGEST_FILE:
        raise UserError(f"{path} is larger than {LARGEST_FILE / 1e9:.0f} GB, the most that one ONNX file may hold")
    try:
        model = onnx.ModelProto.FromString(path.read_bytes())
    except DecodeError as error:
        raise UserError(f"{path} is damaged, or not an ONNX file") from error
    for message in _messages(model):
        if isinstance(message, onnx.TensorProto) and (
            message.data_location == onnx.TensorProto.EXTERNAL or message.external_data
        ):
            raise UserError(f"{path}: {message.name or 'a tensor'} is stored in another file, which is not read")
        if isinstance(message, onnx.FunctionProto | onnx.AttributeProto) and _has_code(message):
            raise UserError(f"{path} has functions or branches, which are not accepted")
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # its error type is not public, and shape inference has its own
        raise UserError(f"{path} is damaged: {one_line(error)}") from error
    inputs, outputs = ({value.name for value in values} for values in (model.graph.input, model.graph.output))
    # An encoder without any head reads no mask.
    if not {INPUTS[0]} <= inputs <= set(INPUTS) or not outputs or not outputs <= set(OUTPUTS):
        raise UserError(
            f"{path} is not an encoder written here: {', '.join(sorted(inputs))} -> {', '.join(sorted(outputs))}"
        )
    return model


def _has_code(message: onnx.FunctionProto | onnx.AttributeProto) -> bool:
    """Loops and branches hold graphs, and ONNX Runtime would run some of them while it loads the file."""
    return isinstance(message, onnx.FunctionProto) or message.HasField("g") or bool(message.graphs)


def _messages(message: Message) -> Iterator[Message]:
    """A protocol buffer and all its parts."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if isinstance(value, Message) else value:
                yield from _messages(part)


def _config_beside(folder: Path) -> PreTrainedConfig | None:
    if not (folder / "config.json").is_file():
        return None
    settings = read_settings(folder)
    return make_config(CONFIG_MAPPING[settings.pop("model_type")], settings, str(folder / "config.json"))


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
