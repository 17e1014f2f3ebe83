"""Tiny runs of the trainer and of the language-model distiller, and everything by which two of them are compared."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import forked
import tiny
import tiny_lm

import distiller
import masked_run_glue

_PREDICT = ["--do_train", "--do_eval", "--do_predict"]
TRAINER_CASES = {
    "movement": ["--evaluate_during_training"],
    "accumulation": ["--gradient_accumulation_steps", "2", "--num_train_epochs", "4.5", "--evaluate_during_training"],
    "global_topk": ["--global_topk", "--global_topk_frequency_compute", "3", "--mask_init", "kaiming", *_PREDICT],
    "l0": ["--pruning_method", "l0", "--regularization", "l0", "--final_lambda", "10", "--mask_scale", "2.197"],
    "dense": ["--model_type", "bert", *_PREDICT],
    "half": ["--fp16"],
    "taught": ["--teacher_name_or_path", "{world}/teacher", "--alpha_hidden_cos", "1"],
    "limited": ["--save_total_limit", "2", "--evaluate_during_training", "--save_steps", "3"],
    "drawn": ["--pictures", "--save_steps", "8"],
}
"""Name -> flags beyond those of `World.trainer`; all students have dropout."""
PLAIN_CASES = (
    (),
    ("--granularity", "unstructured"),
    ("--keep", "0.5", "0.25"),
    ("--unlabeled_file", "{world}/more.tsv"),
)
"""Flags beyond those of `World.plain`: runs in phases."""
STUDENTS = ("distilbert", "roberta", "gpt2")
_SECONDS = re.compile(rb'"(milli)?seconds": [0-9.]+')


@dataclass(frozen=True)
class Command:
    """A command line that can be started again.

    Attributes:
        name: of program and case.
        main: the program's entry point.
        flags: all but the one that names the output folder; `{run}` stands for the folder that holds it.
        output_flag: that one.
        script: the file at the root of the repository.
        steppers: class and method called for each micro-batch.
    """

    name: str
    main: Callable
    flags: tuple[str, ...]
    output_flag: str
    script: str
    stepper: type = field(repr=False)

    def argv(self, output: Path, *others: str) -> list[str]:
        """The whole command line for an output folder; caches lie beside it."""
        flags = [flag.replace("{run}", str(output.parent)) for flag in self.flags]
        return [*flags, self.output_flag, str(output), *others]

    def run(
        self,
        output: Path,
        before: Callable[[], None] = lambda: None,
        signal_after: tuple[int, float] | None = None,
        others: tuple[str, ...] = (),
    ) -> int:
        """Run it in a forked child, which notes the order of its data beside the output; returns the exit status."""
        output.parent.mkdir(parents=True, exist_ok=True)

        def prepare() -> None:
            _record_order(self.stepper, output.parent / "order.jsonl")
            before()

        return forked.run(self.main, self.argv(output, *others), log_of(output), prepare, signal_after)

    def finish(self, output: Path, others: tuple[str, ...] = ()) -> str | None:
        """Run it undisturbed; returns the end of its log when it does not succeed."""
        status = self.run(output, others=others)
        return None if status == 0 else f"the run ended with status {status}: {last_lines(output)}"


def log_of(output: Path) -> Path:
    """Where the runs of an output folder write what they say."""
    return output.parent / "log.txt"


def last_lines(output: Path, count: int = 3) -> str:
    """The end of that, on one line."""
    return " / ".join(log_of(output).read_text(encoding="utf-8", errors="replace").splitlines()[-count:])


class World:
    """The data and models that the commands use.

    Args:
        folder: to make them in.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
        tiny.write_task(folder / "mrpc", "mrpc", train=30)
        (folder / "more.tsv").write_text("sentence1\tsentence2\n" + "kasa lote\tmivo nuzu\npeda rifi\tkate\n" * 8)
        tiny.save_bert(folder / "bert", **dropout)
        tiny.save_bert(folder / "teacher", seed=1)
        self._lm_flags: dict[str, list[str]] = {}

    def trainer(self, case: str, *others: str) -> Command:
        """The trainer: 30 rows, 8 batches of 4 an epoch, 2 epochs, a checkpoint every 4 updates."""
        folder = self.folder
        flags = [
            *("--data_dir", str(folder / "mrpc"), "--task_name", "mrpc", "--model_name_or_path", str(folder / "bert")),
            *("--feature_cache_dir", "{run}/caches", "--max_seq_length", "32", "--no_cuda"),
            *("--per_gpu_train_batch_size", "4", "--num_train_epochs", "2", "--learning_rate", "1e-3"),
            *("--warmup_steps", "2", "--logging_steps", "3", "--save_steps", "4", "--no-pictures"),
            *("--mask_scores_learning_rate", "0.05", "--final_threshold", "0.3"),
            *(flag.replace("{world}", str(folder)) for flag in TRAINER_CASES[case]),
            *others,
        ]
        main, stepper = masked_run_glue.main, distiller.TaskDistiller
        return Command(f"trainer {case}", main, tuple(flags), "--output_dir", "masked_run_glue.py", stepper)

    def plain(self, *others: str) -> Command:
        """The trainer without a word on pruning: 20 dense updates, a cut, 6 updates of recovery."""
        folder = self.folder
        flags = (
            *("--data_dir", str(folder / "mrpc"), "--task_name", "mrpc", "--model_name_or_path", str(folder / "bert")),
            *("--feature_cache_dir", "{run}/caches", "--max_seq_length", "32", "--no_cuda", "--no-pictures"),
            *("--no-engines", "--max_steps", "6", "--save_steps", "4", "--logging_steps", "3"),
            *(flag.replace("{world}", str(folder)) for flag in others),
        )
        main, stepper = masked_run_glue.main, distiller.TaskDistiller
        return Command(
            " ".join(("trainer plain", *others)), main, flags, "--output_dir", "masked_run_glue.py", stepper
        )

    def distiller(self, student: str, *others: str) -> Command:
        """The distiller: 22 sequences, 6 batches of 4, 2 an update, 2 epochs: 6 updates, checkpoints at 2, 3, 4, 6."""
        if student not in self._lm_flags:
            self._lm_flags[student] = tiny_lm.prepare(self.folder / student, student, dropout=0.1)
        flags = [
            *self._lm_flags[student],
            *("--batch_size", "4", "--gradient_accumulation_steps", "2", "--n_epoch", "2", "--n_gpu", "0"),
            *("--log_interval", "3", "--checkpoint_interval", "4", "--learning_rate", "1e-3", "--alpha_cos", "0.5"),
            *others,
        ]
        main, stepper = distiller.main, distiller.Distiller
        return Command(f"distiller {student}", main, tuple(flags), "--dump_path", "distiller.py", stepper)


