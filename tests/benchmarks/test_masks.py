"""The measurement of mask making: exact counts of every method that promises one."""

from __future__ import annotations

from benchmarks import masks


def test_every_method_keeps_what_it_promises():
    results = masks.main(["--layers=1", "--hidden=16", "--repeats=2", "--threads=1", "--density=0.3"])
    measured = results["masks"]
    assert {row["scores"] for row in measured.values()} == {12 * 16 * 16}
    promised = 4 * 76 + 2 * 307  # floor(0.3 * 256) and floor(0.3 * 1024)
    for name in ("topK", "magnitude", "topK by torch.sort"):
        assert measured[name]["kept"] == measured[name]["promised"] == promised, name
    assert measured["topK global"]["kept"] == measured["topK global"]["promised"] == 921  # floor(0.3 * 3072)
    assert measured["topK"]["seconds"]["count"] == 2
    assert measured["topK by torch.sort"]["seconds"]["count"] == 1
