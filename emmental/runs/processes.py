"""Processes: one, or many under torchrun, on CPUs (gloo) or GPUs (NCCL)."""

from __future__ import annotations

import logging
import os
import re
import resource
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from emmental.errors import UserError

logger = logging.getLogger(__name__)

_TIMEOUT = timedelta(minutes=60)
_SECONDS_IN_SILENCE = 10.0
_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
_ALONE = "unset RANK and WORLD_SIZE to run alone"
_POLL_SECONDS = 0.02
_POLLS = 10


@dataclass(frozen=True)
class Processes:
    """This process, one of all that train together.

    Attributes:
        rank: number of this process, from 0; rank 0 writes.
        local_rank: its number on this machine.
        world_size: number of processes.
        device: the device of its tensors.
        control: a gloo group for small messages in CPU memory; None in a single process.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    control: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """True in rank 0, the only process that writes files."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            dist.barrier(group=self.control)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Run the block in rank 0 first, then in the others.

        An error in rank 0 ends its process; torchrun then ends the others, which wait here.
        """
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()

    def any(self, flag: bool) -> bool:
        """True in every process if `flag` is true in one of them."""
        if self.world_size == 1:
            return flag
        votes = torch.tensor([int(flag)])
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self.control)
        return bool(votes.item())

    def gather(self, rows: Tensor) -> list[Tensor]:
        """CPU tensors (n_r, ...) of every rank, in rank order; n_r may differ between ranks."""
        if self.world_size == 1:
            return [rows]
        counts = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        dist.all_gather(counts, torch.tensor([len(rows)]), group=self.control)
        longest = max(int(count) for count in counts)
        padded = rows.new_zeros((longest, *rows.shape[1:]))
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in range(self.world_size)]
        dist.all_gather(gathered, padded, group=self.control)
        return [part[: int(count)] for part, count in zip(gathered, counts, strict=True)]

    def sum(self, value: Tensor) -> Tensor:
        """Sum of a tensor over all ranks, on its own device; does not wait for a GPU."""
        if self.world_size > 1:
            value = value.clone()
            dist.all_reduce(value, group=self.control if value.device.type == "cpu" else None)
        return value


def start(no_cuda: bool = False) -> Processes:
    """Join the processes that torchrun started (it sets RANK, LOCAL_RANK, WORLD_SIZE), or run as a single process.

    Sets the CUDA device, and asks for algorithms that give the same bits in every run.

    Raises:
        UserError: more processes on this machine than GPUs, or the variables say nothing that can be done.
    """
    cuda = torch.cuda.is_available() and not no_cuda
    rank, local_rank, world_size = _place_in_group()
    if cuda and local_rank >= torch.cuda.device_count():
        raise UserError(
            f"torchrun --nproc_per_node accepts up to {torch.cuda.device_count()} here, one process a GPU; "
            "--no_cuda runs on CPUs"
        )
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.cuda.set_device(device)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # it costs time and only finds bugs
    if world_size == 1:
        return Processes(device=device)
    with _told_if_it_waits(rank, world_size):
        if not dist.is_initialized():
            _join(rank, world_size, device if cuda else None)
        control = dist.new_group(backend="gloo", timeout=_TIMEOUT)
    return Processes(dist.get_rank(), local_rank, dist.get_world_size(), device, control)


def _place_in_group() -> tuple[int, int, int]:
    """(rank, rank on this machine, number of processes), as the environment's variables say.

    Without RANK the others are left over from another job, and this is a single process.

    Raises:
        UserError: a variable is missing or has a value that cannot be.
    """
    known = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    if "RANK" not in known:
        if left := [f"{name}={value}" for name, value in known.items() if value not in ("0", "1", "-1")]:
            logger.warning("%s without RANK: left over from another job and ignored", ", ".join(left))
        if os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1" and "SLURM_PROCID" in os.environ:
            logger.warning("srun started several tasks, and each runs alone: start one, which calls torchrun")
        return 0, 0, 1
    numbers = {"LOCAL_RANK": 0, "WORLD_SIZE": 1, **{name: _number(name, value) for name, value in known.items()}}
    rank, world_size = numbers["RANK"], numbers["WORLD_SIZE"]
    if rank >= max(1, world_size):
        raise UserError(f"RANK={rank} is not below WORLD_SIZE={world_size}; {_ALONE}")
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if world_size > 1 and missing and not dist.is_initialized():
        raise UserError(
            f"RANK={rank} and WORLD_SIZE={world_size} name a group of processes, but {' and '.join(missing)} must "
            f"be set too; {_ALONE}, or start the group with torchrun"
        )
    return (rank, numbers["LOCAL_RANK"], world_size) if world_size > 1 else (0, numbers["LOCAL_RANK"], 1)


def _number(name: str, value: str) -> int:
    if not value.isdecimal():
        raise UserError(f"the environment variable {name} accepts a number, not {value!r}; {_ALONE}")
    return int(value)


@contextmanager
def _told_if_it_waits(rank: int, world_size: int) -> Iterator[None]:
    """Say what the block waits for if it takes more than ten seconds. It waits on."""
    others = "process 0" if rank else "process 1" if world_size == 2 else f"{world_size - 1} others"
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    line = (
        f"RANK={rank} and WORLD_SIZE={world_size} say that this is process {rank} of {world_size}: it waits for "
        f"{others} at {place} (MASTER_ADDR, MASTER_PORT); {_ALONE}"
    )
    timer = threading.Timer(_SECONDS_IN_SILENCE, logger.warning, [line])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _join(rank: int, world_size: int, gpu: torch.device | None) -> None:
    try:
        store, rank, world_size = next(dist.rendezvous("env://", timeout=_TIMEOUT))
    except (dist.DistNetworkError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise UserError(f"MASTER_ADDR and MASTER_PORT name no place to meet ({reason}); {_ALONE}") from error
    dist.init_process_group(
        "gloo" if gpu is None else "nccl",
        store=attempt_store(store, rank, world_size),
        rank=rank,
        world_size=world_size,
        timeout=_TIMEOUT,
        device_id=gpu,
    )


def attempt_store(store: dist.Store, rank: int, world_size: int, timeout: timedelta = _TIMEOUT) -> dist.Store:
    """A part of `store` that no earlier attempt has written to, the same part in every rank.

    torchrun keeps one store for all its restarts, and gives attempts no number that all machines agree on (a machine
    counts only its own failures). Without this a restarted rank may read the address of a killed one and be refused.
    Rank 0 announces a new name and answers each rank that uses it, with a token of that rank. It never answers an old
    name.

    Raises:
        TimeoutError: a rank did not answer in time.
    """
    token = uuid.uuid4().hex
    if rank == 0:
        store.set("attempt", token)
        store.wait([f"{token}/{other}" for other in range(1, world_size)], timeout)
        for other in range(1, world_size):
            store.set(f"{token}/{store.get(f'{token}/{other}').decode()}", "")
        return dist.PrefixStore(token, store)
    deadline = time.monotonic() + timeout.total_seconds()
    while time.monotonic() < deadline:
        attempt = store.get("attempt").decode()
        store.set(f"{attempt}/{rank}", token)
        for _ in range(_POLLS):
            if store.check([f"{attempt}/{token}"]):
                return dist.PrefixStore(attempt, store)
            time.sleep(_POLL_SECONDS)
    raise TimeoutError(f"rank 0 did not answer rank {rank} within {timeout}")


def wrapped(model: nn.Module, processes: Processes, compiled: bool = False) -> nn.Module:
    """The model, wrapped to average its gradients over all ranks; unchanged in a single process.

    With `compiled`, torch.compile compiles it twice: for the first batch, and for batches of any length. Masks and
    thresholds are inputs of the compiled code, so their changes compile nothing.
    """
    if compiled:
        model.compile()
    if processes.world_size == 1:
        return model
    return DistributedDataParallel(
        model,
        device_ids=[processes.device.index] if processes.device.type == "cuda" else None,
        forward_sync_buffers=False,
        gradient_as_bucket_view=True,
        find_unused_parameters=False,
    )


def memory_of(device: torch.device) -> int:
    """Memory of a GPU, or of this machine, in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def peak_memory(processes: Processes) -> float:
    """Peak memory of this process so far, in GiB: on its GPU, or else in the machine."""
    if processes.device.type == "cuda":
        return torch.cuda.max_memory_allocated(processes.device) / 2**30
    return peak_resident() / 2**30


def peak_resident() -> int:
    """Peak memory of this process so far, in bytes.

    Read from Linux' status of the process; `getrusage` would include what its parent held when it started this one.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return 1024 * int(re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)[1])
    except (OSError, TypeError):
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def stop() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
