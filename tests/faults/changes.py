"""Start a changed command in the folder of a run: refused with the difference shown, or accepted by a flag."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import tiny
import tiny_lm
from faults.kills import Uninterrupted
from faults.runs import Command, World, evidence, last_lines, log_of
from faults.tally import Clock, Tally

from emmental.language_models.corpus import binarize, sequence_rules


def _other_task(world: World) -> list[str]:
    tiny.write_task(world.folder / "rte", "rte", train=30)
    return ["--task_name", "rte", "--data_dir", str(world.folder / "rte")]


def _other_data(world: World) -> list[str]:
    tiny.write_task(world.folder / "other", "mrpc", train=30, seed=1)
    return ["--data_dir", str(world.folder / "other")]


def _other_tokenizer(world: World) -> list[str]:
    folder = world.folder / "tokenizer"
    tokenizer = tiny.tokenizer()
    tokenizer.save_pretrained(folder)
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    (folder / "tokenizer.json").write_text(text.replace('"kasa": 5', '"kasa": 6').replace('"kate": 6', '"kate": 5'))
    return ["--tokenizer_name", str(folder)]


def _other_corpus(world: World) -> list[str]:
    text = world.folder / "other.txt"
    text.write_text("\n".join(tiny_lm.text_lines(22, seed=9)) + "\n", encoding="utf-8")
    tokenizer = tiny.tokenizer()
    binarize(text, tokenizer, world.folder / "other_corpus", sequence_rules(tokenizer, 3), show_progress=False)
    return ["--data_file", str(world.folder / "other_corpus")]


TRAINER_CHANGES: dict[str, tuple[Callable[[World], list[str]], str]] = {
    "another task": (_other_task, "task_name 'mrpc' -> 'rte'"),
    "other data": (_other_data, "data '"),
    "another tokenizer": (_other_tokenizer, "data '"),
    "another method": (lambda w: ["--pruning_method", "magnitude"], "pruning_method 'topK' -> 'magnitude'"),
    "another threshold": (lambda w: ["--final_threshold", "0.5"], "final_threshold 0.3 -> 0.5"),
    "another start of the scores": (lambda w: ["--mask_init", "kaiming"], "mask_init 'constant' -> 'kaiming'"),
    "another seed": (lambda w: ["--seed", "7"], "seed 42 -> 7"),
    "another rate": (lambda w: ["--learning_rate", "1e-4"], "learning_rate 0.001 -> 0.0001"),
    "another batch size": (lambda w: ["--per_gpu_train_batch_size", "2"], "per_gpu_train_batch_size 4 -> 2"),
    "more epochs": (lambda w: ["--num_train_epochs", "3"], "num_train_epochs 2.0 -> 3.0"),
    "another length": (lambda w: ["--max_seq_length", "16"], "max_seq_length 32 -> 16"),
    "a teacher": (lambda w: ["--teacher_name_or_path", str(w.folder / "teacher")], "teacher_name_or_path None -> "),
    "dense": (lambda w: ["--model_type", "bert"], "model_type 'masked_bert' -> 'bert'"),
    "another precision": (lambda w: ["--bf16"], "bf16 False -> True"),
    "global top-k": (lambda w: ["--global_topk"], "global_topk False -> True"),
}
PLAIN_CHANGES: dict[str, tuple[Callable[[World], list[str]], str]] = {
    "another share": (lambda w: ["--keep", "0.5"], "keep [0.25] -> [0.5]"),
    "a ladder": (lambda w: ["--keep", "0.25", "0.1"], "keep [0.25] -> [0.25, 0.1]"),
    "a speed": (lambda w: ["--speedup", "1.01", "--speedup_length", "16"], "speedup None -> 1.01"),
    "single weights": (lambda w: ["--granularity", "unstructured"], "granularity 'structured' -> 'unstructured'"),
    "no dense phase": (lambda w: ["--no-dense_first"], "dense_first None -> False"),
    "another seed": (lambda w: ["--seed", "7"], "seed 42 -> 7"),
    "other data": (_other_data, "data '"),
}
DISTILLER_CHANGES: dict[str, tuple[Callable[[World], list[str]], str]] = {
    "another corpus": (_other_corpus, "data '"),
    "another temperature": (lambda w: ["--temperature", "3"], "temperature 2.0 -> 3.0"),
    "another seed": (lambda w: ["--seed", "7"], "seed 56 -> 7"),
    "another loss": (lambda w: ["--alpha_mse", "1"], "alpha_mse 0.0 -> 1.0"),
    "another batch size": (lambda w: ["--batch_size", "2"], "batch_size 4 -> 2"),
}
ACCEPTED = {"more epochs": "--num_train_epochs", "another rate": "--learning_rate", "another temperature": ""}


def refused(command: Command, whole: Path, flags: list[str], shown: str, folder: Path) -> str | None:
    """A changed command leaves with status 2 and one line that shows the difference, and touches nothing."""
    output = folder / "out"
    shutil.copytree(whole.parent, folder)
    before = evidence(output)
    log_of(output).unlink()
    status = command.run(output, others=tuple(flags))
    lines = [line for line in log_of(output).read_text(encoding="utf-8").splitlines() if "error: " in line]
    if status != 2 or len(lines) != 1 or shown not in lines[0] or "--accept_changes" not in lines[0]:
        return f"status {status}: {last_lines(output)}"
    if evidence(output) != before:
        return "the folder is not as it was"
    shutil.rmtree(folder)
    return None


def accepted(command: Command, whole: Path, flags: list[str], folder: Path) -> str | None:
    """`--accept_changes` goes on from the run's last checkpoint all the same, with a line that says so."""
    output = folder / "out"
    shutil.copytree(whole.parent, folder)
    shutil.rmtree(max(output.glob("checkpoint-*"), key=lambda path: int(path.name[11:])))
    log_of(output).unlink()
    status = command.run(output, others=(*flags, "--accept_changes"))
    resumed = "resuming after update" in log_of(output).read_text(encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=status == 0)
    return None if status == 0 and resumed else f"--accept_changes: status {status}: {folder}"


def try_all(command: Command, changes: dict, world: World, known: Uninterrupted, folder: Path) -> Tally:
    """Every change, refused; those that a run can go on with, accepted too."""
    whole = known.of(command)[0]
    with Clock(Tally(f"changed command in the folder of a run, {command.name}")) as tally:
        for name, (flags_of, shown) in changes.items():
            flags = flags_of(world)
            problem = refused(command, whole, flags, shown, folder / name)
            tally.count(None if problem is None else f"{name}: {problem}")
            if name in ACCEPTED:
                problem = accepted(command, whole, flags, folder / f"{name} accepted")
                tally.count(None if problem is None else f"{name}: {problem}")
    return tally


def long_form(folder: Path, seed: int = 0) -> list[Tally]:
    """All changes; another number of processes is among the faults of processes."""
    world, known = World(folder / "world"), Uninterrupted(folder / "uninterrupted")
    return [
        try_all(world.trainer("movement"), TRAINER_CHANGES, world, known, folder / "trainer"),
        try_all(world.plain(), PLAIN_CHANGES, world, known, folder / "plain"),
        try_all(world.distiller("distilbert"), DISTILLER_CHANGES, world, known, folder / "distiller"),
    ]
