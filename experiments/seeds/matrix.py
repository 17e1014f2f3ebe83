"""Runs of the trainer over tasks, seeds and shares, many at a time, and their results in one file.

python -m experiments.seeds.matrix plain shares --model MINILM --data sst-2=glue/SST-2 --into seeds.jsonl

Each part answers one question (see `PARTS`). All but `plain` and `shares` start from the dense models that `plain`
trains. Each finished run is one line of the file, and its folder is then deleted, apart from what others need.
The same command again makes only the runs that the file lacks.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

QUIET = ("--no-floor", "--no-engines", "--no-pictures", "--save_steps", "1000000")
NO_TRAINING = ("--num_train_epochs", "0")
OTHER_TEXT = {"mrpc": "rte", "rte": "mrpc"}
EQUAL_UPDATES = ("--max_steps", "300")
TEACHER = ("--alpha_ce", "0.1", "--alpha_distil", "0.9", "--temperature", "2")


@dataclass(frozen=True)
class Work:
    """One run: its name, the flags it adds, and the dense run whose model it starts from (None: the pretrained)."""

    name: str
    task: str
    flags: tuple[str, ...]
    dense: str | None = None
    layers: int | None = None


def plain(tasks: Sequence[str], seeds: Sequence[int]) -> Iterator[Work]:
    """The plain command: dense, then a quarter of heads and neurons."""
    for seed in seeds:
        for task in tasks:
            yield Work(f"plain/{task}-{seed}", task, ("--seed", str(seed)))


def _from_dense(part: str, task: str, seed: int, what: str, *flags: str, layers: int | None = None) -> Work:
    name, skip = f"{part}/{task}-{what}-{seed}", () if layers else ("--no-dense_first",)
    return Work(name, task, ("--seed", str(seed), *skip, *flags), f"plain/{task}-{seed}", layers)


def single_weights(tasks: Sequence[str], seeds: Sequence[int]) -> Iterator[Work]:
    """`--granularity unstructured` at its default of 15 %, and at 10 and 3 %."""
    for keep, some in (
        ("0.15", ("sst-2", "mrpc", "rte", "sts-b")),
        ("0.1", ("sst-2", "mrpc")),
        ("0.03", ("sst-2", "mrpc")),
    ):
        for seed in seeds:
            for task in (each for each in tasks if each in some):
                yield _from_dense("single-weights", task, seed, keep, "--granularity", "unstructured", "--keep", keep)


def recovered(tasks: Sequence[str], seeds: Sequence[int]) -> Iterator[Work]:
    """Heads and neurons at other shares than a quarter, with the recipe's recovery."""
    for task, keep in (("sst-2", "0.1"), ("mrpc", "0.1"), ("sst-2", "0.3"), ("mrpc", "0.4")):
        for seed in seeds if task in tasks else []:
            yield _from_dense("recovered", task, seed, keep, "--keep", keep)


def ladder(tasks: Sequence[str], seeds: Sequence[int]) -> Iterator[Work]:
    """Three shares in one run; `plain` and `recovered` have the runs of their own."""
    for seed in seeds:
        if "sst-2" in tasks:
            yield _from_dense("ladder", "sst-2", seed, "ladder", "--keep", "0.5", "0.25", "0.1")


def no_training(tasks: Sequence[str], seeds: Sequence[int]) -> Iterator[Work]:
    """Heads and neurons without training."""
    for seed in seeds:
        for task in tasks:
            for keep in ("0.4", "0.25", "0.15"):
                yield _from_dense("no-training", task, seed, keep, "--keep", keep, *NO_TRAINING)


def unlabeled(tasks: Sequence[str], seeds: Sequence[int]) -> Iterator[Work]:
    """A quarter of heads and neurons with text of another task, or with copies of the rows, some words replaced."""
    for seed in seeds:
        for task in (each for each in tasks if each in OTHER_TEXT):
            for text in ("other", "replaced"):
                yield _from_dense("unlabeled", task, seed, text, "--unlabeled_file", f"{{texts}}/{task}-{text}.csv")


def shares(tasks: Sequence[str], seeds: Sequence[int]) -> Iterator[Work]:
    """Does a run of soft movement or L0 end at the share asked for? Short trainings: the metric is of no interest."""
    for task in (each for each in tasks if each in ("sst-2", "mrpc", "rte", "sts-b")):
        for method in ("sigmoied_threshold", "l0"):
            for keep in ("0.5", "0.25", "0.1", "0.05", "0.03"):
                flags = ("--pruning_method", method, "--keep", keep, "--no-dense_first", "--max_steps", "25")
                yield Work(f"shares/{task}-{method}-{keep}", task, flags)


def first_layers(tasks: Sequence[str], seeds: Sequence[int]) -> Iterator[Work]:
    """Ours and the first layers of the same dense model, 300 updates each with the same teacher."""
    for seed in seeds:
        for task in (each for each in tasks if each in ("sst-2", "mrpc", "movie-reviews")):
            for keep in ("0.4", "0.25", "0.15", "0.1"):
                yield _from_dense("first-layers", task, seed, keep, "--keep", keep, *EQUAL_UPDATES)
            for layers in (3, 2, 1):
                flags = ("--model_type", "bert", "--teacher_name_or_path", "{dense}", *TEACHER, *EQUAL_UPDATES)
                yield _from_dense("first-layers", task, seed, f"first-{layers}", *flags, layers=layers)


PARTS = {
    "plain": plain,
    "shares": shares,
    "single-weights": single_weights,
    "recovered": recovered,
    "ladder": ladder,
    "no-training": no_training,
    "unlabeled": unlabeled,
    "first-layers": first_layers,
}


