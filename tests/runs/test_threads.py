"""Threads on a shared machine: quotas of control groups, bounded spinning, and a run that slows down."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from emmental.runs import threads


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


OWN, MOUNT = "proc/self/cgroup", "sys/fs/cgroup"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({OWN: "0::/\n", f"{MOUNT}/cpu.max": "150000 100000\n"}, 1.5),
        ({OWN: "0::/\n", f"{MOUNT}/cpu.max": "max 100000\n"}, None),
        ({OWN: "0::/a/b\n", f"{MOUNT}/a/b/cpu.max": "max 100000\n", f"{MOUNT}/a/cpu.max": "200000 100000\n"}, 2.0),
        ({OWN: "0::/of/the/host\n", f"{MOUNT}/cpu.max": "50000 100000\n"}, 0.5),
        ({OWN: "0::/../x\n", f"{MOUNT}/cpu.max": "300000 100000\n"}, 3.0),
        ({OWN: "0::/\n", f"{MOUNT}/cpu.max": "broken\n"}, None),
        (
            {
                OWN: "7:memory:/m\n4:cpu,cpuacct:/pod\n0::/\n",
                f"{MOUNT}/cpu,cpuacct/pod/cpu.cfs_quota_us": "250000\n",
                f"{MOUNT}/cpu,cpuacct/pod/cpu.cfs_period_us": "100000\n",
                f"{MOUNT}/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                f"{MOUNT}/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            2.5,
        ),
        (
            {
                OWN: "3:cpu:/docker/0a1b\n",
                f"{MOUNT}/cpu/cpu.cfs_quota_us": "100000\n",
                f"{MOUNT}/cpu/cpu.cfs_period_us": "50000\n",
            },
            2.0,
        ),
    ],
)
def test_quota(tmp_path, files, quota):
    assert threads.cpu_quota(write(tmp_path, files)) == quota


@pytest.mark.parametrize(("quota", "cores"), [("max", 8), ("150000", 2), ("800000", 8), ("1600000", 8), ("10000", 1)])
def test_cores_are_those_of_affinity_and_quota(tmp_path, monkeypatch, quota, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    root = write(tmp_path, {OWN: "0::/\n", f"{MOUNT}/cpu.max": f"{quota} 100000\n"})
    assert threads.available_cores(root) == cores


def test_who_chooses_the_threads(monkeypatch):
    monkeypatch.setattr(threads, "available_cores", lambda: 8)
    assert threads.choose_threads(None, environment={}) == 8
    assert threads.choose_threads(None, processes=3, environment={}) == 2
    assert threads.choose_threads(None, processes=9, environment={}) == 1
    assert threads.choose_threads(None, environment={"OMP_NUM_THREADS": "3"}) == 3
    assert threads.choose_threads(None, environment={"OMP_NUM_THREADS": "4,2"}) == 4
    assert threads.choose_threads(None, environment={"OMP_NUM_THREADS": "x"}) == 8
    assert threads.choose_threads(5, processes=2, environment={"OMP_NUM_THREADS": "3"}) == 5


def test_spinning_is_bounded_before_pytorch_is_loaded(monkeypatch):
    environment = {}
    threads.bound_spinning(environment)
    assert environment == {}  # PyTorch is loaded here
    monkeypatch.delitem(sys.modules, "torch")
    threads.bound_spinning(environment)
    assert environment == {"GOMP_SPINCOUNT": threads.SPIN_COUNT}
    for given in ({"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "ACTIVE"}):
        kept = dict(given)
        threads.bound_spinning(kept)
        assert kept == given


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def said(pace: threads.Pace, clock: Clock, seconds: float, count: int) -> list[str]:
    lines = []
    for _ in range(count):
        clock.now += seconds
        lines.append(pace.update())
    return [line for line in lines if line]


def test_a_run_that_becomes_slow_says_so_once():
    clock = Clock()
    pace = threads.Pace(clock)
    assert said(pace, clock, 9.0, 6) == []  # the first updates, which also prepare, are not counted
    assert said(pace, clock, 0.5, 40) == []
    assert said(pace, clock, 60.0, 3) == []  # three evaluations
    assert said(pace, clock, 0.5, 20) == []
    (line,) = said(pace, clock, 1.2, 60)
    assert line.startswith("updates take 1.20 s now and took 0.50 s at first: ")
    assert said(pace, clock, 0.8, 60) == []  # better, and not yet good
    assert said(pace, clock, 1.2, 60) == []
    assert said(pace, clock, 0.5, 60) == []
    assert len(said(pace, clock, 1.2, 60)) == 1


def test_the_module_is_light():
    code = (
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('threads', sys.argv[1])\n"
        "spec.loader.exec_module(importlib.util.module_from_spec(spec))\n"
        "assert not {'torch', 'numpy', 'transformers'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, threads.__file__], check=False).returncode == 0
