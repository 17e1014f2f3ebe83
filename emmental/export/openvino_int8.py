"""int8 for OpenVINO: NNCF quantises an ONNX file, with scales fixed from calibration texts."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from emmental.openvino_core import openvino_core

OPENVINO_FILE = "openvino/openvino_model_qint8_quantized.xml"
"""Its weights are in a file with the same name that ends in .bin."""


def missing_package() -> str | None:
    """Name of a package that writing needs and that is not installed; None if all are there."""
    return next((package for package in ("openvino", "nncf") if find_spec(package) is None), None)


def write_openvino_int8(path: Path, folder: Path, calibration: Sequence[Mapping[str, Tensor]]) -> None:
    """Write the model of an ONNX file as `OPENVINO_FILE` of a folder, matrices and their inputs in int8.

    Args:
        path: ONNX file of `export_onnx`.
        folder: gets two files.
        calibration: batches of the model's inputs, each (batch, length) int64; all are used.
    """
    import openvino

    with contextlib.redirect_stdout(io.StringIO()):  # progress bars and messages
        import nncf

        logging.getLogger("nncf").setLevel(logging.ERROR)
        model = openvino_core().read_model(path)
        names = [value.any_name for value in model.inputs]
        batches = nncf.Dataset([{name: batch[name].numpy() for name in names} for batch in calibration])
        rounded = nncf.quantize(
            model, batches, model_type=nncf.ModelType.TRANSFORMER, subset_size=max(len(calibration), 1)
        )
    target = folder / OPENVINO_FILE
    target.parent.mkdir()
    openvino.save_model(rounded, target, compress_to_fp16=False)
