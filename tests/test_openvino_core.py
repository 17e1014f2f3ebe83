"""Signals after OpenVINO's models have gone, in processes of their own: what fails here is a segmentation fault."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("openvino")

_SIGNALS = """
import gc, os, signal
from pathlib import Path
import numpy as np
import openvino
from openvino import opset13
from emmental.openvino_core import compile_model

def engine():
    given = opset13.parameter([1, 4], np.float32)
    openvino.save_model(openvino.Model([opset13.relu(given)], [given], "small"), "small.xml")
    return compile_model(Path("small.xml"), 1, "f32")

handled = []
signal.signal(signal.SIGUSR1, lambda *_: handled.append(1))
first, second = engine(), engine()
del first
gc.collect()
del second
gc.collect()
for _ in range(10):
    os.kill(os.getpid(), signal.SIGUSR1)
print(len(handled))
"""


def test_a_signal_is_handled_after_engines_went_in_the_order_in_which_they_came(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    command = [sys.executable, "-c", _SIGNALS]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stdout.split()) == (0, ["10"]), done.stderr
