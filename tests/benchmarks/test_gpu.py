"""The measurement for a GPU, on a CPU at a tiny size, so that it cannot rot."""

from __future__ import annotations

import pytest

from benchmarks import gpu


def test_updates_and_inference_of_every_form():
    flags = ["--device=cpu", "--shapes=tiny", "--threads=1", "--precisions=bf16", "--methods", "dense", "topK"]
    results = gpu.main([*flags, "--updates=1", "--batch_size=2", "--batches=1", "--turns=2", "--compiled"])
    (updates,), (served,) = results["updates"].values(), results["inference"].values()
    assert list(updates) == ["dense", "topK", "small, 25 %"]
    assert list(served["1"]) == ["dense", "25 %", "10 %", "10 %, half empty"]
    assert all(spread["count"] == 2 and spread["median"] > 0 for spread in served["1"].values())
    assert results["machine"]["device"] == "cpu"


def test_small_models_have_the_sizes_that_their_names_say():
    models = gpu.forms(gpu.SHAPES["tiny"])
    weights = {name: sum(p.numel() for p in model.bert.encoder.parameters()) for name, model in models.items()}
    assert 0.2 < weights["25 %"] / weights["dense"] < 0.35
    assert weights["10 %, half empty"] < weights["25 %"]


def test_without_a_gpu_one_line(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main([])
    assert capsys.readouterr().err.count("\n") == 1
