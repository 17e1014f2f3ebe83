"""The one OpenVINO of a process."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import openvino


@functools.cache
def openvino_core() -> openvino.Core:
    """The core that compiles and reads all models. It is kept until the process ends.

    A core sets the stack on which the process handles signals, and puts back the one before it when it goes. Cores
    that go in the order in which they came leave a stack that is freed already, and the next signal (Ctrl-C, the end
    of a worker process) is a segmentation fault. `openvino.compile_model` makes a core for each model.

    Raises:
        ImportError: OpenVINO is not installed.
    """
    import openvino

    return openvino.Core()


def compile_model(path: Path, threads: int, precision: str) -> openvino.CompiledModel:
    """A file of ONNX or OpenVINO, ready to run on the CPU.

    Args:
        path: of the file.
        threads: of OpenVINO.
        precision: `f32` or `bf16`.

    Raises:
        ImportError: OpenVINO is not installed.
    """
    options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    return openvino_core().compile_model(path, "CPU", options)
