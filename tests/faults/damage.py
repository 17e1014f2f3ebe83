"""Damage every file that a run or an export leaves, one at a time: it is noticed, named, and what is good is used."""

from __future__ import annotations

import argparse
import dataclasses
import io
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from faults.kills import Uninterrupted
from faults.runs import STUDENTS, Command, World, difference, last_lines, log_of
from faults.tally import Clock, Tally

from emmental.atomic import MANIFEST
from emmental.command_line import user_mistakes
from emmental.export import bertarize, counts_parameters, onnx, storage
from emmental.language_models import student_init
from emmental.language_models.models import load_lm_student
from emmental.pretrained import weights_fingerprint

Harm = Callable[[Path, Path, random.Random], None]


def _truncated(file: Path, other: Path, generator: random.Random) -> None:
    file.write_bytes(file.read_bytes()[: generator.randrange(file.stat().st_size)])


def _emptied(file: Path, other: Path, generator: random.Random) -> None:
    file.write_bytes(b"")


def _deleted(file: Path, other: Path, generator: random.Random) -> None:
    file.unlink()


def _flipped(file: Path, other: Path, generator: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    file.write_bytes(content)


def _swapped(file: Path, other: Path, generator: random.Random) -> None:
    shutil.copyfile(other, file)


HARMS: dict[str, Harm] = {
    "truncated": _truncated,
    "emptied": _emptied,
    "deleted": _deleted,
    "one bit flipped": _flipped,
    "another run's": _swapped,
}


def harms(files: list[Path], others: list[Path], kinds: list[str]) -> Iterator[tuple[str, Path, Path]]:
    """(kind, file, the other run's file) for all that makes a difference to the file's bytes."""
    for file, other in zip(files, others, strict=True):
        for kind in kinds:
            same = kind == "another run's" and (not other.is_file() or other.read_bytes() == file.read_bytes())
            if not (same or file.stat().st_size == 0):
                yield kind, file, other


def files_of(folder: Path) -> list[Path]:
    """All files in it, in order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def checkpoints(
    commands: list[tuple[Command, Command]], known: Uninterrupted, folder: Path, kinds: list[str], seed: int
) -> Tally:
    """Harm each file of the last checkpoint of finished runs, go on, and compare with the run that was not harmed.

    Args:
        commands: each with a run that differs in its seed alone, whose files stand in for those of another run.
    """
    generator = random.Random(seed)
    with Clock(Tally("file of a checkpoint damaged, trainer and distiller", unit="files")) as tally:
        for command, another in commands:
            whole, other = known.of(command)[0], known.of(another)[0]
            last, before = sorted(whole.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))[:-3:-1]
            files = files_of(last)
            for kind, file, others_file in harms(files, [other / f.relative_to(whole) for f in files], kinds):
                output = _copied(whole, folder)
                harmed = output / file.relative_to(whole)
                HARMS[kind](harmed, others_file, generator)
                problem = command.finish(output) or _named(output, last.name, _blamed(harmed), before.name)
                shutil.rmtree(output / f"{last.name}.not-verified-1", ignore_errors=True)
                problem = problem or difference(output, whole)
                tally.count(None if problem is None else f"{command.name}, {file.name} {kind}: {problem}")
    return tally


def _blamed(file: Path) -> str:
    """What must be named: the file, or for a manifest only its folder, since it may accuse any file of it."""
    return "" if file.name == MANIFEST else file.name


def _copied(whole: Path, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole.parent, folder)
    log_of(folder / "out").unlink(missing_ok=True)
    return folder / "out"


def _named(output: Path, *names: str) -> str | None:
    text = log_of(output).read_text(encoding="utf-8", errors="replace")
    missing = [name for name in names if name not in text]
    return f"the log does not name {', '.join(missing)}" if missing else None


def cuts(command: Command, another: Command, known: Uninterrupted, folder: Path, kinds: list[str]) -> Tally:
    """Harm each file of the model that was cut and not yet learnt again: it is cut anew, the result the same."""
    generator = random.Random(6)
    with Clock(Tally("file of a cut model damaged", unit="files")) as tally:
        whole, other = known.of(command)[0], known.of(another)[0]
        files = files_of(whole / "pruned")
        for kind, file, others_file in harms(files, [other / f.relative_to(whole) for f in files], kinds):
            output = _copied(whole, folder)
            for checkpoint in output.glob("checkpoint-*"):
                shutil.rmtree(checkpoint)
            HARMS[kind](output / file.relative_to(whole), others_file, generator)
            problem = command.finish(output)
            shutil.rmtree(output / "pruned.kept-1", ignore_errors=True)  # without its manifest it is not known as ours
            problem = problem or difference(output, whole)
            tally.count(None if problem is None else f"{file.name} {kind}: {problem}")
    return tally


def caches(command: Command, another: Command, known: Uninterrupted, folder: Path, kinds: list[str]) -> Tally:
    """Harm each file of the feature and teacher caches, and run anew: the cache is made again, the result the same."""
    generator = random.Random(1)
    with Clock(Tally("file of a feature or teacher cache damaged", unit="files")) as tally:
        whole, other = known.of(command)[0], known.of(another)[0]
        root = whole.parent
        files = files_of(root / "caches")
        # Caches of one data set and one teacher are the same in every run: what stands in is another cache's file.
        others = [_namesake(file, files) or other for file in files]
        for kind, file, others_file in harms(files, others, kinds):
            output = _copied(whole, folder)
            shutil.rmtree(output)
            HARMS[kind](folder / file.relative_to(root), others_file, generator)
            (folder / "order.jsonl").unlink()
            problem = command.finish(output) or difference(output, whole) or _named(output, file.parent.name)
            tally.count(None if problem is None else f"{file.parent.name}/{file.name} {kind}: {problem}")
    return tally


def _namesake(file: Path, files: list[Path]) -> Path | None:
    return next((f for f in files if f.name == file.name and f.read_bytes() != file.read_bytes()), None)


def corpora(command: Command, another: Command, folder: Path, kinds: list[str]) -> Tally:
    """Harm each file of a corpus: the distiller refuses it in one line that names the file, and writes nothing."""
    generator = random.Random(2)
    with Clock(Tally("file of a corpus damaged", unit="files")) as tally:
        place = command.flags.index("--data_file") + 1
        corpus, other = Path(command.flags[place]), Path(another.flags[place])
        files = files_of(corpus)
        for kind, file, others_file in harms(files, [other / file.name for file in files], kinds):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(corpus, folder / "corpus")
            HARMS[kind](folder / "corpus" / file.name, others_file, generator)
            output = folder / "out"
            status = command.run(output, others=("--data_file", str(folder / "corpus")))
            named = _named(output, str(folder / "corpus"), _blamed(file))
            wrote = "it wrote into the output folder" if output.exists() else None
            problem = f"status {status}: {last_lines(output)}" if status != 2 else named or wrote
            tally.count(None if problem is None else f"{file.name} {kind}: {problem}")
    return tally


def exports(source: Path, other: Path, folder: Path, kinds: list[str], flips: int) -> Tally:
    """Harm each file of a bertarized folder and of a package: refused by name, or the content is still the same.

    Args:
        source, other: finished masked models.
        flips: bits to flip in packages.
    """
    generator = random.Random(3)
    with Clock(Tally("file of a bertarized folder or package damaged", unit="files")) as tally:
        made = [_export(model, folder / name) for model, name in ((source, "one"), (other, "other"))]
        counted = {path: _count(path) for path in made[0]}
        for kind, file, others_file in harms(files_of(made[0][0]), files_of(made[1][0]), kinds):
            copy = folder / "copy" / "plain"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(made[0][0], copy)
            HARMS[kind](copy / file.name, others_file, generator)
            tally.count(_refused(copy, _blamed(file), counted[made[0][0]], f"{file.name} {kind}"))
        for number in range(flips):
            copy = folder / "copy" / "model.emmental"
            shutil.copyfile(made[0][1], copy)
            HARMS["truncated" if number % 4 == 3 else "one bit flipped"](copy, copy, generator)
            tally.count(_refused(copy, copy.name, counted[made[0][1]], f"harm {number}"))
    return tally


def onnx_folders(source: Path, other: Path, folder: Path, kinds: list[str]) -> Tally:
    """Harm each file of an ONNX folder: it is refused by name whichever of its two models is loaded."""
    generator = random.Random(4)
    with Clock(Tally("file of an ONNX folder damaged", unit="files")) as tally:
        whole, another = folder / "one", folder / "other"
        for model, target in ((source, whole), (other, another)):
            onnx.export_onnx_folder(model, target, int8=True)
        for kind, file, others_file in harms(files_of(whole), files_of(another), kinds):
            for loaded in (".", onnx.INT8_FILE):
                copy = _harmed_copy(whole, file, others_file, folder / "copy", HARMS[kind], generator)
                status, out, errors = _answer(lambda path=copy / loaded: onnx.load_session(path).output_names)
                refused = status == 2 and _blamed(file) in errors and len(errors.splitlines()) == 1
                harmless = file.name == MANIFEST and loaded != "." and (status, out) == (0, "('logits',)")
                problem = f"{file.name} {kind}: status {status}: {errors[-300:]}"
                tally.count(None if refused or harmless else problem)
    return tally


def students(command: Command, folder: Path, kinds: list[str]) -> Tally:
    """Harm each file of a student that starts from the distiller's teacher: refused by name, or the same weights."""
    generator = random.Random(5)
    with Clock(Tally("file of a student's folder damaged", unit="files")) as tally:
        whole, another = folder / "one", folder / "other"
        teacher = command.flags[command.flags.index("--teacher_name") + 1]
        for target, layer in ((whole, "1"), (another, "2")):
            student_init.main(["--model_name", teacher, "--dump_checkpoint", str(target), "--layers", layer])
        expected = _student_answer(whole)
        assert expected[0] == 0, expected
        for kind, file, others_file in harms(files_of(whole), files_of(another), kinds):
            copy = _harmed_copy(whole, file, others_file, folder / "copy", HARMS[kind], generator)
            status, out, errors = _student_answer(copy)
            refused = status == 2 and str(copy) in errors and len(errors.splitlines()) == 1
            harmless = file.name == MANIFEST and (status, out) == expected[:2]
            problem = f"{file.name} {kind}: status {status}: {errors[-300:]}"
            tally.count(None if refused or harmless else problem)
    return tally


def _harmed_copy(whole: Path, file: Path, other: Path, copy: Path, harm: Harm, generator: random.Random) -> Path:
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole, copy)
    harm(copy / file.relative_to(whole), other, generator)
    return copy


