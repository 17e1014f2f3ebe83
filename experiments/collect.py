"""Collect finished runs in an experiment's results.json and print them as a table.

python -m experiments.collect --into experiments/mrpc/results.json outputs/mrpc/*
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path

from emmental import atomic


def main() -> None:
    """Write and print the results of these output folders. They replace earlier results of the same name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--into", type=Path, required=True, help="results.json to write; earlier runs in it are kept")
    parser.add_argument("folders", type=Path, nargs="+", help="output folders of finished runs")
    args = parser.parse_args()
    known = json.loads(args.into.read_text()) if args.into.exists() else {"runs": {}}
    for folder in args.folders:
        if (folder / "summary.json").exists():
            known["runs"][folder.name] = run_of(folder)
    known["machine"] = f"{os.cpu_count()} CPU cores ({platform.machine()})"
    atomic.write_json(args.into, known)
    print(table(known["runs"]))


def run_of(folder: Path) -> dict:
    """The record of a run: its summary and the flags that the user gave."""
    summary = json.loads((folder / "summary.json").read_text())
    flags = json.loads((folder / "training_args.json").read_text())
    given = {name: value for name, value in flags.items() if name not in HIDDEN_FLAGS}
    return {**summary, "flags": given}


HIDDEN_FLAGS = ("data", "data_dir", "output_dir", "model_name_or_path", "feature_cache_dir", "local_rank")


def table(runs: dict[str, dict]) -> str:
    """Markdown: a line for each run."""
    metrics = list(dict.fromkeys(name for run in runs.values() for name in run["metrics"]))
    lines = [f"| run | remaining % | {' | '.join(metrics)} | updates | minutes |", "|---" * (len(metrics) + 4) + "|"]
    for name, run in sorted(runs.items()):
        values = " | ".join(
            f"{100 * run['metrics'][metric]:.1f}" if metric in run["metrics"] else "" for metric in metrics
        )
        lines.append(f"| {name} | {run['remaining']:.1f} | {values} | {run['updates']} | {run['seconds'] / 60:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
