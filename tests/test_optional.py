"""Without a package, a command says in one line what to install."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models

from emmental import optional
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


@pytest.fixture(autouse=True)
def nothing_remembered():
    optional.why_missing.cache_clear()
    yield
    optional.why_missing.cache_clear()


@pytest.mark.parametrize("engine", [engines.OPENVINO, engines.ONNX_INT8])
def test_files_are_checked_in_onnx_runtime(engine, monkeypatch):
    """OpenVINO runs a file that was checked there first."""
    pytest.importorskip(engines.ENGINES[engine].package)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert engines.why_not(engine) == "onnxruntime is not installed: pip install onnxruntime"


BROKEN = "libstdc++.so.6: version `GLIBCXX_3.4.32' not found"


@pytest.fixture
def broken(tmp_path) -> dict[str, str]:
    """An environment in which onnxruntime is installed, but its library does not fit the system."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "onnxruntime.py").write_text(f"raise ImportError({BROKEN!r})\n")
    root = str(Path(__file__).resolve().parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), root])}


@pytest.mark.parametrize(
    "command",
    [
        "emmental.export.onnx --model_name_or_path model --output out",
        "emmental.export.report --model_name_or_path model",
        "emmental.export.sparse --model_name_or_path model --input texts.txt --engine onnx",
        "masked_run_glue --train_file rows.csv --validation_file rows.csv --model_name_or_path model "
        "--max_seq_length 16 --speedup 1.5 --speedup_engine onnx --output_dir fast --dry_run",
    ],
)
def test_a_broken_package_is_named_in_one_line(folder, broken, command):
    rows = "".join(f"{text} {number},{number % 2}\n" for number, text in enumerate(["kasa lote", "bote lote"] * 20))
    (folder / "rows.csv").write_text("sentence1,label\n" + rows)
    done = subprocess.run(
        [sys.executable, "-m", *command.split()], cwd=folder, capture_output=True, text=True, env=broken
    )
    assert done.returncode == 2
    assert f"onnxruntime cannot be imported ({BROKEN})" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_run_goes_to_its_end_without_a_package_that_is_broken(folder, broken):
    rows = "".join(f"{text} {number},{number % 2}\n" for number, text in enumerate(["kasa lote", "bote lote"] * 20))
    (folder / "rows.csv").write_text("sentence1,label\n" + rows)
    command = (
        "masked_run_glue --train_file rows.csv --validation_file rows.csv --model_name_or_path model --keep 0.5 "
        "--max_seq_length 16 --max_steps 2 --output_dir whole --feature_cache_dir cache --no-pictures --no_cuda"
    )
    done = subprocess.run(
        [sys.executable, "-m", *command.split()], cwd=folder, capture_output=True, text=True, env=broken
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "onnxruntime cannot be imported" in done.stdout + done.stderr
    assert (folder / "whole" / "model.safetensors").is_file()
