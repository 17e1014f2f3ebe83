"""The speed of an even small model at a tiny size: how many heads and neurons it has, and what is compared."""

from __future__ import annotations

import json

import pytest

from benchmarks import structured_speed


def test_a_tiny_model(tmp_path, capsys):
    """Hidden 128: of 2 heads one stays, half the attention; with 60 % of all in budget, 332 of 512 neurons."""
    flags = ["--layers", "1", "--hidden", "128", "--batch", "2", "--length", "8", "--seconds", "0.001"]
    found = structured_speed.main([*flags, "--keep", "0.6", "--engines", "torch", "--json", str(tmp_path / "r.json")])
    assert json.loads((tmp_path / "r.json").read_text()) == found
    assert (found["small"]["heads"], found["small"]["neurons"]) == (1, 332)
    assert found["small"]["left"] == pytest.approx(0.6, abs=0.002)
    rows = {row["model"]: row for row in found["rows"]}
    dense, small = rows[structured_speed.DENSE], rows["small, PyTorch fp32"]
    assert small["times_dense"] == pytest.approx(dense["median_ms"] / small["median_ms"])
    assert dense["times_dense"] == 1.0
    assert "1 heads and 332 neurons in each layer: 59.9% of the encoder" in capsys.readouterr().out


def test_what_cannot_be(capsys):
    with pytest.raises(SystemExit):
        structured_speed.main(["--keep", "0", "--hidden", "100"])
    assert "--keep accepts a share above 0" in capsys.readouterr().err
