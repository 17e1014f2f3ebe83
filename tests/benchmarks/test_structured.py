"""The measurement of pruning without training: one row for each share and number of rungs, shares as asked."""

from __future__ import annotations

import tiny

from benchmarks import structured


def test_a_row_for_each_share(tmp_path, capsys):
    tiny.write_task(tmp_path / "SST-2", "sst-2", train=40)
    model = tiny.save_bert(tmp_path / "model")
    where = [f"--model={model}", f"--data_dir={tmp_path / 'SST-2'}", "--task_name=sst-2"]
    results = structured.main(["--threads=1", *where, "--keep", "1.0", "0.5", "--rungs", "1", "2"])
    rows = results["results"]
    assert [(row["rungs"], row["keep"]) for row in rows] == [(1, 1.0), (1, 0.5), (2, 1.0), (2, 0.5)]
    assert rows[0]["left"] == 1.0
    assert rows[0]["share"] == 1.0
    assert 0.5 - 32 / 4096 < rows[1]["left"] <= 0.5
    assert "% of dense" in capsys.readouterr().out
