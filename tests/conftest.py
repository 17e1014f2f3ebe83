"""What every test relies on: one thread, no network, the reference numbers, and the place of the real GLUE files."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tiny
import torch
from small_tasks import make_tokenizer, mrpc_dir, tokenizer  # noqa: F401

if TYPE_CHECKING:
    from emmental.data import FeatureDataset
    from emmental.runs.run import Run

torch.set_num_threads(1)

GOLDEN = Path(__file__).parent / "golden"
REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """A program that a test runs configures the log; its handlers end with the test, as what they write to does."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


@pytest.fixture(autouse=True, scope="session")
def short_timings() -> None:
    """A run ends by timing its models for seconds each; in tests, and in what they fork, a moment is enough."""
    from emmental import latency

    timed = latency.measure
    latency.measure = lambda *given: timed(*given[:5], seconds=0.02)
    latency._PAUSE_SECONDS = 0.0


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


@pytest.fixture(scope="session")
def bert_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense two-class checkpoint with its tokenizer."""
    return tiny.save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def make_args(tmp_path: Path, bert_dir: Path) -> Callable[..., Run]:
    """A run as `main` sees it, with a tiny task in a folder of its own; keywords are more flags."""
    from emmental.runs.run import Run
    from emmental.tasks import resolve_task
    from emmental.training.arguments import parse_arguments

    def make(task: str = "sst-2", **flags: object) -> Run:
        if not (tmp_path / task).exists():
            tiny.write_task(tmp_path / task, task)
        settings = {"output_dir": tmp_path / "out", "feature_cache_dir": tmp_path / "cache", "max_seq_length": 16}
        settings |= {
            "recipe": "paper",
            "model_name_or_path": bert_dir,
            "data_dir": tmp_path / task,
            "task_name": task,
            **flags,
        }
        argv = [f"--{n}" if v is True else f"--no-{n}" if v is False else f"--{n}={v}" for n, v in settings.items()]
        run = Run(parse_arguments([*argv, "--no_cuda"]))
        run.task = resolve_task(task)
        return run

    return make


@pytest.fixture
def make_features(tmp_path: Path) -> Callable[..., FeatureDataset]:
    """The tokenised rows of a tiny task."""
    from emmental.data import load_features
    from emmental.tasks import resolve_task

    def make(task: str = "sst-2", split: str = "dev", **sizes: int) -> FeatureDataset:
        folder = tiny.write_task(tmp_path / f"{task}-{sizes}", task, **sizes)
        return load_features(
            resolve_task(task), folder, split, tiny.tokenizer(), 16, tmp_path / "cache", show_progress=False
        )

    return make
