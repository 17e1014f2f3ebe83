"""Files made to run code, to write elsewhere, or to exhaust memory: nothing runs, and each is refused in one line."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import forked
import tiny
from faults.kills import Uninterrupted
from faults.runs import World
from faults.tally import Clock, Tally
from transformers import AutoModelForSequenceClassification

import distiller
import masked_run_glue
import visualizing_image
from emmental.atomic import MANIFEST, sha256_of
from emmental.export import bertarize, counts_parameters, storage
from emmental.language_models import corpus
from emmental.shrinking import shrink
from emmental.small_models import MODELLING_FILES

Start = tuple[Callable, list[str]]


@dataclass(frozen=True)
class Attack:
    """A hostile file.

    Attributes:
        name: of the attack.
        lay: puts the files into a folder that is a copy of a sound one; given that folder and the canary's path, which
            must not come into being.
        target: what the folder is a copy of: "bert" (a model with its tokenizer), "small" (the same, cut), "run" (a
            trainer's output with its caches), "teacher", "corpus" (of the distiller) or "" (empty).
    """

    name: str
    lay: Callable[[Path, Path], None]
    target: str


def _pickle(canary: Path) -> bytes:
    """A pickle that makes the canary when it is loaded, written by hand."""
    return f"cposix\nsystem\n(S'touch {canary}'\ntR.".encode()


def _archive(canary: Path) -> bytes:
    """What `torch.save` writes, with that pickle inside and a member whose name leads out of the folder."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", _pickle(canary))
        file.writestr("archive/version", "3\n")
        file.writestr(f"../../../../../..{canary}", "escaped")
    return buffer.getvalue()


