"""How cost grows: with examples, sequence length, layers and ranks.

python -m benchmarks.scale --json scale.json
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import generated, train_step
from benchmarks.arguments import parser
from benchmarks.data import first_batch
from benchmarks.measurements import Spread, report, table
from benchmarks.subjects import SUBJECTS, build
from emmental.data import FeatureDataset, load_features
from emmental.runs import processes
from emmental.tasks import resolve_task

_FAMILY = ("dense", "topK")
_WARMUP = 2


def build_parser() -> argparse.ArgumentParser:
    """The flags. An empty list omits its curve."""
    made = parser(__doc__.splitlines()[0])
    made.add_argument("--examples", type=int, nargs="*", default=[1_000, 10_000, 100_000, 1_000_000], help="lines")
    made.add_argument("--lengths", type=int, nargs="*", default=[16, 32, 64, 128, 256], help="tokens of a row")
    made.add_argument("--layers", type=int, nargs="*", default=[2, 4, 8], help="layers of the model")
    made.add_argument("--ranks", type=int, nargs="*", default=[1, 2], help="processes, one thread each")
    made.add_argument(
        "--rank_lines", type=int, default=392_702, help="lines of the ranks' data; default: as many as MNLI"
    )
    made.add_argument("--hidden", type=int, default=256, help="hidden size of the models")
    made.add_argument("--updates", type=int, default=5, help="timed updates at each point")
    made.add_argument("--batch_size", type=int, default=16, help="rows of a batch, of one rank")
    made.add_argument("--as_rank", type=Path, default=None, help=argparse.SUPPRESS)
    return made


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure the curves. Print tables, write JSON, return its content."""
    options = build_parser().parse_args(argv)
    torch.set_num_threads(options.threads)
    if options.as_rank is not None:
        return work_as_rank(options)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results = {
            "examples": [examples_point(folder / f"lines-{lines}", lines) for lines in options.examples],
            "length": [update_point(options, length=length) for length in options.lengths],
            "layers": [update_point(options, layers=layers) for layers in options.layers],
            "ranks": ranks_points(options, folder) if options.ranks else [],
        }
    return report(options, {"options": vars(options), **results}, *tables(results))


def examples_point(folder: Path, lines: int) -> dict[str, Any]:
    """Seconds to make a cache of generated sentence pairs, and to start from it."""
    generated.write_pairs(folder / "data", lines, (8, 24))
    begin = time.perf_counter()
    load_pairs(folder)
    made = time.perf_counter()
    dataset = load_pairs(folder)
    first_batch(dataset)
    return {"lines": lines, "cold_seconds": made - begin, "warm_seconds": time.perf_counter() - made}


def load_pairs(folder: Path) -> FeatureDataset:
    """The generated pairs of a folder, from their cache if there is one."""
    task = resolve_task("mnli")
    return load_features(
        task, folder / "data", "train", generated.tokenizer(), 128, folder / "cache", show_progress=False
    )


def update_point(options: argparse.Namespace, length: int = 64, layers: int = 4) -> dict[str, Any]:
    """Updates of a dense and of a pruned model of one shape."""
    with tempfile.TemporaryDirectory() as name, train_step.without_bars():
        given = [f"--layers={layers}", f"--hidden={options.hidden}", f"--max_seq_length={length}"]
        given += [f"--batch_size={options.batch_size}", f"--updates={options.updates}", f"--threads={options.threads}"]
        point = train_step.build_parser().parse_args([*given, "--subjects", *_FAMILY])
        updates = train_step.measured(point, Path(name), [])["updates"]
    return {"length": length, "layers": layers, **{subject: updates[subject]["seconds"] for subject in _FAMILY}}


