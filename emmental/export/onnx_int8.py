"""int8 forms of ONNX files: scales of activations are computed for each batch, or fixed by calibration data."""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.quant_utils import add_pre_process_metadata
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from emmental import atomic
from emmental.data.padding import pad_lists
from emmental.data.texts import Text
from emmental.errors import UserError
from emmental.export.calibration import (
    CALIBRATION_ROWS,
    CALIBRATION_TOKENS,
    DYNAMIC,
    MIXED,
    NO_DATA,
    STATIC,
    Calibration,
)
from emmental.export.onnx_outliers import largest_inputs, products, round_embeddings, split_outliers
from emmental.export.onnx_session import INPUTS, load_session, read_checked

FAR = 0.002
"""Half the distance at which 1 % of the answers changed, on SST-2 and MRPC; see `distance`."""
_LAYER = re.compile(r"layers?[./]\d+|layer_groups[./]\d+")
_PRODUCTS: dict[str, Any] = {
    "op_types_to_quantize": ["MatMul"],
    "per_channel": True,
    "reduce_range": True,
    "weight_type": QuantType.QInt8,
}


def quantize_int8(path: str | Path, target: str | Path, calibration: Calibration = NO_DATA) -> str:
    """Write `path`, an ONNX file of `export_onnx`, as `target` with int8 weights, whole or not at all.

    Matrices get a scale for each output, embeddings one for each token. A few channels of each product stay in
    float32, see `split_outliers`; without calibration data they are chosen with random tokens. Weights of matrices
    use 7 of the 8 bits, because sums saturate on processors without VNNI otherwise. With calibration data, dynamic and
    static int8 are tried. Of the forms that are accepted, the one whose outputs on these data change least is kept; if
    none is accepted, the one that changes least of all. If both change by more than `FAR`, each layer is tried in
    float32. The best of these forms goes first if it halves the distance.

    Args:
        path, target: files.
        calibration: see there.

    Returns:
        The form that is kept, a name among `FORMS`.

    Raises:
        UserError: `path` does not exist or is damaged.
    """
    checked = read_checked(Path(path))
    with _without_remarks(), atomic.atomic_file(target) as temporary, tempfile.TemporaryDirectory() as folder:
        split = onnx.ModelProto()
        split.CopyFrom(checked)
        batches = calibration.batches
        exact = split_outliers(split, largest_inputs(checked, batches or [_random_tokens(checked)]))
        round_embeddings(split)
        dynamic, static = (Path(folder) / f"{form}.onnx" for form in (DYNAMIC, STATIC))
        if DYNAMIC in calibration.forms or not batches:
            _quantize_dynamic(split, dynamic, exact)
        if STATIC in calibration.forms and batches:
            _quantize_static(split, static, batches, exact)
        files = [file for file in (dynamic, static) if file.exists()]
        others = _each_layer_exact(split, Path(folder), exact) if MIXED in calibration.forms else ()
        kept = files[0] if len(files) == 1 else _best_form(Path(path), files, others, calibration)
        shutil.copyfile(kept, temporary)
    return kept.stem.partition("-")[0]


def _best_form(path: Path, files: Sequence[Path], others: Iterable[Path], calibration: Calibration) -> Path:
    """The accepted file whose outputs are closest to those of `path`; the closest of all if none is accepted.

    `others` are slower. They are tried only if all `files` are further than `FAR`, and must halve the distance.
    """
    wanted = _outputs(path, calibration.batches)

    def distances(forms: Iterable[Path]) -> dict[Path, float]:
        return {file: distance(wanted, _outputs(file, calibration.batches)) for file in forms}

    known = distances(files)
    order = sorted(known, key=known.__getitem__)
    if known[order[0]] > FAR:
        slower = distances(others)
        closest = min(slower, key=slower.__getitem__, default=None)
        if closest is not None and slower[closest] <= known[order[0]] / 2:
            order.insert(0, closest)
    accepts = calibration.accepts or (lambda file: True)
    return next(filter(accepts, order), order[0])


def _each_layer_exact(model: onnx.ModelProto, folder: Path, exact: Sequence[str]) -> Iterator[Path]:
    """Files with one layer in float32 each; none if layers share their weights."""
    layers: dict[str, list[str]] = {}
    for node in products(model):
        if node.name not in exact and (found := _LAYER.search(node.name)):
            layers.setdefault(found.group(), []).append(node.name)
    for number, names in enumerate(layers.values() if len(layers) > 1 else ()):
        file = folder / f"{MIXED}-{number}.onnx"
        _quantize_dynamic(model, file, [*exact, *names])
        yield file


