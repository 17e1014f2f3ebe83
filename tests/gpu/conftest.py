"""The device that the tests of this folder use: a CPU, or with EMMENTAL_DEVICE=cuda, as `run.sh` sets it, a GPU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from gpu_runs import ON_GPU

ROOT = Path(__file__).resolve().parents[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On a CPU only the tests, and the parameters, that are marked as cheap there."""
    for item in items:
        if ON_GPU and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
        elif not ON_GPU and Path(__file__).parent in item.path.parents and item.get_closest_marker("gpu_only"):
            item.add_marker(pytest.mark.skip(reason="on a GPU only"))


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if ON_GPU else "cpu")


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny dense model without dropout: two devices draw different random numbers."""
    folder = tmp_path_factory.mktemp("dense")
    return tiny.save_bert(folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SST-2."""
    return tiny.write_task(tmp_path_factory.mktemp("data"), "sst-2", train=80)


@pytest.fixture
def flags(dense: Path, data: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """The trainer's command line for ten updates into folder `name`."""

    def make(name: str, *others: str, cpu: bool = not ON_GPU) -> list[str]:
        return [
            *(
                "--data_dir",
                str(data),
                "--task_name",
                "sst-2",
                "--recipe",
                "paper",
                "--model_name_or_path",
                str(dense),
                "--do_train",
            ),
            *("--output_dir", str(tmp_path / name), "--feature_cache_dir", str(tmp_path / "cache")),
            *(
                "--max_steps",
                "10",
                "--max_seq_length",
                "32",
                "--warmup_steps",
                "2",
                "--logging_steps",
                "1",
                "--save_steps",
                "5",
            ),
            *("--initial_warmup", "1", "--final_warmup", "1", "--learning_rate", "1e-3", "--seed", "3"),
            *(["--no_cuda"] if cpu else []),
            *others,
        ]

    return make


@pytest.fixture
def start(flags: Callable[..., list[str]]) -> Callable[..., subprocess.Popen]:
    """Start the trainer in a process of its own, or with `processes` under torchrun."""

    def begin(name: str, *others: str, processes: int = 0, cpu: bool = not ON_GPU) -> subprocess.Popen:
        torchrun = (
            ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes else []
        )
        command = [sys.executable, *torchrun, str(ROOT / "masked_run_glue.py"), *flags(name, *others, cpu=cpu)]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    return begin
