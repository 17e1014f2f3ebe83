"""Time of one training update: dense and fine-pruning side by side, in turns, on the same batches.

python -m benchmarks.train_step --model_name_or_path MODEL --data_dir glue/MRPC --task_name mrpc --json results.json
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import generated
from benchmarks.arguments import model_folder, parser
from benchmarks.measurements import Spread, report, table
from benchmarks.subjects import PHASES, SUBJECTS, Entrant, Subject, build
from emmental.command_line import leave_if, user_mistakes
from emmental.data import LengthGroupedBatches, batch_loader
from emmental.reporting.summary import pruning_so_far
from emmental.runs.evaluation import predict_logits
from emmental.runs.processes import peak_resident
from masked_run_glue import load_and_cache_examples

FLOOR, STOCK = "dense", "dense, plain PyTorch"
DEFAULT_SUBJECTS = [name for name, subject in SUBJECTS.items() if not subject.reference]
_BF16 = ", bf16"
_MEMORY_UPDATES = 3
_RATIOS = ("times dense (quartiles)", "times plain PyTorch (quartiles)")
_COLUMNS = ("data", *PHASES, "logging")


def build_parser() -> argparse.ArgumentParser:
    """The flags. Without a folder, model or data are generated."""
    made = parser(__doc__.splitlines()[0])
    model_folder(made, "folder of a dense BERT with its tokenizer")
    made.add_argument("--layers", type=int, default=6, help="without --model: layers of a random BERT")
    made.add_argument("--hidden", type=int, default=384, help="without --model: its hidden size")
    made.add_argument("--data_dir", type=Path, default=None, help="folder of a GLUE task; default: random sentences")
    made.add_argument("--task_name", default="sst-2", help="name of that task")
    made.add_argument("--batch_size", type=int, default=32, help="rows of a batch")
    made.add_argument("--max_seq_length", type=int, default=128, help="tokens of a row; random rows have all of them")
    made.add_argument("--density", type=float, default=0.15, help="share of weights kept")
    made.add_argument("--updates", type=int, default=12, help="timed updates of each subject")
    made.add_argument("--warmup", type=int, default=2, help="untimed updates before the timed ones")
    made.add_argument("--phase_updates", type=int, default=4, help="updates after the timed ones, timed by phase")
    made.add_argument("--subjects", nargs="+", default=DEFAULT_SUBJECTS, help=f"any of {', '.join(SUBJECTS)}")
    made.add_argument(
        "--evaluation", type=int, default=0, help="timed evaluations of the dev data by each subject; 0: none"
    )
    made.add_argument(
        "--memory", action="store_true", help="also measure peak memory, in one process for each subject"
    )
    made.add_argument("--memory_of", default=None, help=argparse.SUPPRESS)
    made.add_argument("--device", default="cpu", help="cpu or cuda")
    made.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
    made.add_argument(
        "--beside_bf16", action="store_true", help="also train each subject in bfloat16, in turns with float32"
    )
    made.add_argument("--fp16", action="store_true", help="float16 autocast with loss scaling")
    return made


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure as the flags say. Print tables, write JSON, return its content."""
    argv = list(sys.argv[1:] if argv is None else argv)
    options = build_parser().parse_args(argv)
    leave_if(problems(options), Path(sys.argv[0]).name)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder, user_mistakes(), without_bars():
        results = measured(options, Path(folder), argv)
    if options.memory_of is not None:
        print(json.dumps(results))
        return results
    return report(options, results, *tables(results))


@contextmanager
def without_bars() -> Iterator[None]:
    """Hide progress bars: those of several runs would overwrite each other."""
    with redirect_stderr(io.StringIO()):
        yield