def _student_answer(folder: Path) -> tuple[int, str, str]:
    flags = {"student_type": "distilbert", "student_config": str(folder / "config.json"), "initializer_range": 0.02}
    flags |= {"student_pretrained_weights": str(folder), "freeze_pos_embs": False, "freeze_token_type_embds": False}
    return _answer(lambda: weights_fingerprint(load_lm_student(argparse.Namespace(**flags))))


def _answer(read: Callable[[], object]) -> tuple[int, str, str]:
    """Exit status, what was read, and errors, as a command gives them."""
    out, errors, status = "", io.StringIO(), 0
    with redirect_stderr(errors):
        try:
            with user_mistakes():
                out = str(read())
        except SystemExit as end:
            status = end.code
    return status, out, errors.getvalue()


def _export(model: Path, folder: Path) -> tuple[Path, Path]:
    bertarize.bertarize_folder(model, folder / "plain")
    storage.save_package(model, folder / "model.emmental")
    return folder / "plain", folder / "model.emmental"


def _count(path: Path) -> tuple[int, str, str]:
    """Exit status, output and errors of `counts_parameters`, which reads all of a folder or package."""
    out, errors, status = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(errors):
        try:
            counts_parameters.main(["--model_name_or_path", str(path), "--json"])
        except SystemExit as end:
            status = end.code
    return status, out.getvalue(), errors.getvalue()


