"""The stages of a cascade as they are served: texts in, logits out. NumPy, tokenizers and each stage's engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from emmental.cascade.words import Text, read_bag_of_words
from emmental.errors import UserError
from emmental.openvino_core import compile_model

TOKENIZER_FILE, FP32_FILE, INT8_FILE = "tokenizer.json", "onnx/model.onnx", "onnx/model_quantized.onnx"
OPENVINO_INT8_FILE = "openvino/openvino_model_qint8_quantized.xml"
FILES = {
    "onnx": (FP32_FILE,),
    "onnx-int8": (INT8_FILE,),
    "openvino": (FP32_FILE,),
    "openvino-bf16": (FP32_FILE,),
    "openvino-int8": (OPENVINO_INT8_FILE, OPENVINO_INT8_FILE.replace(".xml", ".bin")),
}
"""Engines that need no PyTorch -> the files that each runs, the model first. Other engines run `TORCH_FILE`."""
TORCH_FILE = "model.safetensors"
BF16 = "computes_in_bf16"
"""Setting of a stage in OpenVINO."""
WORDS_ENGINE = "words"
"""The engine of a bag of words."""
_INPUTS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
"""Input of a model -> attribute of an encoded text."""

Runner = Callable[[Mapping[str, np.ndarray]], np.ndarray]
"""Inputs, each (B, T) int64 -> logits (B, C)."""


class Stage(Protocol):
    """Classifies texts."""

    def logits(self, texts: Sequence[Text], batch_size: int = 32) -> np.ndarray:
        """(N, C) logits, classes in the cascade's order."""


class WordsStage:
    """A bag of words."""

    def __init__(self, folder: Path) -> None:
        self._words = read_bag_of_words(folder)

    def logits(self, texts: Sequence[Text], batch_size: int = 32) -> np.ndarray:
        """See `Stage`."""
        return self._words.logits(texts)


class ModelStage:
    """An encoder in one engine. Texts are computed in batches of similar length."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], threads: int) -> None:
        """Args:
        folder: of the stage.
        settings: `engine`, `max_length`, `truncation_side`, `pad_token_id` and `order`: for each output of the model
            the number of its class in the cascade; for OpenVINO also `BF16`.
        threads: of the engine.
        """
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        except Exception as error:  # tokenizers raises plain exceptions
            raise UserError(f"{folder / TOKENIZER_FILE} cannot be read ({error})") from error
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # "[SEP]" in a text is text, as in training
        self._tokenizer.enable_truncation(
            settings["max_length"], strategy="longest_first", direction=settings["truncation_side"]
        )
        self._padding = {"input_ids": settings["pad_token_id"]}
        self._order = np.argsort(settings["order"])
        self._run, self._names = _runner(folder, settings, threads)

    def logits(self, texts: Sequence[Text], batch_size: int = 32) -> np.ndarray:
        """See `Stage`."""
        rows = self._tokenizer.encode_batch(list(texts))
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        found = np.empty((len(rows), len(self._order)), np.float32)
        for begin in range(0, len(order), batch_size):
            chosen = order[begin : begin + batch_size]
            found[chosen] = self._run(self._padded([rows[row] for row in chosen]))[:, self._order]
        return found

    def _padded(self, rows: Sequence[Any]) -> dict[str, np.ndarray]:
        longest = max(len(row) for row in rows)
        inputs = {}
        for name in self._names:
            inputs[name] = np.full((len(rows), longest), self._padding.get(name, 0), np.int64)
            for number, row in enumerate(rows):
                inputs[name][number, : len(row)] = getattr(row, _INPUTS[name])
        return inputs


def read_stage(folder: Path, settings: Mapping[str, Any], threads: int) -> Stage:
    """The stage in a folder."""
    if settings["engine"] == WORDS_ENGINE:
        return WordsStage(folder)
    return ModelStage(folder, settings, threads)


def _runner(folder: Path, settings: Mapping[str, Any], threads: int) -> tuple[Runner, Sequence[str]]:
    """What computes logits in an engine, and the names of the inputs that it takes."""
    engine = settings["engine"]
    if engine not in FILES:
        return _in_pytorch(folder, engine, threads)
    for name in FILES[engine]:
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} does not exist: the stage for engine {engine} is not whole")
    path = folder / FILES[engine][0]
    if engine.startswith("onnx"):
        return _in_onnx(path, threads)
    return _in_openvino(path, bool(settings.get(BF16, engine == "openvino-bf16")), threads)


def _in_onnx(path: Path, threads: int) -> tuple[Runner, Sequence[str]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4  # errors come as exceptions
    try:  # from bytes: a file cannot name others beside it
        session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own types have no common base
        raise UserError(f"{path}: ONNX Runtime refuses it ({' '.join(str(error).split())[:200]})") from error
    names = [value.name for value in session.get_inputs()]
    return lambda inputs: session.run(["logits"], dict(inputs))[0], names


def _in_openvino(path: Path, bf16: bool, threads: int) -> tuple[Runner, Sequence[str]]:
    try:
        compiled = compile_model(path, threads, "bf16" if bf16 else "f32")
    except ImportError as error:
        raise UserError(f"{path} runs in OpenVINO, which is not installed: pip install openvino") from error
    except RuntimeError as error:
        raise UserError(f"{path}: OpenVINO refuses it ({' '.join(str(error).split())[:200]})") from error
    return lambda inputs: compiled(dict(inputs))[0].copy(), [value.any_name for value in compiled.inputs]


def _in_pytorch(folder: Path, engine: str, threads: int) -> tuple[Runner, Sequence[str]]:
    try:
        import torch

        from emmental.export.model_folder import read_model
        from emmental.inference.engines import prepare
    except ImportError as error:
        raise UserError(f"engine {engine} of stage {folder.name} needs PyTorch and Transformers ({error})") from error
    model = prepare(read_model(folder), engine, threads)

    def run(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            return model(**{name: torch.from_numpy(value) for name, value in inputs.items()}).logits.numpy()

    return run, list(_INPUTS)