def measured(options: argparse.Namespace, folder: Path, argv: list[str]) -> dict[str, Any]:
    """All measurements that the flags ask for."""
    given = {name: value for name, value in vars(options).items() if name not in ("json", "memory_of")}
    generate_missing(options, folder)
    if options.memory_of is not None:
        return {"memory_bytes": peak_memory(options, folder)}
    with ExitStack() as stack:
        runs = [build(options, subject, folder) for subject in chosen_subjects(options)]
        for run in runs:
            stack.enter_context(run.loop)
        batches = draw_batches(options, runs[0])
        measure_updates(options, runs, batches)
        results = {"options": given, "batches": described(batches), "updates": summaries(runs, batches)}
        if options.beside_bf16:
            results["bf16"] = beside_fp32({run.subject.name: run.seconds for run in runs})
        if options.evaluation:
            results["evaluation"] = measure_evaluations(runs, options.evaluation)
    if options.memory:
        results["memory"] = measure_memory(runs, argv)
    return results


def chosen_subjects(options: argparse.Namespace) -> list[Subject]:
    """What is compared: with `--beside_bf16` each subject is followed by itself in bfloat16."""
    chosen = []
    for subject in (SUBJECTS[name] for name in options.subjects):
        chosen.append(subject)
        if options.beside_bf16:
            chosen.append(replace(subject, name=subject.name + _BF16, flags=f"{subject.flags} --bf16"))
    return chosen


def beside_fp32(seconds: dict[str, list[float]]) -> dict[str, Spread]:
    """Subject -> time of an update in bfloat16, as a multiple of its own in float32 on the same batch."""
    return {
        name: _ratio(seconds[name + _BF16], of_fp32) for name, of_fp32 in seconds.items() if not name.endswith(_BF16)
    }


def problems(options: argparse.Namespace) -> list[str]:
    """Mistakes in the flags, a line each."""
    found = [
        f"--{name} accepts numbers from {least}, not {getattr(options, name)}"
        for name, least in (("updates", 1), ("phase_updates", 1), ("warmup", 0), ("batch_size", 1), ("threads", 1))
        if getattr(options, name) < least
    ]
    unknown = [name for name in options.subjects if name not in SUBJECTS]
    if unknown:
        found.append(f"--subjects accepts {', '.join(SUBJECTS)}, not {unknown[0]}")
    if options.beside_bf16 and (options.bf16 or options.fp16 or options.memory):
        found.append("--beside_bf16 compares float32 with bfloat16; omit --bf16, --fp16 and --memory")
    if not 0 < options.density < 1:
        found.append(f"--density accepts a share of weights between 0 and 1, not {options.density}")
    return found


def generate_missing(options: argparse.Namespace, folder: Path) -> None:
    """Make the model and the task that the flags do not name."""
    if options.model is None:
        options.model = generated.save_model(folder / "model", options.layers, options.hidden)
    if options.data_dir is None:
        words = options.max_seq_length - 2
        rows = options.batch_size * (options.warmup + options.updates + options.phase_updates)
        options.data_dir = generated.write_sentences(folder / "data", rows, (words, words))


def draw_batches(options: argparse.Namespace, run: Entrant) -> list[tuple[dict[str, Tensor], float]]:
    """The batches of a training, with the seconds that loading each took: warm-up, timed and instrumented updates."""
    args = run.loop.run
    dataset = load_and_cache_examples(args, args.task.name, run.loop.tokenizer)
    dataset.pad_to_multiple_of = run.loop.learner.precision.pad_to_multiple_of
    order = LengthGroupedBatches(dataset.lengths, options.batch_size, seed=args.seed)
    count = options.warmup + options.updates + options.phase_updates
    return list(itertools.islice(_timed_batches(batch_loader(dataset, order)), count))


def _timed_batches(loader: Any) -> Iterator[tuple[dict[str, Tensor], float]]:
    while True:
        begin = time.perf_counter()
        for batch in loader:
            yield batch, time.perf_counter() - begin
            begin = time.perf_counter()


def measure_updates(
    options: argparse.Namespace, runs: list[Entrant], batches: list[tuple[dict[str, Tensor], float]]
) -> None:
    """Let the runs take turns on every batch, with another one first in each round. Results are added to the runs."""
    for number, (batch, _) in enumerate(batches):
        timing = options.warmup <= number < options.warmup + options.updates
        for run in (runs[(number + turn) % len(runs)] for turn in range(len(runs))):
            sits_out = timing and (number - options.warmup) % run.subject.every != 0
            seconds = math.nan if sits_out else timed_update(run, batch, number >= options.warmup + options.updates)
            if timing:
                run.seconds.append(seconds)


