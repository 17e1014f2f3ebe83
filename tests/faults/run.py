"""The long form of the fault tests: everything in every part, and the table in the README.

PYTHONPATH=tests python -m faults.run --long                    all parts
PYTHONPATH=tests python -m faults.run --long kills damage       some of them
PYTHONPATH=tests python -m faults.run                           the short form, through pytest
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PARTS = (
    "kills",
    "moments",
    "command_lines",
    "disks",
    "exports",
    "damage",
    "hostile",
    "fuzz",
    "processes",
    "changes",
    "long_runs",
    "long_distillation",
    "determinism",
    "non_finite",
    "contradictions",
)


def main() -> int:
    """Run what the command line asks for; the status is 1 when anything was lost."""
    parser = argparse.ArgumentParser(description="Break the program on purpose and count what it loses.")
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(PARTS)}; all if none is given")
    parser.add_argument("--long", action="store_true", help="the long form, about 40 minutes on one core")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn at random")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"there is no part {unknown.pop()}")
    if not args.long:
        import pytest

        return int(pytest.main([str(HERE)]))
    _prepare()
    return max(_long_form(part, args.seed) for part in args.parts or PARTS)


def _prepare() -> None:
    """One thread and no network."""
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    import torch

    torch.set_num_threads(1)


def _long_form(part: str, seed: int) -> int:
    from faults.tally import store

    folder = Path(tempfile.mkdtemp(prefix=f"faults-{part}-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    tallies = []
    try:
        for tally in importlib.import_module(f"faults.{part}").long_form(folder, seed):
            tallies.append(tally)
            store(part, tallies)
            print(f"{part}: {tally.kind}: {tally.tried} tried, {tally.survived} survived, {len(tally.lost)} lost")
            for line in tally.lost:
                print(f"  lost: {line}")
            sys.stdout.flush()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return int(any(tally.lost for tally in tallies))


if __name__ == "__main__":
    sys.exit(main())
