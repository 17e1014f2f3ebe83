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


def update_over_gloo(rank: int, world_size: int, store: str, device: str, out: str) -> None:
    """One update of a linear model by a process of several that share a device; rank 0 stores the weights."""
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.optim.lr_scheduler import LambdaLR

    from emmental.runs.optimization import Learner
    from emmental.runs.precision import Precision
    from emmental.runs.processes import Processes, wrapped

    if world_size > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    where = torch.device(device, 0) if device == "cuda" else torch.device(device)
    torch.manual_seed(0)
    model = nn.Linear(4, 1).to(where)
    optimizer = torch.optim.SGD([{"name": "all", "params": list(model.parameters())}], lr=0.5)
    model_of_all = wrapped(model, Processes(rank, rank, world_size, where))
    loop = Learner(model_of_all, optimizer, LambdaLR(optimizer, lambda _: 1.0), Precision(where), 0.0, model)
    rows = torch.arange(32, dtype=torch.float32, device=where).view(8, 4)[rank::world_size] / 32
    loop.begin_update(1)
    with loop.micro_batch():
        loop.optimize(loop.model(rows).square().mean())
    if rank == 0:
        torch.save(model.state_dict(), out)
    if world_size > 1:
        del loop, model_of_all  # they hold the group
        dist.barrier()  # gloo aborts a process whose neighbour has gone
        dist.destroy_process_group()