def timed_update(run: Entrant, batch: dict[str, Tensor], instrumented: bool) -> float:
    """Seconds of one update; `instrumented`: phases and a log entry are timed too, which may slow it down."""
    run.phases.on = instrumented
    _finish(run)
    begin = time.perf_counter()
    learner = run.loop.learner
    learner.begin_update(1)
    learner.step(batch, *learner.plan.at(learner.global_step + 1))
    run.loop.count()
    _finish(run)
    seconds = time.perf_counter() - begin
    if instrumented and not run.subject.reference:
        run.logging_seconds.append(_timed_log(run))
    return seconds


def _timed_log(run: Entrant) -> float:
    begin = time.perf_counter()
    run.loop.log(pruning_so_far(run.loop, run.loop.learner.plan))
    return time.perf_counter() - begin


def _finish(run: Entrant) -> None:
    device = run.loop.run.processes.device
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def described(batches: list[tuple[dict[str, Tensor], float]]) -> dict[str, Any]:
    """Size of the batches, share of padding, and time of loading."""
    tokens = [int(batch["attention_mask"].sum()) for batch, _ in batches]
    places = [batch["attention_mask"].numel() for batch, _ in batches]
    return {
        "count": len(batches),
        "tokens_per_batch": sum(tokens) / len(batches),
        "padding_share": 1 - sum(tokens) / sum(places),
        "loading_seconds": Spread.of([seconds for _, seconds in batches]),
    }


def summaries(runs: list[Entrant], batches: list[tuple[dict[str, Tensor], float]]) -> dict[str, dict[str, Any]]:
    """Measurements of each run, compared with our dense training and plain PyTorch's on the same batches."""
    loading = Spread.of([seconds for _, seconds in batches]).median
    seconds = {run.subject.name: run.seconds for run in runs}
    return {run.subject.name: _summary(run, *_floors(seconds), loading) for run in runs}


def _floors(seconds: dict[str, list[float]]) -> tuple[list[float], list[float] | None]:
    """Seconds of our dense training (without it: of the first subject), and of plain PyTorch's; None without it."""
    return seconds.get(FLOOR, next(iter(seconds.values()))), seconds.get(STOCK)


def _ratio(seconds: list[float], floor: list[float] | None) -> Spread | None:
    if floor is None:
        return None
    ratios = [a / b for a, b in zip(seconds, floor, strict=True)]
    return Spread.of([ratio for ratio in ratios if not math.isnan(ratio)])


def _summary(run: Entrant, floor: list[float], stock: list[float] | None, loading: float) -> dict[str, Any]:
    mine = [seconds for seconds in run.seconds if not math.isnan(seconds)]
    return {
        "seconds": Spread.of(mine),
        "mean_seconds": sum(mine) / len(mine),
        "ratio": _ratio(run.seconds, floor),
        "ratio_to_pytorch": _ratio(run.seconds, stock),
        "phases": {"data": loading, **run.phases.means(), "logging": _logging_share(run)},
        "masked_weights": run.masked_weights,
    }


def _logging_share(run: Entrant) -> float:
    """Seconds of logging for one update at the trainer's `--logging_steps`."""
    if not run.logging_seconds:
        return 0.0
    return Spread.of(run.logging_seconds).median / run.loop.run.logging_steps


def measure_evaluations(runs: list[Entrant], times: int) -> dict[str, dict[str, Spread]]:
    """Seconds of whole evaluations of the dev data, including the making of masks; the runs take turns."""
    chosen = [run for run in runs if not (run.subject.reference or run.subject.teacher or run.subject.frozen)]
    seconds: dict[str, list[float]] = {run.subject.name: [] for run in chosen}
    for turn in range(times + 1):
        for run in chosen:
            taken = _timed_evaluation(run)
            if turn > 0:
                seconds[run.subject.name].append(taken)
    floor, stock = _floors(seconds)
    return {
        name: {
            "seconds": Spread.of(mine),
            "ratio": _ratio(mine, floor),
            "ratio_to_pytorch": _ratio(mine, stock),
        }
        for name, mine in seconds.items()
    }


