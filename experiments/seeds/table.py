"""Means over seeds of the runs that `matrix.py` made.

python -m experiments.seeds.table experiments/seeds/h200.jsonl
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("results", type=Path, help="JSON lines that matrix.py wrote")
    args = parser.parse_args()
    runs = [json.loads(line) for line in args.results.read_text().splitlines()]
    print(table(runs))
    if shares := [run for run in runs if run["name"].startswith("shares/")]:
        asked = [100 * float(run["name"].rsplit("-", 1)[1]) for run in shares]
        off = max(abs(run["remaining"] - share) for run, share in zip(shares, asked, strict=True))
        print(f"\nshares asked for: {len(shares)} runs, at most {off:.5f} points off")


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Markdown: dense and pruned metric and their difference, in %, mean (standard error over seeds)."""
    found: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        name, seed = run["name"].rsplit("-", 1)
        dense, *pruned = run["compared"] or [None]  # a dense training compares nothing
        for each in pruned if seed.isdigit() else []:
            which = f"{name}, {each['name']}" if len(pruned) > 1 else name
            found.setdefault(which, []).append((100 * dense["metric"], 100 * each["metric"]))
    lines = ["| run | seeds | dense | pruned | lost | share kept |", "|---|---|---|---|---|---|"]
    for name, pairs in sorted(found.items()):
        dense, pruned = zip(*pairs, strict=True)
        lost = [before - after for before, after in pairs]
        share = 100 * statistics.mean(pruned) / statistics.mean(dense)
        lines.append(f"| {name} | {len(pairs)} | {_text(dense)} | {_text(pruned)} | {_text(lost)} | {share:.1f} |")
    return "\n".join(lines)


def _text(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ({statistics.stdev(values) / len(values) ** 0.5:.1f})"


if __name__ == "__main__":
    main()
