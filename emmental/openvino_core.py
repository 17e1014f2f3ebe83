"""The one OpenVINO of a process."""

from __future__ import annotations

import functools
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
