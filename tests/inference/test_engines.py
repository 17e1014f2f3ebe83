"""Engines: the same logits, what a machine lacks is said, and the code that loads a model can be copied."""

from __future__ import annotations

import importlib.util

import pytest
import tiny_masked
import tiny_models
import torch

from emmental import latency
from emmental.errors import UserError
from emmental.export.bertarize import bertarize
from emmental.export.calibration import Calibration
from emmental.export.onnx import export_onnx_folder, write_onnx_folder
from emmental.export.openvino_int8 import missing_package
from emmental.inference import engines
from emmental.inference.engines import (
    ENGINES,
    available,
    bf16_in_hardware,
    code_line,
    measure_together,
    prepare,
    why_not,
)

FREE = [name for name, engine in ENGINES.items() if not engine.calibrated]
"""Engines that run any model, without a file that was made for them."""
EXACT = [name for name, engine in ENGINES.items() if not engine.rounds]
INPUTS = {
    "input_ids": torch.tensor([[2, 5, 9, 17, 30, 3], [2, 7, 8, 3, 0, 0]]),
    "attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2]),
    "token_type_ids": torch.zeros(2, 6, dtype=torch.int64),
}


@pytest.fixture(scope="module")
def model():
    return tiny_masked.make(num_labels=3)


def needs(engine: str) -> None:
    if why_not(engine) is not None:
        pytest.skip(why_not(engine))


@pytest.mark.parametrize("engine", FREE)
def test_every_engine_gives_the_models_logits(engine, model):
    needs(engine)
    with torch.no_grad():
        wanted = model(**INPUTS).logits
    got = prepare(model, engine)(**INPUTS).logits
    assert got.dtype == torch.float32
    difference = (got - wanted).abs().max().item()
    assert difference <= 1e-5 if engine in EXACT else 1e-5 < difference < 0.3


@pytest.mark.parametrize("model_type", ["distilbert", "modernbert", "roberta"])
def test_models_without_token_types_are_called_alike(model_type):
    dense = tiny_models.model(model_type)
    ids = torch.tensor([[4, 9, 12, 7], [4, 8, 7, 10]])
    with torch.no_grad():
        wanted = dense(input_ids=ids).logits
    for engine in ("torch", "onnx"):
        got = prepare(dense, engine)(ids, torch.ones_like(ids), torch.zeros_like(ids)).logits
        assert (got - wanted).abs().max() <= 1e-5


def test_onnx_files_that_are_there_are_used(model, tmp_path):
    write_onnx_folder(bertarize(model), {}, tmp_path / "onnx", int8=True)
    other = tiny_masked.make(num_labels=3, initializer_range=0.4)
    with torch.no_grad():
        wanted = model(**INPUTS).logits
    for engine in ("onnx", "onnx-int8"):
        got = prepare(other, engine, onnx_folder=tmp_path / "onnx")(**INPUTS).logits
        assert (got - wanted).abs().max() < 0.1


def test_openvino_int8_runs_its_own_file(model, tmp_path):
    needs("openvino-int8")
    if missing_package():
        pytest.skip(f"needs {missing_package()}")
    write_onnx_folder(bertarize(model), {}, tmp_path / "served", calibration=Calibration([INPUTS]), openvino=True)
    with torch.no_grad():
        wanted = model(**INPUTS).logits
    got = prepare(model, "openvino-int8", onnx_folder=tmp_path / "served")(**INPUTS).logits
    assert 1e-5 < (got - wanted).abs().max() < 0.3
    assert available(calibrated=True) == [*available(), "openvino-int8"]


def test_openvino_int8_is_timed_without_its_file(model):
    needs("openvino-int8")
    if missing_package():
        pytest.skip(f"needs {missing_package()}")
    assert measure_together({"a": model}, 1, 8, "openvino-int8", threads=1)["a"] > 0


def test_openvino_int8_needs_its_file(model, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "why_not", lambda name: None)
    with pytest.raises(UserError, match="engine openvino-int8 needs the folder that `python"):
        prepare(model, "openvino-int8")
    write_onnx_folder(bertarize(model), {}, tmp_path / "served")
    with pytest.raises(UserError, match=r"engine openvino-int8: .*_quantized.xml does not exist"):
        prepare(model, "openvino-int8", onnx_folder=tmp_path / "served")
    with pytest.raises(UserError, match="--openvino needs texts to fix its scales: give --calibration_file"):
        export_onnx_folder(tmp_path, tmp_path / "other", openvino=True)


def test_what_a_machine_has_not_is_said(model, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False, "amx_bf16": False})
    assert not bf16_in_hardware()
    assert "no bfloat16 in hardware" in why_not("torch-bf16")
    assert "torch-bf16" not in available()
    with pytest.raises(UserError, match="engine torch-bf16: the processor has no bfloat16"):
        prepare(model, "torch-bf16")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False, "amx_bf16": True})
    assert why_not("torch-bf16") is None
    monkeypatch.setattr(engines, "why_missing", lambda name: f"{name} is not installed: pip install {name}")
    assert why_not("onnx") == "onnxruntime is not installed: pip install onnxruntime"
    assert available() == ["torch", "torch-bf16", "sparse"]
    with pytest.raises(UserError, match="--engine accepts torch, torch-bf16, sparse, onnx, onnx-int8"):
        why_not("tensorrt")


def test_measure_gives_milliseconds(model, monkeypatch):
    together = measure_together({"a": model, "b": model}, 2, 4, "onnx", threads=1, seconds=0.01)
    assert list(together) == ["a", "b"]
    assert all(0 < each < 10_000 for each in together.values())
    seen = {}

    def measured(models, batch, length, threads, vocab_size, seconds):
        seen.update(models=list(models), shape=(batch, length), threads=threads, words=vocab_size)
        return []

    monkeypatch.setattr(latency, "measure", measured)
    measure_together({"dense": model, "small": model}, 8, 16, threads=3)
    words = model.config.vocab_size
    assert seen == {"models": ["dense", "small"], "shape": (8, 16), "threads": 3, "words": words}


@pytest.mark.parametrize("engine", ENGINES)
def test_the_code_line_can_be_copied(engine, tmp_path, monkeypatch):
    """It runs as it stands, and gives the model or the session."""
    needs(engine)
    if ENGINES[engine].calibrated and missing_package():
        pytest.skip(f"needs {missing_package()}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("kasa lote\n")
    tiny_models.save(tmp_path / "out", "bert")
    if ENGINES[engine].package:
        from emmental.export.onnx import main

        first = code_line(engine, "out", "bert").splitlines()[0]
        command = first.removeprefix("# first: python -m emmental.export.onnx ")
        main(command.split())
    (tmp_path / "line.py").write_text(code_line(engine, "out", "bert"))
    spec = importlib.util.spec_from_file_location("line", tmp_path / "line.py")
    line = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(line)
    assert hasattr(line, "session") or hasattr(line, "model")
    assert "import emmental\n" in code_line("torch", "out", "small_bert")
    first = code_line("onnx-int8", "out", "bert", form="static").splitlines()[0]
    assert first.endswith("--output out-onnx --calibration_file texts.txt --int8_scales static")
    assert code_line("onnx-int8", "out", "bert", form="mixed").splitlines()[0].endswith("--calibration_file texts.txt")
