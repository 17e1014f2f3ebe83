"""Without a package, a command says in one line what to install."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models

from emmental.export import onnx
from emmental.inference import engines

WITHOUT = """
import runpy, sys
for name in sys.argv[1].split(","):
    sys.modules[name] = None
sys.argv = sys.argv[2:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
"""Runs a module as if packages were not installed."""
INSTALL = "pip install onnx onnxruntime"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model, its ONNX files and a text."""
    place = tmp_path_factory.mktemp("optional")
    model = str(tiny_models.save(place / "model", "bert"))
    onnx.main(["--model_name_or_path", model, "--output", str(place / "served")])
    (place / "texts.txt").write_text("kasa lote\n")
    return place


@pytest.mark.parametrize("missing", ["onnxruntime", "onnx,onnxruntime"])
@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("onnx --model_name_or_path model --output out", INSTALL),
        ("report --model_name_or_path model", INSTALL),
        ("sparse --model_name_or_path model --input texts.txt --engine onnx", "pip install onnxruntime"),
        ("sparse --model_name_or_path served --input texts.txt", "pip install onnxruntime"),
    ],
)
def test_one_line_says_what_to_install(folder, missing, program, said):
    command = [sys.executable, "-c", WITHOUT, missing, *f"emmental.export.{program}".split()]
    root = str(Path(__file__).resolve().parents[1])
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": root})
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.rstrip().endswith(f"not installed: {said}")


@pytest.mark.parametrize("engine", [engines.OPENVINO, engines.ONNX_INT8])
def test_files_are_checked_in_onnx_runtime(engine, monkeypatch):
    """OpenVINO runs a file that was checked there first."""
    found = importlib.util.find_spec
    monkeypatch.setattr(
        engines.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else found(name) or True
    )
    assert engines.why_not(engine) == "onnxruntime is not installed: pip install onnxruntime"
