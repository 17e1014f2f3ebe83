"""How often the promise of a cascade fails, over random splits of a task's held-out rows.

python -m experiments.cascade.promise outputs/cascade/tickets

The stages answer all rows that nothing was trained on (those to calibrate, and dev) once; the answers are kept in
`FOLDER/held-out.safetensors`. Each split calibrates on a part of the rows, and counts changed answers on the other
part and on all rows. Of these the part is a sample without replacement: there the promise may fail in at most `delta`
of the splits. On the other part, chance adds to it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from emmental import atomic
from emmental.cascade.promise import (
    DELTA,
    EPSILONS,
    Evidence,
    calibrate,
    evidence_of,
    lower_bound,
    outcome,
    rows_needed,
)
from emmental.cascade.timing import MS_ALONE
from emmental.command_line import user_mistakes
from experiments.cascade.stages import task_stages

KEPT, SPLITS, SHARE = "held-out.safetensors", 200, 0.5


def main(argv: Sequence[str] | None = None) -> None:
    """Ask the stages, unless their answers are kept, and split the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="with `rows` (experiments.cascade.rows) and `models` (the trainer)")
    parser.add_argument("--kept", type=Path, help=f"file of the stages' answers; default: FOLDER/{KEPT}")
    parser.add_argument("--splits", type=int, default=SPLITS, help="how many")
    parser.add_argument("--into", type=Path, help="JSON file to write")
    args = parser.parse_args(argv)
    with user_mistakes():
        kept = args.kept or args.folder / KEPT
        if not kept.exists():
            keep_answers(args.folder, kept)
        logits, milliseconds, several = kept_answers(kept)
        rows = simulate(logits, milliseconds, several, splits=args.splits)
        if args.into is not None:
            atomic.write_json(args.into, {"splits": args.splits, "held_out": len(logits[0]), "rows": rows})
    print(table(rows, args.splits, len(logits[0])))


def keep_answers(folder: Path, kept: Path) -> None:
    """Write the logits of every stage on all held-out rows, and the stages' milliseconds, into a file."""
    with tempfile.TemporaryDirectory() as place:
        task = task_stages(folder, Path(place))
        tensors = {
            f"{number}": np.concatenate([one.logits, one.stage.logits(task.dev.texts)]).astype(np.float32)
            for number, one in enumerate(task.stages)
        }
    about = {"milliseconds": task.milliseconds[MS_ALONE], "several": task.last.several}
    with atomic.atomic_file(kept) as temporary:
        save_file(tensors, temporary, {"stages": json.dumps(about)})


def kept_answers(kept: Path) -> tuple[list[np.ndarray], list[float], bool]:
    """Logits of each stage (N, C), their milliseconds, and whether several labels are given at once."""
    with safe_open(kept, "numpy") as file:
        about = json.loads(file.metadata()["stages"])
        logits = [file.get_tensor(str(number)) for number in range(len(about["milliseconds"]))]
    return logits, about["milliseconds"], about["several"]


def simulate(
    logits: Sequence[np.ndarray],
    milliseconds: Sequence[float],
    several: bool = False,
    promises: Sequence[float] = EPSILONS,
    splits: int = SPLITS,
    share: float = SHARE,
) -> list[dict[str, Any]]:
    """A row for each promise that the rows allow: in how many splits it failed, and what it brought.

    Args:
        logits: of each stage (N, C), the last stage's at the end.
        milliseconds: of each stage for one text.
        several: whether several labels are given at once.
        promises: shares of changed answers.
        splits: how many.
        share: of the rows that calibrate.
    """
    rows = len(logits[0])
    size = round(share * rows)
    allowed = [one for one in promises if rows_needed(one) <= size]
    counted: dict[float, list[dict[str, float]]] = {one: [] for one in allowed}
    for seed in range(splits if allowed else 0):
        order = np.random.default_rng(seed).permutation(rows)
        given = [one[order[:size]] for one in logits]
        found = calibrate(given, milliseconds, allowed[0], DELTA, several, seed, epsilons=allowed)
        everything = evidence_of(logits, found.temperatures, milliseconds, several)
        for one in found.table:
            counted[one.promise].append(_counted(one.thresholds, everything, order[size:], one.promise))
    return [
        {"promise": promise, **{name: float(np.mean([one[name] for one in those])) for name in those[0]}}
        for promise, those in counted.items()
    ]


def _counted(
    thresholds: Sequence[float], everything: Evidence, others: np.ndarray, promise: float
) -> dict[str, float]:
    on_others = outcome(thresholds, everything.some(others), promise, DELTA)
    on_all = outcome(thresholds, everything, promise, DELTA)
    return {
        "failed_on_all": on_all.changed > promise,
        "failed_on_others": on_others.changed > promise,
        "beyond_chance": lower_bound(on_others.count, on_others.rows, DELTA) > promise,
        "changed": on_all.changed,
        "faster": float(everything.milliseconds[-1]) / on_all.milliseconds,
    }


def table(rows: Sequence[dict[str, Any]], splits: int, held_out: int) -> str:
    """Markdown."""
    lines = [
        f"{splits} splits of {held_out} held-out rows; the promise may fail in {100 * DELTA:g} % of them",
        "",
        "| promise | fails: on all rows | on the others | beyond chance | changed, mean | times as fast, mean |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        failed = [f"{100 * row[name]:.1f} %" for name in ("failed_on_all", "failed_on_others", "beyond_chance")]
        cells = [f"{100 * row['promise']:g} %", *failed, f"{100 * row['changed']:.2f} %", f"{row['faster']:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines if rows else [*lines[:1], "", "too few rows for any of the promises"])


if __name__ == "__main__":
    main()