def _random_tokens(model: onnx.ModelProto, rows: int = 32, length: int = 16) -> dict[str, Tensor]:
    """Random inputs for any model here. They find the same channels with large values as texts do."""
    shape = [rows, 1, length] if len(model.graph.input[0].type.tensor_type.shape.dim) == 3 else [rows, length]
    words = next(
        value.dims[0]
        for node in model.graph.node
        for value in model.graph.initializer
        if node.op_type == "Gather" and [*node.input] == [value.name, INPUTS[0]]
    )
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(words, shape, generator=generator)
    return dict(zip(INPUTS, (ids, torch.ones_like(ids), torch.zeros_like(ids)), strict=True))


@contextmanager
def _without_remarks() -> Iterator[None]:
    """Silence ONNX Runtime's quantisation, which logs a line for each tensor to the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        root.setLevel(level)


def calibration_batches(
    texts: Iterable[Text], tokenizer: PreTrainedTokenizerBase, longest: int, batch_size: int = 8
) -> list[dict[str, Tensor]]:
    """The first `CALIBRATION_ROWS` texts as batches of inputs, cut to `longest` tokens or `CALIBRATION_TOKENS`.

    Raises:
        UserError: no text.
    """
    first = list(islice(texts, CALIBRATION_ROWS))
    if not first:
        raise UserError("--calibration_file holds no text")
    batches = []
    for begin in range(0, len(first), batch_size):
        columns = zip(
            *(text if isinstance(text, tuple) else (text,) for text in first[begin : begin + batch_size]), strict=True
        )
        found = tokenizer(
            *map(list, columns),
            truncation=True,
            max_length=min(longest, CALIBRATION_TOKENS),
            return_token_type_ids=True,
            split_special_tokens=True,  # text is text, as in training
        )
        paddings = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0, "token_type_ids": 0}
        batches.append({name: pad_lists(found[name], padding) for name, padding in paddings.items()})
    return batches


class _Batches(CalibrationDataReader):
    """Calibration data in the form that ONNX Runtime reads."""

    def __init__(self, batches: Iterable[Mapping[str, Tensor]], names: Iterable[str]) -> None:
        self._batches = iter([{name: batch[name].numpy() for name in names} for batch in batches])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def _quantize_dynamic(model: onnx.ModelProto, target: Path, exact: Sequence[str]) -> None:
    """Quantise products to int8; the scales of their inputs are computed for each batch."""
    prepared = onnx.ModelProto()
    prepared.CopyFrom(model)
    add_pre_process_metadata(prepared)  # else a warning asks for shape inference, which quantize_dynamic does itself
    quantize_dynamic(prepared, target, nodes_to_exclude=[*exact], **_PRODUCTS)


def _quantize_static(
    model: onnx.ModelProto, target: Path, calibration: Sequence[Mapping[str, Tensor]], exact: Sequence[str]
) -> None:
    """Quantise products to int8; the scales of their inputs are fixed from the calibration data."""
    path, prepared = target.with_name("split.onnx"), target.with_name("prepared.onnx")
    onnx.save(model, path)
    quant_pre_process(path, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared,
        target,
        _Batches(calibration, [value.name for value in model.graph.input]),
        activation_type=QuantType.QUInt8,
        nodes_to_exclude=[*exact],
        extra_options={"MatMulConstBOnly": True},
        **_PRODUCTS,
    )


def _outputs(path: Path, batches: Iterable[Mapping[str, Tensor]]) -> list[Tensor]:
    """The first output of a file for each batch."""
    session = load_session(path)
    return [
        session(**{name: batch[name] for name in session.input_names})[session.output_names[0]] for batch in batches
    ]


def distance(exact: Sequence[Tensor], rounded: Sequence[Tensor]) -> float:
    """Mean squared difference of outputs in units of the variance of the exact ones."""
    pairs = list(zip(exact, rounded, strict=True))
    wanted, found = (torch.cat([pair[side].flatten() for pair in pairs]) for side in (0, 1))
    return float((found - wanted).square().mean() / wanted.var(correction=0).clamp(min=1e-12))
