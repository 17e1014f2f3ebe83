"""Kill exports and the visualiser inside their writes: what they write is whole, absent, or what stood there."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import forked
from faults.injection import FAILURES, SaveCalls, failing, killed_after, killed_before, killed_halfway, last_call
from faults.kills import Uninterrupted
from faults.runs import World
from faults.tally import Clock, Tally

import visualizing_image
from emmental.export import bertarize, counts_parameters, onnx, storage
from emmental.language_models import corpus, student_init


@dataclass(frozen=True)
class Export:
    """A program that writes one file or folder.

    Attributes:
        name: for the table.
        main: its entry point.
        argv: given the target, the command line.
        target: name of what it writes.
    """

    name: str
    main: Callable
    argv: Callable[[Path], list[str]]
    target: str


def exports(model: Path, world: World) -> list[Export]:
    """Every program that hands something over, for a finished masked model."""
    given = ["--model_name_or_path", str(model)]
    lm = world.distiller("distilbert").flags
    teacher = lm[lm.index("--teacher_name") + 1]
    text = str(world.folder / "distilbert" / "text.txt")
    binarize = [
        "binarize",
        "--file_path",
        text,
        "--tokenizer",
        teacher,
        "--min_length",
        "3",
    ]
    return [
        Export("bertarize", bertarize.main, lambda t: [*given, "--target_model_path", str(t)], "plain"),
        Export("onnx", onnx.main, lambda t: [*given, "--target_model_path", str(t), "--int8"], "onnx"),
        Export(
            "student_init",
            student_init.main,
            lambda t: ["--model_name", teacher, "--dump_checkpoint", str(t)],
            "student",
        ),
        Export("storage", storage.main, lambda t: [*given, "--package", str(t)], "model.emmental"),
        Export("counts_parameters", counts_parameters.main, lambda t: [*given, "--picture", str(t)], "counts.png"),
        Export(
            "visualizing_image",
            visualizing_image.main,
            lambda t: ["--model_dir", str(model), "--saveas", str(t)],
            "a.png",
        ),
        Export("corpus", corpus.main, lambda t: [*binarize, "--dump_file", str(t)], "corpus"),
    ]


def contents(path: Path) -> dict[str, bytes] | None:
    """Every byte of a file or folder; None when it is absent."""
    if path.suffix == ".emmental" and path.is_file():
        return {"": _in_order(path.read_bytes())}
    if path.is_file():
        return {"": path.read_bytes()}
    if not path.exists():
        return None
    return {f.relative_to(path).as_posix(): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}


def _in_order(content: bytes) -> bytes:
    """A safetensors file with its metadata in order: the library writes that in another order every time."""
    length = int.from_bytes(content[:8], "little")
    return json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True).encode() + content[8 + length :]


def interrupted(export: Export, folder: Path, whole: dict[str, bytes], before: SaveCalls, again: bool) -> str | None:
    """Disturb an export, look at its target, and start it again.

    Args:
        export: to run.
        folder: for the target; removed when all is well.
        whole: what an undisturbed export leaves.
        before: the fault.
        again: whether a whole target of an earlier export is there already.
    """
    folder.mkdir(parents=True)
    target, log = folder / export.target, folder.parent / f"{folder.name}.txt"
    if again and forked.run(export.main, export.argv(target), log, lambda: None) != 0:
        return f"the export fails: {log.read_text()[-300:]}"
    status = forked.run(export.main, export.argv(target), log, before.install)
    left = contents(target)
    if left is not None and left != whole:
        return f"{export.name} left a part of its target (status {status})"
    if status > 0 and "Traceback" in log.read_text():
        return f"{export.name} ends with a traceback: {log.read_text()[-300:]}"
    if forked.run(export.main, export.argv(target), log, lambda: None) != 0:
        return f"{export.name} cannot be started again: {log.read_text()[-300:]}"
    if contents(target) != whole:
        return f"{export.name}, started again, leaves something else"
    shutil.rmtree(folder)
    return None


def try_all(model: Path, world: World, folder: Path, count: int, seed: int) -> Tally:
    """Kill or fail every export at drawn calls, half of them where an earlier target stands."""
    generator = random.Random(seed)
    kinds = [killed_before, killed_after, killed_halfway, *(failing(number) for number in FAILURES.values())]
    with Clock(Tally("export or picture killed, or its disk failing, in its writes")) as tally:
        known = {}
        for number in range(count):
            found = exports(model, world)
            export = found[number % len(found)]
            if export.name not in known:
                calls, target = SaveCalls(), folder / "whole" / export.target
                target.parent.mkdir(parents=True, exist_ok=True)
                status = forked.run(export.main, export.argv(target), folder / "whole.txt", calls.install)
                assert status == 0, (folder / "whole.txt").read_text()
                known[export.name] = contents(target), calls.made
            whole, calls_made = known[export.name]
            place = generator.randint(1, calls_made)
            kind = kinds[(number + number // len(found)) % len(kinds)]  # every export meets every kind
            fault = SaveCalls(place, last_call(kind, place), kind)
            tally.count(interrupted(export, folder / f"{number}", whole, fault, again=number // len(found) % 2 == 1))
    return tally


def long_form(folder: Path, seed: int = 0) -> list[Tally]:
    """140 disturbed exports."""
    world = World(folder / "world")
    model = Uninterrupted(folder / "uninterrupted").of(world.trainer("movement"))[0]
    return [try_all(model, world, folder, 140, seed)]
