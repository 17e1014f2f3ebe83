"""What every test relies on: one thread, no network, the reference numbers, and the place of the real GLUE files."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

torch.set_num_threads(1)

GOLDEN = Path(__file__).parent / "golden"
REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def golden_arrays() -> dict[str, np.ndarray]:
    """Reference arrays of fine-pruning: `bin<i>.*` masks, `model.<method>.*` weights, logits and gradients."""
    with np.load(GOLDEN / "fine_pruning.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="session")
def golden_values() -> dict[str, Any]:
    """Reference numbers of fine-pruning: schedule rows, thresholds, losses, frozen parameters, regularization."""
    return json.loads((GOLDEN / "fine_pruning.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def glue_dir() -> Path:
    """The folder of the real GLUE tasks; a test that needs it is skipped where there is none."""
    folder = Path(os.environ.get("EMMENTAL_GLUE_DIR", REPOSITORY.parent / "shared" / "data" / "glue"))
    if not folder.is_dir():
        pytest.skip(f"no GLUE files at {folder}: set EMMENTAL_GLUE_DIR to the folder that holds MRPC, RTE, ...")
    return folder