def ranks_points(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Runs with several processes on one machine. All read the same cache."""
    generated.write_pairs(folder / "data", options.rank_lines, (8, 24))
    generated.save_model(folder / "model", 4, options.hidden)
    with train_step.without_bars():
        load_pairs(folder)
    return [_ranks_point(options, folder, ranks) for ranks in options.ranks]


def _ranks_point(options: argparse.Namespace, folder: Path, ranks: int) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    numbers = [f"--{name}={getattr(options, name)}" for name in ("hidden", "updates", "batch_size")]
    command = [sys.executable, "-m", "benchmarks.scale", "--threads=1", f"--as_rank={folder}", *numbers]
    processes = [
        subprocess.Popen(
            command,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(ranks)
    ]
    rows = [json.loads(process.communicate()[0].splitlines()[-1]) for process in processes]
    return {
        "ranks": ranks,
        "start_seconds": max(row["start_seconds"] for row in rows),
        "update_seconds": Spread.of([seconds for row in rows for seconds in row["update_seconds"]]),
        "data_bytes": rows[0]["data_bytes"],
        "private_bytes_of_data": max(row["private_bytes_of_data"] for row in rows),
    }


def work_as_rank(options: argparse.Namespace) -> dict[str, Any]:
    """One process of a run: opens the data, reads all of it once, and makes updates with the others."""
    ours = processes.start(no_cuda=True)
    tokenizer = generated.tokenizer()
    ours.barrier()
    before, begin = private_bytes(), time.perf_counter()
    dataset = load_pairs(options.as_rank)
    batch = first_batch(dataset)
    started = time.perf_counter() - begin
    size = (dataset.folder / "features.safetensors").stat().st_size
    for first in range(0, len(dataset), 4096):
        dataset.batch(range(first, min(first + 4096, len(dataset))))
    held = private_bytes() - before
    seconds = rank_updates(options, ours, batch, tokenizer)
    processes.stop()
    results = {
        "start_seconds": started,
        "update_seconds": seconds,
        "data_bytes": size,
        "private_bytes_of_data": held,
    }
    print(json.dumps(results))
    return results


def rank_updates(
    options: argparse.Namespace, ours: processes.Processes, batch: dict[str, Any], tokenizer: Any
) -> list[float]:
    """Seconds of the updates that all ranks make together, on a batch of `batch_size` rows each."""
    folder = options.as_rank
    words = (30, 30)
    sentences = folder / f"sentences-{ours.rank}"
    generated.write_sentences(sentences, options.batch_size * (options.updates + _WARMUP), words)
    given = [f"--model={folder / 'model'}", f"--data_dir={sentences}", f"--batch_size={options.batch_size}"]
    point = train_step.build_parser().parse_args([*given, "--updates=1"])
    with train_step.without_bars():
        run = build(point, SUBJECTS["topK"], folder / f"rank-{ours.rank}")
    point.warmup, point.phase_updates, point.updates = _WARMUP, 0, options.updates
    batches = train_step.draw_batches(point, run)
    return [train_step.timed_update(run, rows, instrumented=False) for rows, _ in batches][_WARMUP:]


def private_bytes() -> int:
    """Private memory of this process, without mapped files; 0 if the system does not report it."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))


def tables(results: dict[str, Any]) -> list[str]:
    """The curves that were measured."""
    shown = []
    if results["examples"]:
        rows = results["examples"]
        header = ["pairs", "make the cache, s", "us a pair", "start from it, s"]
        shown.append(
            table(
                header,
                (
                    [
                        f"{row['lines']:,}",
                        f"{row['cold_seconds']:.2f}",
                        f"{1e6 * row['cold_seconds'] / row['lines']:.0f}",
                        f"{row['warm_seconds']:.2f}",
                    ]
                    for row in rows
                ),
            )
        )
    for curve in ("length", "layers"):
        if results[curve]:
            header = [curve, *(f"{subject}, ms" for subject in _FAMILY), "ratio"]
            shown.append(table(header, (_update_row(curve, row) for row in results[curve])))
    if results["ranks"]:
        header = ["ranks", "start from the cache, s", "update, ms", "data, MiB", "of it private to a rank, MiB"]
        shown.append(table(header, (_rank_row(row) for row in results["ranks"])))
    return shown


def _update_row(curve: str, row: dict[str, Any]) -> list[str]:
    dense, pruned = (row[subject] for subject in _FAMILY)
    return [str(row[curve]), dense.text(1e3, 0), pruned.text(1e3, 0), f"{pruned.median / dense.median:.3f}"]


def _rank_row(row: dict[str, Any]) -> list[str]:
    sizes = (f"{row[name] / 2**20:.0f}" for name in ("data_bytes", "private_bytes_of_data"))
    return [str(row["ranks"]), f"{row['start_seconds']:.2f}", row["update_seconds"].text(1e3, 0), *sizes]


if __name__ == "__main__":
    main()
