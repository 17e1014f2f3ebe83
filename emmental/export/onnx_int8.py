"""int8 forms of ONNX files: scales of activations are computed for each batch, or fixed by calibration data."""

from __future__ import annotations

import copy
import logging
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.quant_utils import add_pre_process_metadata
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from emmental import atomic
from emmental.data.texts import Text
from emmental.errors import UserError
from emmental.export.onnx_session import OnnxModel, load_session, read_checked


def quantize_int8(path: str | Path, target: str | Path, calibration: Sequence[Mapping[str, Tensor]] = ()) -> None:
    """Write `path`, an ONNX file of `export_onnx`, as `target` with int8 weights, whole or not at all.

    Matrices get a scale for each output, embeddings one for each table. Weights use 7 of the 8 bits: processors
    without VNNI saturate otherwise. Activations are quantised by batch. With calibration data, fixed scales for
    activations are tried too, and the form whose outputs change less on these data is kept.

    Args:
        path, target: files.
        calibration: batches of the model's inputs, each (batch, length) int64, as many as are worth waiting for.

    Raises:
        UserError: `path` does not exist or is damaged.
    """
    checked = read_checked(Path(path))
    with _without_remarks(), atomic.atomic_file(target) as temporary:
        prepared = copy.deepcopy(checked)
        add_pre_process_metadata(prepared)  # shape inference is done by the quantisation itself
        quantize_dynamic(prepared, temporary, per_channel=True, reduce_range=True, weight_type=QuantType.QInt8)
        if not calibration:
            return
        with tempfile.TemporaryDirectory() as folder:
            static = Path(folder) / "static.onnx"
            _quantize_static(Path(path), static, calibration)
            sessions = [load_session(file) for file in (path, temporary, static)]
            exact, dynamic, fixed = ([_main_output(session, batch) for batch in calibration] for session in sessions)
            if _distance(exact, fixed) < _distance(exact, dynamic):
                shutil.copyfile(static, temporary)


@contextmanager
def _without_remarks() -> Iterator[None]:
    """Silence ONNX Runtime's quantisation: it logs a line for each tensor to the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        root.setLevel(level)


def calibration_batches(
    texts: Iterable[Text], tokenizer: PreTrainedTokenizerBase, longest: int, rows: int = 128, batch_size: int = 8
) -> list[dict[str, Tensor]]:
    """The first `rows` texts as batches of inputs, cut to `longest` tokens, at most 128.

    Raises:
        UserError: no text.
    """
    first = list(islice(texts, rows))
    if not first:
        raise UserError("--calibration_file holds no text")
    batches = []
    for begin in range(0, len(first), batch_size):
        columns = zip(
            *(text if isinstance(text, tuple) else (text,) for text in first[begin : begin + batch_size]), strict=True
        )
        found = tokenizer(
            *map(list, columns),
            padding=True,
            truncation=True,
            max_length=min(longest, 128),
            return_token_type_ids=True,
            return_tensors="pt",
        )
        batches.append({name: found[name] for name in ("input_ids", "attention_mask", "token_type_ids")})
    return batches


class _Batches(CalibrationDataReader):
    """Calibration data in the form that ONNX Runtime reads."""

    def __init__(self, batches: Iterable[Mapping[str, Tensor]], names: Iterable[str]) -> None:
        self._batches = iter([{name: batch[name].numpy() for name in names} for batch in batches])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def _quantize_static(path: Path, target: Path, calibration: Sequence[Mapping[str, Tensor]]) -> None:
    """Products and embeddings in int8, with scales of activations from the calibration data."""
    prepared, names = target.with_name("prepared.onnx"), load_session(path).input_names
    quant_pre_process(path, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared,
        target,
        _Batches(calibration, names),
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Gemm", "Gather"],
    )


def _main_output(session: OnnxModel, batch: Mapping[str, Tensor]) -> Tensor:
    return session(**{name: batch[name] for name in session.input_names})[session.output_names[0]]


def _distance(exact: Sequence[Tensor], rounded: Sequence[Tensor]) -> tuple[float, float]:
    """(share of the rows with another largest output, mean difference)."""
    pairs = list(zip(exact, rounded, strict=True))
    changed = sum(int((a.argmax(-1) != b.argmax(-1)).sum()) for a, b in pairs)
    return changed / sum(len(a) for a, _ in pairs), float(np.mean([(a - b).abs().mean() for a, b in pairs]))