def _timed_evaluation(run: Entrant) -> float:
    args, distiller = run.loop.run, run.loop.learner
    dataset = load_and_cache_examples(args, args.task.name, run.loop.tokenizer, evaluate=True)
    begin = time.perf_counter()
    predict_logits(distiller.student, dataset, args.per_gpu_eval_batch_size, args.processes, distiller.precision)
    return time.perf_counter() - begin


def measure_memory(runs: list[Entrant], argv: list[str]) -> dict[str, dict[str, float | None]]:
    """Peak bytes of each subject, trained alone, on full batches, in a process of its own."""
    peaks = {}
    for name in (run.subject.name for run in runs):
        command = [sys.executable, "-m", "benchmarks.train_step", *argv, "--memory_of", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[name] = json.loads(done.stdout.splitlines()[-1])["memory_bytes"]
    floor = peaks.get(FLOOR, min(peaks.values()))
    return {
        run.subject.name: {
            "bytes": peaks[run.subject.name],
            "bytes_per_masked_weight": (
                (peaks[run.subject.name] - floor) / run.masked_weights if run.masked_weights else None
            ),
        }
        for run in runs
    }


def peak_memory(options: argparse.Namespace, folder: Path) -> int:
    """Peak bytes of this process (on a GPU: of its tensors) while one subject trains on batches without padding."""
    run = build(options, SUBJECTS[options.memory_of], folder)
    shape = (options.batch_size, options.max_seq_length)
    batch = {
        **{name: torch.ones(shape, dtype=torch.int64) for name in ("input_ids", "attention_mask")},
        "token_type_ids": torch.zeros(shape, dtype=torch.int64),
        "labels": torch.zeros(options.batch_size, dtype=torch.int64),
        "index": torch.arange(options.batch_size),
        "weights": torch.ones(options.batch_size),
    }
    with run.loop:
        for _ in range(_MEMORY_UPDATES):
            timed_update(run, batch, instrumented=False)
    if options.device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    return peak_resident()


def _ratios(row: dict[str, Any]) -> list[str]:
    return ["" if spread is None else spread.text() for spread in (row["ratio"], row["ratio_to_pytorch"])]


def tables(results: dict[str, Any]) -> Iterator[str]:
    """The numbers as tables for people."""
    batches, updates = results["batches"], results["updates"]
    yield (
        f"{batches['tokens_per_batch']:.0f} tokens a batch, {100 * batches['padding_share']:.1f} % padding, "
        f"{1e3 * batches['loading_seconds'].median:.1f} ms to load one"
    )
    yield table(
        ["one update", "ms (quartiles)", *_RATIOS, "tokens/s", *(f"{p} ms" for p in _COLUMNS)],
        (
            [
                name,
                row["seconds"].text(1e3, 0),
                *_ratios(row),
                f"{batches['tokens_per_batch'] / row['mean_seconds']:.0f}",
                *(f"{1e3 * row['phases'][phase]:.1f}" for phase in _COLUMNS),
            ]
            for name, row in updates.items()
        ),
    )
    if "bf16" in results:
        rows = results["bf16"].items()
        yield table(["bf16", "times its own fp32 (quartiles)"], ([name, ratio.text()] for name, ratio in rows))
    if "evaluation" in results:
        rows = results["evaluation"].items()
        yield table(
            ["evaluation", "ms (quartiles)", *_RATIOS],
            ([name, row["seconds"].text(1e3, 0), *_ratios(row)] for name, row in rows),
        )
    if "memory" in results:
        rows = results["memory"].items()
        yield table(
            ["peak memory", "MiB", "more than dense, bytes a masked weight"],
            ([name, f"{row['bytes'] / 2**20:.0f}", _per_weight(row["bytes_per_masked_weight"])] for name, row in rows),
        )


def _per_weight(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


if __name__ == "__main__":
    main()