def _record_order(stepper: type, path: Path) -> None:
    """Have every micro-batch's update and content written to `path` before it is learnt from."""
    original = stepper.step

    def step(self: object, *args: object, **kwargs: object) -> object:
        tensors = list(args[0].values()) if isinstance(args[0], dict) else [a for a in args if a is not None]
        digest = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()
        line = json.dumps([self.global_step, self._seen, digest]) + "\n"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, line.encode())
        os.close(descriptor)
        return original(self, *args, **kwargs)

    stepper.step = step


def data_order(output: Path) -> dict[tuple[int, int], set[str]]:
    """(update, micro-batch) -> the contents it was ever given; one where resuming is exact."""
    order: dict[tuple[int, int], set[str]] = {}
    for line in (output.parent / "order.jsonl").read_text(encoding="utf-8").splitlines():
        update, micro_batch, digest = json.loads(line)
        order.setdefault((update, micro_batch), set()).add(digest)
    return order


def evidence(output: Path) -> dict[str, bytes]:
    """Every file of a run but TensorBoard's, less the seconds it took and the folder's own name.

    That is: weights and scores, optimizer, random states and counters of every checkpoint, the finished model, logged
    losses, evaluations, predictions, pictures, model card, and the record of what was written.
    """
    files = {}
    for file in sorted(output.rglob("*")):
        name = file.relative_to(output).as_posix()
        if not file.is_file() or "tensorboard" in file.parts or file.name == ".emmental.lock":
            continue
        content = file.read_bytes()
        if file.name == "summary.json":
            content = _SECONDS.sub(b"", content)
        elif file.name == "training_args.json":
            content = content.replace(str(output.parent).encode(), b"")
        elif file.name == ".emmental.json":
            written = json.loads(content)["written"]
            content = "\n".join(each for each in written if not each.startswith("tensorboard/")).encode()
        files[name] = content
    return files


_OF_A_STOP = re.compile(r"(dense/|keep-[\d.]+/)?(checkpoint-\d+/.*|\.emmental\.json)|pictures/overview-\d+\.png")


def difference(output: Path, whole: Path, stopped: bool = False, ordered: bool = True) -> str | None:
    """What an interrupted run left otherwise than the uninterrupted one; None when nothing.

    Args:
        output, whole: their folders.
        stopped: a signal asked a run to save and stop, so that there may be checkpoints and pictures of other updates.
        ordered: the order of the data was recorded in both.
    """
    found, expected = evidence(output), evidence(whole)
    last = max((int(name.split("/")[0][11:]) for name in expected if name.startswith("checkpoint-")), default=0)
    wrong = []
    for name in sorted({*found, *expected}):
        may_differ = stopped and _OF_A_STOP.fullmatch(name) and not name.startswith(f"checkpoint-{last}/")
        if found.get(name) == expected.get(name) or (may_differ and (name not in found or name not in expected)):
            continue
        if may_differ and name.endswith(".emmental.json") and set(expected[name].split()) <= set(found[name].split()):
            continue
        wrong.append(f"{name} {'is missing' if name not in found else 'differs' if name in expected else 'is new'}")
    order, expected_order = (data_order(output), data_order(whole)) if ordered else ({}, {})
    if any(order[place] != contents for place, contents in expected_order.items() if place in order):
        wrong.append("the order of the data differs")
    if not set(expected_order) <= set(order):
        wrong.append("updates were left out")
    return "; ".join(wrong) or None