def main() -> None:
    """Make the runs that are missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--model", type=Path, required=True, help="folder of a pretrained BERT")
    parser.add_argument(
        "--data", nargs="+", required=True, metavar="TASK=DIR", help="movie-reviews is of SST-2's form"
    )
    parser.add_argument("--outputs", type=Path, default=Path("outputs/seeds"))
    parser.add_argument("--into", type=Path, required=True, help="JSON lines; runs that it holds are not made again")
    parser.add_argument("--lanes", type=int, default=1, help="runs at a time, one processor thread each")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no run is started or kept after these")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"PART: {', '.join(sorted(unknown))} is not one of {', '.join(PARTS)}")
    Matrix(args).run(args.parts or list(PARTS))


@dataclass
class Matrix:
    """The runs that are left, those that are under way, and the dense models that are there."""

    args: argparse.Namespace
    running: dict[subprocess.Popen, Work] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folders = dict(one.split("=", 1) for one in self.args.data)
        lines = self.args.into.read_text().splitlines() if self.args.into.exists() else []
        self.recorded = {json.loads(line)["name"] for line in lines}
        self.done = {name for name in self.recorded if (self.args.outputs / name).exists() or name[:6] != "plain/"}

    def run(self, parts: Sequence[str]) -> None:
        """Start each run as soon as a lane is free and its dense model is there."""
        self._write_texts()
        every = [work for part in parts for work in PARTS[part](list(self.folders), self.args.seeds)]
        waiting = [work for work in every if work.name not in self.done]
        end = time.monotonic() + 60 * self.args.minutes
        while (waiting or self.running) and time.monotonic() < end:
            self._collect()
            ready = next((work for work in waiting if work.dense is None or work.dense in self.done), None)
            if ready is not None and len(self.running) < self.args.lanes:
                waiting.remove(ready)
                self.running[self._start(ready)] = ready
            elif waiting and not self.running:
                sys.exit(f"matrix.py: error: no dense model for {', '.join(work.name for work in waiting)}")
            else:
                time.sleep(0.2)
        for process in self.running:
            process.kill()

    def _start(self, work: Work) -> subprocess.Popen:
        args, folder = self.args, self.args.outputs / work.name
        folder.parent.mkdir(parents=True, exist_ok=True)
        dense = args.outputs / work.dense / "dense" if work.dense else args.model
        start = dense
        if work.layers is not None:
            start = args.outputs / f"{work.name}-start"
            command = [sys.executable, "-m", "experiments.peers.first_layers", dense, str(work.layers), start]
            subprocess.run(command, check=True, env=_environment())
        places = {"dense": str(dense), "texts": str(args.outputs / "texts")}
        command = [sys.executable, "masked_run_glue.py", *self._data(work.task), "--model_name_or_path", str(start)]
        command += ["--output_dir", str(folder), *QUIET, *(flag.format(**places) for flag in work.flags)]
        with self._log(work).open("w") as log:
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=_environment())

    def _log(self, work: Work) -> Path:
        return self.args.outputs / f"{work.name}.log"

    def _data(self, task: str) -> list[str]:
        folder = self.folders[task]
        if task == "opinions":
            return ["--train_file", f"{folder}/train.csv", "--validation_file", f"{folder}/dev.csv"]
        return ["--data_dir", folder, "--task_name", "sst-2" if task == "movie-reviews" else task]

    def _collect(self) -> None:
        for process in [process for process in self.running if process.poll() is not None]:
            work = self.running.pop(process)
            folder = self.args.outputs / work.name
            if process.returncode:
                print(f"{work.name} failed:\n{self._log(work).read_text()[-2000:]}", flush=True)
                continue
            if work.name not in self.recorded:
                with self.args.into.open("a") as file:
                    file.write(json.dumps(_result(work, folder)) + "\n")
            self.done.add(work.name)
            print(work.name, flush=True)
            self._clear(work, folder)

    def _clear(self, work: Work, folder: Path) -> None:
        if not work.name.startswith("plain/"):
            shutil.rmtree(folder)
            shutil.rmtree(folder.with_name(f"{folder.name}-start"), ignore_errors=True)
            return
        for checkpoint in folder.rglob("checkpoint-*"):
            shutil.rmtree(checkpoint)

    def _write_texts(self) -> None:
        """The files of text for `unlabeled`: the other task's pairs, and the rows with words replaced."""
        folder = self.args.outputs / "texts"
        folder.mkdir(parents=True, exist_ok=True)
        for task in set(self.folders).intersection(OTHER_TEXT):
            other = OTHER_TEXT[task]
            copies = ["--copies", "3", "--model", self.args.model]
            for name, source, more in (("other", other, []), ("replaced", task, copies)):
                into = folder / f"{task}-{name}.csv"
                if source in self.folders and not into.exists():
                    command = [sys.executable, "-m", "experiments.seeds.text_of", self.folders[source], source, into]
                    subprocess.run([*command, *more], check=True, env=_environment())


def _environment() -> dict[str, str]:
    """One processor thread each: the lanes are the parallelism."""
    once = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
    return os.environ | once | {"HF_HUB_OFFLINE": "1"}


def _result(work: Work, folder: Path) -> dict:
    """Name, flags, metrics of every model that the run compared, and the sizes of its layers."""
    summary = json.loads((folder / "summary.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    return {"name": work.name, "flags": list(work.flags), **summary, "layers": config.get("per_layer_config")}


if __name__ == "__main__":
    main()
