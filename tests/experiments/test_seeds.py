"""The runs over seeds: which are made, in what order, and the means of their results."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.seeds import matrix, table


@pytest.fixture
def started(monkeypatch) -> list[list[str]]:
    """The commands of the runs; each ends at once, with a model half as good as the dense one."""
    commands: list[list[str]] = []

    class Finished:
        returncode = 0

        def __init__(self, command: list[str], **_) -> None:
            commands.append(command)
            folder = Path(command[command.index("--output_dir") + 1])
            (folder / "dense").mkdir(parents=True)
            compared = [{"name": "dense", "metric": 0.8}, {"name": "pruned", "metric": 0.4}]
            (folder / "summary.json").write_text(json.dumps({"compared": compared, "remaining": 25.0}))
            (folder / "config.json").write_text("{}")

        def poll(self) -> int:
            return 0

    monkeypatch.setattr(subprocess, "Popen", Finished)
    return commands


def run(monkeypatch, tmp_path, *parts: str) -> list[dict]:
    flags = [
        "--model",
        "MINILM",
        "--data",
        f"sst-2={tmp_path}",
        "--outputs",
        str(tmp_path / "outputs"),
        "--seeds",
        "1",
    ]
    results = tmp_path / "results.jsonl"
    monkeypatch.setattr(sys, "argv", ["matrix", *parts, *flags, "--into", str(results)])
    matrix.main()
    return [json.loads(line) for line in results.read_text().splitlines()]


def test_runs_start_from_the_dense_model_and_are_made_once(monkeypatch, tmp_path, started):
    rows = run(monkeypatch, tmp_path, "no-training", "plain")
    names = ["plain/sst-2-1", *(f"no-training/sst-2-{keep}-1" for keep in ("0.4", "0.25", "0.15"))]
    assert [row["name"] for row in rows] == names
    dense = str(tmp_path / "outputs" / "plain" / "sst-2-1" / "dense")
    starts = [command[command.index("--model_name_or_path") + 1] for command in started]
    assert starts == ["MINILM", dense, dense, dense]
    run(monkeypatch, tmp_path, "no-training", "plain")
    assert len(started) == 4


def test_a_part_without_its_dense_models_says_so(monkeypatch, tmp_path, started):
    with pytest.raises(SystemExit, match="no dense model for recovered"):
        run(monkeypatch, tmp_path, "recovered")


def test_names_differ():
    tasks = ("sst-2", "mrpc", "rte", "sts-b", "movie-reviews", "opinions")
    works = [work for part in matrix.PARTS.values() for work in part(tasks, (1, 2, 3))]
    assert len({work.name for work in works}) == len(works)


def test_means_and_standard_errors():
    def result(name: str, pruned: float) -> dict:
        return {"name": name, "compared": [{"metric": 0.9}, {"metric": pruned}]}

    lines = table.table([result("plain/mrpc-1", 0.8), result("plain/mrpc-2", 0.82), result("plain/rte-1", 0.5)])
    assert "| plain/mrpc | 2 | 90.0 (0.0) | 81.0 (1.0) | 9.0 (1.0) | 90.0 |" in lines
    assert "| plain/rte | 1 | 90.0 | 50.0 | 40.0 | 55.6 |" in lines
