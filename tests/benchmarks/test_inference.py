"""The measurement of inference at a tiny size: what its rows hold, and that the numbers agree with each other."""

from __future__ import annotations

import json

import pytest
import tiny_masked

from benchmarks import inference
from emmental.inference import engines

SMALL = ["--hidden", "64", "--layers", "1", "--batch", "1", "2", "--length", "8", "--seconds", "0.001"]


def test_random_models(tmp_path, capsys):
    flags = ["--density", "0", "0.25", "--engines", "dense", "sparse", "--json", str(tmp_path / "r.json")]
    results = inference.main([*SMALL, *flags])
    assert json.loads((tmp_path / "r.json").read_text()) == results
    assert {"processor", "threads", "torch"} <= results["machine"].keys()
    assert results["options"]["density"] == [0, 0.25]
    rows = results["rows"]
    assert [(row["model"], row["batch"], row["length"]) for row in rows] == 2 * [
        (model, batch, 8) for batch in (1, 2) for model in ("dense", "sparse")
    ]
    for row in rows:
        dense = next(
            r for r in rows if r["model"] == "dense" and all(r[k] == row[k] for k in ("density", "batch", "length"))
        )
        assert row["speedup"] == pytest.approx(dense["median_ms"] / row["median_ms"])
        assert 0 < row["low_ms"] <= row["median_ms"] <= row["high_ms"]
        assert row["difference"] <= 1e-5
        assert row["name"] == "random"
        assert row["calls"] >= 6
    assert rows[0]["density"] == 0
    assert rows[-1]["density"] == pytest.approx(0.25, abs=0.01)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert "25.1 %" in lines[-1]


def test_a_model_folder(tmp_path, capsys):
    tiny_masked.save(tmp_path / "mine")
    results = inference.main([*SMALL, "--model", str(tmp_path / "mine"), "--engines", "dense", "sparse"])
    assert {row["name"] for row in results["rows"]} == {"mine"}
    assert {row["density"] for row in results["rows"]} == {0.25}
    assert "mine" in capsys.readouterr().out


def test_onnx_runtime_where_it_is():
    pytest.importorskip("onnxruntime")
    results = inference.main([*SMALL, "--density", "0.5", "--batch", "1"])
    differences = {row["model"]: row["difference"] for row in results["rows"]}
    assert [name for name in differences if name != "torch-bf16"] == ["dense", "sparse", "onnx", "onnx-int8"]
    assert differences["onnx"] <= 1e-5 < differences["onnx-int8"] < 1


def test_onnx_runtime_may_be_missing(monkeypatch, capsys):
    monkeypatch.setattr(engines, "why_missing", lambda name: f"{name} is not installed: pip install {name}")
    results = inference.main([*SMALL, "--density", "0.5", "--batch", "1"])
    assert {row["model"] for row in results["rows"]} - {"torch-bf16"} == {"dense", "sparse"}
    assert "onnx is left out: onnxruntime is not installed: pip install onnxruntime" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--density", "30"], "--density accepts shares from 0 to 1, not 30"),
        (["--hidden", "100"], "--hidden accepts multiples of 64, not 100"),
        (["--batch", "0"], "--batch accepts numbers from 1, not 0"),
        (["--seconds", "0"], "--seconds accepts numbers above 0, not 0"),
        (["--engines", "sparse"], "--engines must include dense"),
        (["--engines", "dense", "tpu"], "--engines accepts dense, torch, torch-bf16, sparse, onnx, "),
        (["--model", "missing"], "missing has no config.json"),
    ],
)
def test_mistakes(flags, message, capsys):
    with pytest.raises(SystemExit) as left:
        inference.main(flags)
    assert left.value.code == 2
    assert message in capsys.readouterr().err
