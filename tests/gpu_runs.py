"""What the tests of a GPU share: whether there is one to use, and what a run logged."""

from __future__ import annotations

import json
import os
from pathlib import Path

ON_GPU = os.environ.get("EMMENTAL_DEVICE", "cpu") == "cuda"
"""`tests/gpu/run.sh` asks for the GPU; in the ordinary test run the same tests use a CPU."""


def losses(folder: Path) -> list[float]:
    """The total loss of each update of a finished run."""
    return [json.loads(line)["loss"] for line in (folder / "train_log.jsonl").read_text().splitlines()]