def _lone(name: str, content: Callable[[Path], bytes]) -> Callable[[Path, Path], None]:
    """Lay one file; as weights in pickled form it is the only one."""

    def lay(folder: Path, canary: Path) -> None:
        if name.endswith(".bin"):
            (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(content(canary))

    return lay


def _code(config: str, entry: str) -> Callable[[Path, Path], None]:
    """Have a configuration name classes in a module beside it."""

    def lay(folder: Path, canary: Path) -> None:
        program = f"open({str(canary)!r}, 'w').close()\nclass Evil: pass\n"
        (folder / "evil.py").write_text(program, encoding="utf-8")
        content = json.loads((folder / config).read_text(encoding="utf-8"))
        classes = ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification", "AutoModelForMaskedLM")
        content["auto_map"] = dict.fromkeys(classes, "evil.Evil") | {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
        content[entry] = "evil"
        (folder / config).write_text(json.dumps(content), encoding="utf-8")

    return lay


def _header(header: object, body: bytes = b"\0" * 64, length: int | None = None) -> Callable[[Path], bytes]:
    """A safetensors file with this header, which may lie about its own length."""

    def content(canary: Path) -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(text) if length is None else length) + text + body

    return content


def _tensor(dtype: str, shape: list[int], offsets: list[int]) -> dict:
    return {"bert.pooler.dense.weight": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


_NESTED = b"[" * 200_000 + b"]" * 200_000
_LYING = {
    "header longer than any memory": _header({}, length=2**60),
    "header longer than the file": _header({}, length=500),
    "tensor outside the file": _header(_tensor("F32", [1000, 1000], [0, 4_000_000])),
    "tensor of 2^60 numbers": _header(_tensor("F32", [2**30, 2**30], [0, 2**62])),
    "shape that contradicts its bytes": _header(_tensor("F32", [4, 4], [0, 16])),
    "tensor that ends before it begins": _header(_tensor("F32", [1], [64, 60])),
    "unknown type of number": _header(_tensor("EVIL", [16], [0, 64])),
    "header nested without end": _header(_NESTED),
}


def _setting(**changes: object) -> Callable[[Path, Path], None]:
    def lay(folder: Path, canary: Path) -> None:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps({**content, **changes}), encoding="utf-8")

    return lay


def _sizes(**changes: object) -> Callable[[Path, Path], None]:
    """Have a small configuration lie about its first layer."""

    def lay(folder: Path, canary: Path) -> None:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        content["per_layer_config"]["0"].update(changes)
        (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")

    return lay


def _modelling_file(folder: Path, canary: Path) -> None:
    """Tamper with the code that a small model's folder has for programs without this package."""
    for name in MODELLING_FILES:
        (folder / name).write_text(f"open({str(canary)!r}, 'w').close()\n", encoding="utf-8")


def _text(name: str, text: bytes) -> Callable[[Path, Path], None]:
    return lambda folder, canary: (folder / name).write_bytes(text)


def _sealed(name: str, text: bytes) -> Callable[[Path, Path], None]:
    """Put content into the last checkpoint, or the first cache that has such a file, behind a right checksum."""

    def lay(folder: Path, canary: Path) -> None:
        files = [*folder.glob(f"out/checkpoint-16/{name}"), *folder.glob(f"caches/*/{name}"), *folder.glob(name)]
        file = files[0]
        file.write_bytes(text)
        manifest = json.loads((file.parent / MANIFEST).read_text(encoding="utf-8"))
        manifest["files"][file.name] = {"size": len(text), "sha256": sha256_of(file)}
        (file.parent / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")

    return lay


def _listed_outside(folder: Path, canary: Path) -> None:
    (folder / "precious.txt").write_text("years of work", encoding="utf-8")
    (folder / "out" / "link").symlink_to(folder)
    names = ["../precious.txt", str(folder / "precious.txt")]
    (folder / "out" / ".emmental.json").write_text(json.dumps({"written": names}), encoding="utf-8")


def _listed_through_a_link(folder: Path, canary: Path) -> None:
    _listed_outside(folder, canary)
    (folder / "out" / ".emmental.json").write_text(json.dumps({"written": ["link/precious.txt"]}), encoding="utf-8")


def _manifest_outside(folder: Path, canary: Path) -> None:
    entry = {"size": 13, "sha256": "0" * 64}
    manifest = {"files": {"../../precious.txt": entry, str(canary): entry}}
    (folder / "out" / "checkpoint-16" / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def _image(folder: Path, canary: Path) -> None:
    """A PNG of 60,000 x 60,000 pixels in a few kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 100_000)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    (folder / "bomb.png").write_bytes(content)


ATTACKS = (
    Attack("pickle as weights", _lone("pytorch_model.bin", _pickle), "bert"),
    Attack("archive with a pickle and an escaping path as weights", _lone("pytorch_model.bin", _archive), "bert"),
    Attack("pickle in the place of a model's safetensors", _lone("model.safetensors", _pickle), "bert"),
    Attack("archive in the place of a model's safetensors", _lone("model.safetensors", _archive), "bert"),
    Attack("pickle as weights of a teacher", _lone("pytorch_model.bin", _pickle), "teacher"),
    Attack("archive as weights of a teacher", _lone("pytorch_model.bin", _archive), "teacher"),
    Attack("config that names remote code", _code("config.json", "model_type"), "bert"),
    Attack("tokenizer that names remote code", _code("tokenizer_config.json", "tokenizer_class"), "bert"),
    Attack("config of a teacher that names remote code", _code("config.json", "model_type"), "teacher"),
    Attack("teacher's tokenizer that names remote code", _code("tokenizer_config.json", "tokenizer_class"), "teacher"),
    *(Attack(f"weights: {name}", _lone("model.safetensors", content), "bert") for name, content in _LYING.items()),
    *(
        Attack(f"checkpoint: {name}", _sealed("model.safetensors", content(Path())), "run")
        for name, content in _LYING.items()
    ),
    *(
        Attack(f"cache: {name}", _sealed("features.safetensors", content(Path())), "run")
        for name, content in _LYING.items()
    ),
    Attack("pickle as a feature cache", _sealed("features.safetensors", _pickle(Path("canary"))), "run"),
    Attack("pickle as an optimizer's state", _sealed("optimizer.safetensors", _pickle(Path("canary"))), "run"),
    Attack("config nested without end", _text("config.json", _NESTED), "bert"),
    Attack("tokenizer nested without end", _text("tokenizer.json", _NESTED), "bert"),
    Attack("config of endless numbers", _text("config.json", b'{"model_type": "bert", "hidden_size": 1e999}'), "bert"),
    Attack("config of 10^12 hidden units", _setting(hidden_size=10**12, num_attention_heads=1), "bert"),
    Attack("config of 10^9 layers", _setting(num_hidden_layers=10**9), "bert"),
    Attack("config of 10^13 words", _setting(vocab_size=10**13), "bert"),
    Attack("config of -1 heads", _setting(num_attention_heads=-1), "bert"),
    Attack("config of 10^9 layers of a teacher", _setting(num_hidden_layers=10**9), "teacher"),
    Attack("small model with a modelling file that runs code", _modelling_file, "small"),
    Attack("small model of -1 heads", _sizes(num_attention_heads=-1), "small"),
    Attack("small model of 10^12 heads", _sizes(num_attention_heads=10**12), "small"),
    Attack("small model of 1e999 neurons", _sizes(intermediate_size=1e999), "small"),
    Attack("small model whose sizes do not fit its weights", _sizes(intermediate_size=31), "small"),
    Attack("small model with sizes of layer 10^9", _setting(per_layer_config={str(10**9): {}}), "small"),
    Attack("small model of another format", _setting(small_format=99), "small"),
    Attack("training state nested without end", _sealed("training_state.json", _NESTED), "run"),
    Attack("training state of another form", _sealed("training_state.json", b'{"arguments": 1}'), "run"),
    Attack("manifest nested without end", _text(f"out/checkpoint-16/{MANIFEST}", _NESTED), "run"),
    Attack("manifest that names files elsewhere", _manifest_outside, "run"),
    Attack("record that names files elsewhere", _listed_outside, "run"),
    Attack("record that names files through a link", _listed_through_a_link, "run"),
    Attack("log nested without end", _text("out/train_log.jsonl", _NESTED), "run"),
    Attack("boxes nested without end", _text("boxes.json", _NESTED), ""),
    Attack("boxes of endless numbers", _text("boxes.json", b'{"boxes": [[0, 0, 1e999, 1]]}'), ""),
    Attack("boxes of 400 digits", _text("boxes.json", b'{"boxes": [[0, 0, ' + b"9" * 400 + b", 1]]}"), ""),
    Attack("image of 60,000 x 60,000 pixels", _image, ""),
    Attack("pickle as a package", _lone("model.emmental", _pickle), ""),
    Attack("archive as a package", _lone("model.emmental", _archive), ""),
    Attack("corpus with words that no model has", _sealed("tokens.bin", b"\xff" * 2000), "corpus"),
    Attack("corpus description nested without end", _sealed("corpus.json", _NESTED), "corpus"),
)


def attack(attacks: tuple[Attack, ...], folder: Path) -> Tally:
    """Hand every hostile file to every program that reads such files; a person at the keyboard answers "y"."""
    world = World(folder / "world")
    known = Uninterrupted(folder / "uninterrupted")
    command, student = world.trainer("movement"), world.distiller("distilbert")
    sources = {
        "bert": folder / "world" / "bert",
        "teacher": Path(student.flags[student.flags.index("--teacher_name") + 1]),
    }
    sources["small"] = folder / "world" / "small"
    model = AutoModelForSequenceClassification.from_pretrained(sources["bert"])
    shrink(model, [(range(1), range(16)), (range(2), range(8))]).save_pretrained(sources["small"])
    tiny.tokenizer().save_pretrained(sources["small"])
    sources |= {"run": known.of(command)[0].parent, "corpus": folder / "world" / "distilbert" / "corpus"}
    with Clock(Tally("hostile file handed to every program that reads it", unit="files")) as tally:
        for number, each in enumerate(attacks):
            place = folder / f"{number}"
            if each.target:
                shutil.copytree(sources[each.target], place)
            place.mkdir(exist_ok=True)
            canary = folder / "canary"
            each.lay(place, canary)
            problems = [
                problem
                for main, argv in _starts(each, place, world)
                if (problem := _problem(each, main, argv, canary, folder / f"log-{number}.txt", place))
            ]
            tally.count(None if not problems else f"{each.name}: {'; '.join(problems)}")
    return tally


def _starts(each: Attack, place: Path, world: World) -> list[Start]:
    """The programs that read such a file, with their command lines."""
    command, student = world.trainer("movement"), world.distiller("distilbert")
    new = place / "new"
    if each.target == "run":
        afresh = (
            ("--overwrite_output_dir",) if each.name.startswith(("record", "cache", "pickle as a feature")) else ()
        )
        evaluation = [] if afresh else [(masked_run_glue.main, command.argv(place / "out", "--do_eval"))]
        return [*evaluation, (masked_run_glue.main, command.argv(place / "out", *afresh))]
    if each.target == "corpus":
        return [(distiller.main, student.argv(new, "--data_file", str(place)))]
    if each.target == "teacher":
        weights = ("--student_pretrained_weights", str(place))
        text = world.folder / "distilbert" / "text.txt"
        binarize = ["binarize", "--file_path", str(text), "--tokenizer", str(place), "--dump_file", str(new)]
        return [
            (distiller.main, student.argv(new, "--teacher_name", str(place))),
            (distiller.main, student.argv(new, *weights)),
            (corpus.main, [*binarize, "--min_length", "3"]),
        ]
    if each.target in ("bert", "small"):
        model = ("--model_name_or_path", str(place))
        return [
            (masked_run_glue.main, command.argv(new, *model)),
            (masked_run_glue.main, command.argv(new, "--teacher_name_or_path", str(place))),
            (bertarize.main, [*model, "--target_model_path", str(new)]),
            (storage.main, [*model, "--package", str(place / "package")]),
            (counts_parameters.main, list(model)),
            (visualizing_image.main, ["--model_dir", str(place), "--saveas", str(place / "a.png")]),
        ]
    if (place / "model.emmental").exists():
        return [(counts_parameters.main, ["--model_name_or_path", str(place / "model.emmental")])]
    image, boxes = place / "bomb.png", place / "boxes.json"
    if image.exists():
        boxes.write_text('{"boxes": []}', encoding="utf-8")
    else:
        visualizing_image.SingleImageViz([[0, 255], [255, 0]]).save(image)
    return [(visualizing_image.main, ["--image", str(image), "--boxes", str(boxes), "--saveas", str(place / "b.png")])]


def _problem(each: Attack, main: Callable, argv: list[str], canary: Path, log: Path, place: Path) -> str | None:
    def answer_yes() -> None:
        (place / "answers.txt").write_text("y\n" * 50, encoding="utf-8")
        sys.stdin = open(place / "answers.txt", encoding="utf-8")  # noqa: SIM115 - the child ends with it
        os.environ["HF_HOME"] = str(place / "hub")
        os.chdir(place)

    log.unlink(missing_ok=True)
    status = forked.run(main, argv, log, answer_yes)
    said = log.read_text(encoding="utf-8", errors="replace")
    program = main.__module__.rpartition(".")[2]
    if canary.exists() or (place / "canary").exists():
        canary.unlink(missing_ok=True)
        return f"{program} ran code"
    if each.lay in (_listed_outside, _listed_through_a_link) and not (place / "precious.txt").exists():
        return f"{program} removed a file that is not its own"
    if status not in (0, 2) or "Traceback" in said:
        return f"{program} ends with {status}: {said[-300:]}"
    errors = [line for line in said.splitlines() if "error: " in line]
    return f"{program} says {len(errors)} lines" if status == 2 and len(errors) != 1 else None


def long_form(folder: Path, seed: int = 0) -> list[Tally]:
    """All hostile files."""
    return [attack(ATTACKS, folder)]
