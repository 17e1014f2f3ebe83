"""A single process: it is the main one, waits for nobody, and knows how torchrun would call it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from emmental.errors import UserError
from emmental.runs import processes
from emmental.runs.processes import Processes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch):
    """No torchrun around, and PyTorch's choice of algorithms put back."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def test_alone():
    alone = processes.start(no_cuda=True)
    assert (alone.rank, alone.local_rank, alone.world_size) == (0, 0, 1)
    assert alone.is_main
    assert alone.device == torch.device("cpu")
    assert alone.control is None
    assert not dist.is_initialized()
    assert torch.are_deterministic_algorithms_enabled()


def test_torchrun_with_one_process_needs_no_group(monkeypatch):
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")):
        monkeypatch.setenv(name, value)
    assert processes.start(no_cuda=True).world_size == 1
    assert not dist.is_initialized()


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in (
        ("RANK", "2"),
        ("LOCAL_RANK", "2"),
        ("WORLD_SIZE", "3"),
        ("MASTER_ADDR", "a"),
        ("MASTER_PORT", "1"),
    ):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="--nproc_per_node accepts up to 2 here, one process a GPU; --no_cuda"):
        processes.start()


def test_collectives_of_one_are_identities():
    alone = Processes()
    rows = torch.arange(6).view(3, 2)
    assert [part.tolist() for part in alone.gather(rows)] == [rows.tolist()]
    assert alone.sum(torch.tensor(3.0)).item() == 3.0
    assert (alone.any(True), alone.any(False)) == (True, False)
    alone.barrier()
    entered = []
    with alone.main_first():
        entered.append(1)
    assert entered == [1]


def _attempt(store: dist.Store, first: int, count: int = 3) -> list[dist.Store]:
    """Every rank asks for its part of the store, each from a thread of its own; rank `first` is there first."""
    ranks = [first, *(rank for rank in range(count) if rank != first)]
    with ThreadPoolExecutor(count) as pool:
        waiting = {}
        for rank in ranks:
            waiting[rank] = pool.submit(processes.attempt_store, store, rank, count, timedelta(seconds=30))
            time.sleep(0.05)
        return [waiting[rank].result() for rank in range(count)]


@pytest.mark.parametrize("first", [0, 1, 2])
def test_a_restart_sees_nothing_of_the_attempt_before(first):
    store = dist.HashStore()
    before = _attempt(store, 0)
    before[0].set("address of rank 0", "of a process that was killed")
    assert [part.get("address of rank 0") for part in before] == [b"of a process that was killed"] * 3
    after = _attempt(store, first)
    assert [part.check(["address of rank 0"]) for part in after] == [False] * 3
    after[0].set("address of rank 0", "alive")
    assert [part.get("address of rank 0") for part in after] == [b"alive"] * 3


def test_a_rank_does_not_go_on_with_the_name_of_a_dead_attempt():
    store = dist.HashStore()
    _attempt(store, 0, count=2)
    with pytest.raises(TimeoutError, match="rank 0 did not answer rank 1"):
        processes.attempt_store(store, 1, 2, timedelta(seconds=0.5))


def test_only_rank_0_is_main():
    assert [Processes(rank=rank, world_size=3).is_main for rank in range(3)] == [True, False, False]


def test_the_model_stays_as_it_is():
    model = nn.Linear(2, 2)
    assert processes.wrapped(model, Processes()) is model


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="other systems do not tell it")
def test_peak_memory_is_that_of_the_process_and_not_of_the_one_that_started_it():
    ballast = torch.ones(2**30, dtype=torch.uint8)
    program = "from emmental.runs.processes import peak_resident; print(peak_resident())"
    started = subprocess.run([sys.executable, "-c", program], capture_output=True, cwd=ROOT, check=True)
    assert 2**26 < int(started.stdout) < len(ballast) < processes.peak_resident()
    assert processes.peak_memory(Processes()) == processes.peak_resident() / 2**30


def test_leaving_without_having_joined():
    processes.stop()
    assert not dist.is_initialized()


class TestLeftOverVariables:
    """Of an earlier torchrun, or of a cluster's job script."""

    @pytest.mark.parametrize(
        ("variables", "message"),
        [
            (
                {"RANK": "0", "WORLD_SIZE": "2"},
                "RANK=0 and WORLD_SIZE=2 .* MASTER_ADDR and MASTER_PORT must be set",
            ),
            ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a"}, "but MASTER_PORT must be set too"),
            (
                {"RANK": "2", "WORLD_SIZE": "2"},
                "RANK=2 is not below WORLD_SIZE=2; unset RANK and WORLD_SIZE",
            ),
            ({"RANK": "x"}, "RANK accepts a number, not 'x'"),
            ({"RANK": "0", "WORLD_SIZE": ""}, "WORLD_SIZE accepts a number, not ''"),
            (
                {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "x"},
                "name no place to meet",
            ),
        ],
    )
    def test_what_cannot_be_is_one_line(self, monkeypatch, variables, message):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match=message):
            processes.start(no_cuda=True)

    @pytest.mark.parametrize(
        ("variables", "said"),
        [
            ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 without RANK: left over"),
            ({"LOCAL_RANK": "3"}, "LOCAL_RANK=3 without RANK: left over"),
            ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4"}, "srun started several tasks"),
            ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, ""),
            ({"RANK": "0", "MASTER_ADDR": "a"}, ""),
        ],
    )
    def test_what_does_not_count_is_said_and_the_run_goes_on(self, monkeypatch, caplog, variables, said):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        alone = processes.start(no_cuda=True)
        assert (alone.rank, alone.local_rank, alone.world_size) == (0, 0, 1)
        assert caplog.text.count("\n") == bool(said)
        assert said in caplog.text

    @pytest.mark.parametrize("rank", [0, 1])
    def test_a_wait_is_said_once_and_goes_on(self, rank):
        """A process that nobody joins: after the time given, one line with place and variables."""
        program = (
            "import logging\nfrom emmental.runs import processes\nprocesses._SECONDS_IN_SILENCE = 0.5\n"
            "logging.basicConfig(format='%(message)s')\nprocesses.start(no_cuda=True)"
        )
        group = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        waiting = subprocess.Popen(
            [sys.executable, "-c", program], env={**os.environ, **group}, cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        try:
            line = next(line for line in waiting.stderr if "say that" in line)
            time.sleep(1)
            assert waiting.poll() is None
        finally:
            waiting.kill()
            rest = waiting.communicate()[1]
        assert line == (
            f"RANK={rank} and WORLD_SIZE=2 say that this is process {rank} of 2: it waits for process {1 - rank} at "
            f"127.0.0.1:{group['MASTER_PORT']} (MASTER_ADDR, MASTER_PORT); unset RANK and WORLD_SIZE to run alone\n"
        )
        assert "say that" not in rest


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