def _refused(path: Path, name: str, expected: tuple[int, str, str], kind: str) -> str | None:
    status, out, errors = _count(path)
    refused = status == 2 and name in errors and len(errors.splitlines()) == 1
    return None if refused or (status, out) == expected[:2] else f"{kind}: status {status}: {errors[-300:]}"


def long_form(folder: Path, seed: int = 0) -> Iterator[Tally]:
    """More than 300 damaged files."""
    world, known, kinds = World(folder / "world"), Uninterrupted(folder / "uninterrupted"), list(HARMS)
    trainers = [(world.trainer(case), reseeded(world.trainer(case, "--seed", "7"))) for case in ("movement", "half")]
    distillers = [(world.distiller(s), reseeded(world.distiller(s, "--seed", "7"))) for s in STUDENTS]
    taught = world.trainer("taught")
    models = [known.of(command)[0] for command in trainers[0]]
    yield exports(models[0], models[1], folder / "exports", kinds, 60)
    yield onnx_folders(models[0], models[1], folder / "onnx", kinds)
    yield students(distillers[0][0], folder / "student", kinds)
    yield corpora(distillers[0][0], distillers[2][0], folder / "corpus", kinds)
    plain = [world.plain(), reseeded(world.plain("--seed", "7"))]
    yield cuts(*plain, known, folder / "cuts", kinds)
    yield caches(taught, trainers[0][0], known, folder / "caches", kinds)
    yield checkpoints(trainers + distillers, known, folder / "copy", kinds, seed)


def reseeded(command: Command) -> Command:
    return dataclasses.replace(command, name=f"{command.name} reseeded")
