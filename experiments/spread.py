"""Write mean and spread over seeds of pruning with and without distillation to results.json, and print a table."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from pathlib import Path

from emmental import atomic

KINDS = {"alone": "movement pruning", "distilled": "movement pruning with distillation"}


def main() -> None:
    """Read the finished runs, write and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs, <kind>-<seed> each")
    parser.add_argument("--into", type=Path, required=True, help="results.json to write")
    args = parser.parse_args()
    results = {kind: results_of(args.runs, kind) for kind in KINDS}
    results["machine"] = f"{os.cpu_count()} CPU cores ({platform.machine()})"
    atomic.write_json(args.into, results)
    print(table(results))


def results_of(runs: Path, kind: str) -> dict:
    """Accuracy and remaining weights of every seed, their mean, and the sample standard deviation."""
    seeds = {}
    for file in sorted(runs.glob(f"{kind}-*/summary.json")):
        run = json.loads(file.read_text())
        names = ("remaining", "updates", "seconds")
        seeds[file.parent.name.rpartition("-")[2]] = {
            "acc": run["metrics"]["acc"],
            **{name: run[name] for name in names},
        }
    accuracies = [run["acc"] for run in seeds.values()]
    spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    return {"seeds": seeds, "mean": statistics.mean(accuracies), "standard_deviation": spread}


def table(results: dict) -> str:
    """Markdown: a line for each kind."""
    lines = ["| | remaining % | accuracy, mean | standard deviation | seeds |", "|---" * 5 + "|"]
    for kind, title in KINDS.items():
        found = results[kind]
        remaining = statistics.mean(run["remaining"] for run in found["seeds"].values())
        values = f"{remaining:.1f} | {100 * found['mean']:.2f} | {100 * found['standard_deviation']:.2f}"
        lines.append(f"| {title} | {values} | {len(found['seeds'])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
