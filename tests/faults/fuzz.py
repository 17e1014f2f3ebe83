"""Mutated inputs for every reader: each either reads, or raises its documented ValueError with one line."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import logging
import lzma
import random
import resource
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import tiny
import torch
from faults.mutation import mutated
from faults.tally import Clock, Tally
from safetensors.numpy import load_file, save, save_file
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from emmental import atomic
from emmental.data.features import FEATURES_FILE, FeatureDataset, load_features
from emmental.data.texts import read_texts
from emmental.export import package
from emmental.export.model_folder import class_of, make_config, read_settings
from emmental.export.position_code import PositionCode, decode_positions, encode_positions
from emmental.language_models.corpus import CorpusDataset, binarize, sequence_rules
from emmental.pictures import inputs
from emmental.pictures.box_file import read_box_file
from emmental.pretrained import from_pretrained, weight_files
from emmental.reporting import forms
from emmental.runs import processes
from emmental.runs.checkpoints import read_state
from emmental.runs.output_folder import WRITTEN_FILE, OutputFolder
from emmental.runs.progress import keep_rows, read_log
from emmental.small_models import SmallConfig
from emmental.structured.speed import LayerTimes, SpeedTable, speed_budget
from emmental.tasks import read_split, resolve_task, unlabelled_task, user_task
from emmental.tasks.files import read_table
from emmental.training.budgets import measured_speed, tuned_before
from emmental.training.phases.cut import share_left

MEMORY = 8 << 30
"""Bytes of address space beyond what the process has: a reader that believes a lying size fails here."""


@dataclass(frozen=True)
class Reader:
    """A reader and what it is fed.

    Attributes:
        name: for the table.
        samples: sound inputs.
        read: reads one mutated input.
        share: of all inputs, relative to the others; slow readers get fewer.
    """

    name: str
    samples: list[bytes]
    read: Callable[[bytes], object]
    share: int


def fuzz(reader: Reader, count: int, seed: int) -> Tally:
    """Feed a reader `count` mutated inputs."""
    generator = random.Random(f"{reader.name}{seed}")
    logging.disable(logging.CRITICAL)
    with np.errstate(all="ignore"), Clock(Tally(f"mutated input: {reader.name}", unit="inputs")) as tally:
        for number in range(count):
            content = mutated(generator, reader.samples)
            tally.count(_problem(reader, content, number))
    logging.disable(logging.NOTSET)
    return tally


def _problem(reader: Reader, content: bytes, number: int) -> str | None:
    try:
        reader.read(content)
    except ValueError as error:
        text = str(error)
        return None if text and "\n" not in text else f"input {number}: the message {text[:200]!r} is not one line"
    except Exception as error:  # this is what must not happen
        return f"input {number}: {type(error).__name__}: {str(error)[:200]}; {content[:200]!r}"
    return None


def readers(folder: Path) -> list[Reader]:
    """All of them; `folder`, best in memory, holds their files."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        *_tables(folder),
        *_packed(folder),
        _boxes(folder),
        _log(folder),
        _records(folder),
        _position_code(),
        _corpus_text(folder),
        _corpus_folder(folder),
        _features(folder),
        _package(folder),
        _signed_package(folder),
        *_settings(folder),
        _speed_table(folder),
        _facts_of_a_cut(folder),
        _report(folder),
        _weight_parts(folder),
        _weights(folder),
        _variables(),
    ]


def _written(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    def write_and_read(content: bytes) -> object:
        path.write_bytes(content)
        return read(path)

    return write_and_read


def _tables(folder: Path) -> list[Reader]:
    for name in ("mrpc", "sts-b", "cola"):
        tiny.write_task(folder / name, name, train=4)
    csv = b'sentence1,sentence2,label\n"a, ""b""",c,0\n"two\nlines",d,1\n\xc3\xa9,,1\n'
    rows = b'{"sentence1": "a", "label": 0, "id": [1]}\n{"sentence1": "b \\u00e9", "label": 1.5, "id": null}\n'
    found = [
        Reader(
            f"TSV of {name}",
            [(folder / name / "train.tsv").read_bytes()],
            _written(folder / name / "train.tsv", lambda path, name=name: _split(name, path)),
            16,
        )
        for name in ("mrpc", "sts-b", "cola")
    ]
    keys = ("sentence1", "sentence2", "label")
    found.append(Reader("CSV", [csv], _written(folder / "a.csv", lambda path: read_table(path, "csv")), 25))
    found.append(
        Reader(
            "JSON lines", [rows], _written(folder / "a.jsonl", lambda path: read_table(path, "jsonl", keys=keys)), 25
        )
    )
    text = "kasa lote\n\ncafé\r\nmivo\n".encode()
    found.append(Reader("text without labels", [text, text[:-1]], _written(folder / "more.txt", _unlabelled), 12))
    numbers = b'sentence1,label\na,"1,200"\nb,"12,500"\nc,"1,250,000.5"\nd,950\n'
    blanks = 'sentence1;label\na;NaN\n\u00a0;x\n;"Home, Garden"\n\u200b;10.0\nNA;2.0\n'.encode()
    for suffix, *samples in ((".csv", csv, numbers, blanks), (".jsonl", rows)):
        name = f"own {suffix[1:]} data with its labels"
        found.append(Reader(name, samples, _written(folder / f"own{suffix}", _own), 12))
    return found


def _packed(folder: Path) -> list[Reader]:
    """Files as gzip, bzip2, xz and zip write them."""
    text, together = b"sentence1,label\nkasa,x\nlote,y\n", io.BytesIO()
    with zipfile.ZipFile(together, "w") as file:
        file.writestr("a.csv", text)
    samples = [gzip.compress(text, mtime=0), bz2.compress(text), lzma.compress(text), together.getvalue()]
    return [
        Reader("packed table", samples, _written(folder / "a.csv.gz", lambda path: read_table(path, "csv")), 6),
        Reader("packed text", samples, _written(folder / "a.txt.gz", lambda path: list(read_texts(str(path)))), 6),
    ]


def _split(name: str, path: Path) -> object:
    return read_split(resolve_task(name), path.parent, "train")


def _own(path: Path) -> object:
    return read_split(user_task(path, None, None), None, "train")


def _unlabelled(path: Path) -> object:
    return read_split(unlabelled_task(path, resolve_task("sst-2")), None, "test")


def _boxes(folder: Path) -> Reader:
    samples = [
        b'{"boxes": [[1, 2, 3, 4.5], [0, 0, 9, 9]], "obj_ids": [0, 1], "obj_scores": [0.5, 1], '
        b'"id2obj": ["cat", "dog"]}',
        b'{"boxes": [[1, 2, 3, 4]], "attr_ids": ["red"], "attr_scores": [0.25], "id2attr": {"0": "blue"}}',
    ]

    def read(path: Path) -> None:
        content = read_box_file(path)
        count = len(inputs.to_boxes(content["boxes"]))
        for kind in ("obj", "attr"):
            inputs.to_scores(content.get(f"{kind}_scores"), count, "scores")
            inputs.to_names(content.get(f"{kind}_ids"), content.get(f"id2{kind}"), count, "ids", "names")

    return Reader("boxes JSON", samples, _written(folder / "boxes.json", read), 30)


def _log(folder: Path) -> Reader:
    sample = b'{"step": 1, "loss": 0.5, "losses": {"ce": 0.5}}\n{"step": 2, "eval": {"acc": 1.0}}\n'

    def read(path: Path) -> None:
        read_log(path)
        keep_rows(path, 1)
        assert all(row["step"] <= 1 for row in read_log(path))

    return Reader("log of a run", [sample], _written(folder / "train_log.jsonl", read), 10)


def _records(folder: Path) -> Reader:
    with atomic.atomic_folder(folder / "checkpoint-1") as temporary:
        (temporary / "training_state.json").write_text('{"arguments": {"seed": 42}, "updates": {"global_step": 1}}')
    manifest, state = ((folder / "checkpoint-1" / n).read_bytes() for n in ("manifest.json", "training_state.json"))
    output = OutputFolder(folder / "out")
    output.record("a.json", "pictures/b.png")
    record = (folder / "out" / WRITTEN_FILE).read_bytes()

    def read(content: bytes) -> None:
        for path, reader in (
            (folder / "checkpoint-1" / "manifest.json", lambda: atomic.verify_folder(folder / "checkpoint-1")),
            (folder / "checkpoint-1" / "training_state.json", lambda: read_state(folder / "checkpoint-1")),
            (folder / "out" / WRITTEN_FILE, lambda: output.record("a.json")),
        ):
            path.write_bytes(content)
            try:
                reader()
            except ValueError as error:
                if "\n" in str(error):
                    raise

    return Reader("manifest, training state, record of files", [manifest, state, record], read, 10)


def _position_code() -> Reader:
    generator = np.random.default_rng(0)
    codes = [
        encode_positions(np.flatnonzero(generator.random(size) < share), size)
        for size, share in ((900, 0.05), (900, 0.3), (400, 0.5), (3000, 0.001))
    ]
    samples = [
        json.dumps([c.kind, c.symbols, c.table.tolist(), c.states.tolist(), c.data.tolist()]).encode() for c in codes
    ]

    def read(content: bytes) -> object:
        try:
            kind, symbols, *arrays = json.loads(content)
            # The package's reader makes sure of this much before it decodes.
            words = np.uint8 if kind == "bitmap" else np.uint16
            table, states, data = (
                np.array(array, dtype=np.float64).clip(0, np.iinfo(dtype).max).astype(dtype).reshape(-1)
                for array, dtype in zip(arrays, (np.uint16, np.uint32, words), strict=True)
            )
            code = PositionCode(str(kind), min(max(int(symbols), 0), package.MOST_WEIGHTS), table, states, data)
        except (ValueError, TypeError, OverflowError, RecursionError, AttributeError):
            return None
        return decode_positions(code, 45, 900)

    return Reader("position code", samples, read, 12)


def _corpus_text(folder: Path) -> Reader:
    tokenizer = tiny.tokenizer()
    rules = sequence_rules(tokenizer, min_length=3)
    sample = "\n".join([" ".join(tiny.WORDS[:5]), "", " ".join(tiny.WORDS[5:30]), "[SEP] é kasa"]).encode()

    def read(path: Path) -> object:
        return binarize(path, tokenizer, folder / "made", rules, show_progress=False)

    return Reader("corpus text", [sample], _written(folder / "text.txt", read), 1)


def _corpus_folder(folder: Path) -> Reader:
    tokenizer, corpus, text = tiny.tokenizer(), folder / "corpus", folder / "sound.txt"
    text.write_text("\n".join(" ".join(tiny.WORDS[:length]) for length in (3, 9, 20, 7)))
    binarize(text, tokenizer, corpus, sequence_rules(tokenizer, min_length=3), show_progress=False)
    sound = {file.name: file.read_bytes() for file in sorted(corpus.iterdir()) if file.name != "manifest.json"}
    names = list(sound)

    def read(content: bytes) -> None:
        name = names[content[0] % len(names)] if content else names[0]
        (corpus / name).write_bytes(content[1:])
        try:
            dataset = CorpusDataset(corpus)
            dataset.__getitems__(range(len(dataset)))
        finally:
            (corpus / name).write_bytes(sound[name])

    samples = [bytes([number]) + sound[name] for number, name in enumerate(names)]
    return Reader("corpus folder", samples, read, 3)


def _features(folder: Path) -> Reader:
    tiny.write_task(folder / "rte", "rte", train=4)
    dataset = load_features(
        resolve_task("rte"), folder / "rte", "train", tiny.tokenizer(), 16, folder / "cache", show_progress=False
    )
    (folder / "features").mkdir()

    def read(path: Path) -> None:
        found = FeatureDataset(path.parent)
        found.batch(range(len(found)))
        assert len(found.indices) == max(len(found), 1)

    sample = (dataset.folder / FEATURES_FILE).read_bytes()
    return Reader("feature cache", [sample], _written(folder / "features" / FEATURES_FILE, read), 4)


def _sound_package(path: Path) -> None:
    generator = np.random.default_rng(0)
    matrices = {}
    for name, kind in (("a", "fp32"), ("b", "int8")):
        positions = np.flatnonzero(generator.random(30 * 20) < 0.2)
        values, scales = generator.standard_normal(len(positions)).astype(np.float32), None
        if kind == "int8":
            values, scales = package.quantize_rows(values, positions // 20, 30)
        matrices[name] = package.StoredMatrix((30, 20), positions, values, scales)
    tensors = {"bias": np.ones(4, np.float32), "words": (np.ones((3, 2), np.int8), np.ones(3, np.float32))}
    package.write_package(path, package.Package({"model_type": "bert"}, matrices, tensors))


def _package(folder: Path) -> Reader:
    _sound_package(folder / "sound.emmental")
    sample = (folder / "sound.emmental").read_bytes()
    return Reader("sparse package", [sample], _written(folder / "a.emmental", package.read_package), 5)


def _signed_package(folder: Path) -> Reader:
    """Packages that lie behind a right checksum: what is changed is the list of matrices and the arrays themselves."""
    _sound_package(folder / "signed.emmental")
    arrays = load_file(folder / "signed.emmental")
    with package.safe_open(folder / "signed.emmental", framework="numpy") as file:
        texts = {key: value for key, value in file.metadata().items() if key != "sha256"}
    names = sorted(arrays)

    def read(content: bytes) -> object:
        metadata, changed = dict(texts), dict(arrays)
        if not content or content[0] % 3 == 0:
            metadata["matrices"] = content[1:].decode("utf-8", errors="replace")
        else:
            name = names[content[0] % len(names)]
            room = len(content[1:]) // changed[name].itemsize * changed[name].itemsize
            changed[name] = np.frombuffer(content[1 : 1 + room], changed[name].dtype)
        path = folder / "lying.emmental"
        save_file(changed, path, metadata={**metadata, "sha256": package._digest(metadata, changed)})
        found = package.read_package(path)
        return [matrix.dense() for matrix in found.matrices.values()]

    samples = [bytes([number]) + arrays[name].tobytes() for number, name in enumerate(names) if number % 3]
    samples += [b"\x00" + texts["matrices"].encode()] * 4
    return Reader("sparse package with a right checksum", samples, read, 4)


def _settings(folder: Path) -> list[Reader]:
    settings = {
        "architectures": ["BertForSequenceClassification"],
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "id2label": {"0": "a", "1": "b"},
    }
    masked = {**settings, "model_type": "masked_bert", "pruning_method": "topK", "threshold": 0.3}
    sizes = {"0": {"num_attention_heads": 1, "intermediate_size": 0}, "1": {"num_attention_heads": 0}}
    small = {**settings, "model_type": "small_bert", "per_layer_config": sizes, "dense_encoder_weights": 4096}
    small["architectures"] = ["SmallBertForSequenceClassification"]
    (folder / "model").mkdir()

    def read(path: Path) -> None:
        found = read_settings(path.parent)
        cls = class_of(found["model_type"], found.get("architectures"), str(path))
        config = make_config(cls.config_class, {k: v for k, v in found.items() if k != "model_type"}, str(path))
        if isinstance(config, SmallConfig):
            with torch.device("meta"):
                cls(config)

    place = folder / "model" / "config.json"
    return [
        Reader("config of a model", [json.dumps(masked).encode()], _written(place, read), 2),
        Reader("config of a small model", [json.dumps(small).encode()], _written(place, read), 1),
    ]


def _speed_table(folder: Path) -> Reader:
    model = BertForSequenceClassification(BertConfig(**tiny_shape()))
    key = {"model": "0" * 8, "shape": [1, 16], "engine": "torch"}
    table = SpeedTable(9.5, 2.25, [LayerTimes({0: 0.0, 1: 1.5, 2: 2.5}, {0: 0.0, 2: 0.5, 32: 1.25})] * 2)
    sample = json.dumps({"of": key, "table": asdict(table), "settled": {"sizes": 2.5}}).encode()

    def read(path: Path) -> None:
        tuned_before(path, "sizes")
        if (found := measured_speed(path, key, 2)) is not None:
            speed_budget(found, model, 2.0)

    return Reader("table of milliseconds", [sample], _written(folder / "speed.json", read), 5)


def _facts_of_a_cut(folder: Path) -> Reader:
    """The facts that a cut has written beside its model."""
    sample = json.dumps({"budget": "keep 0.25", "dense": "0" * 8, "seed": 42, "changed": 0.05, "left": 0.25}).encode()
    (folder / "cut" / "pruned").mkdir(parents=True)

    def read(path: Path) -> None:
        left = share_left(path.parent.parent)
        assert left is None or isinstance(left, float)

    return Reader("facts of a cut", [sample], _written(folder / "cut" / "pruned" / "pruned.json", read), 5)


def _report(folder: Path) -> Reader:
    """What the report reads of a run's folder."""
    model = BertForSequenceClassification(BertConfig(**tiny_shape()))
    samples = [
        b'{"given": ["seed", "keep"], "seed": 42, "keep": [0.5], "model_name_or_path": "a", "pictures": false}',
        b'{"metrics": {"acc": 0.5}, "updates": 20, "remaining": 50.0, "environment": {"processes": 2}}',
        b'{"architectures": ["BertForSequenceClassification"], "id2label": {"0": "a", "1": "b"}}',
    ]
    names = ("training_args.json", "summary.json", "dense/config.json")
    (folder / "report" / "dense").mkdir(parents=True)

    def read(content: bytes) -> None:
        for name, sample in zip(names, samples, strict=True):
            (folder / "report" / name).write_bytes(sample)
        (folder / "report" / names[len(content) % 3]).write_bytes(content)
        forms.training(folder / "report")
        forms.dense_origin(folder / "report", model)

    return Reader("flags, summary and dense origin of a run", samples, read, 8)


def _weight_parts(folder: Path) -> Reader:
    place = folder / "parts"
    place.mkdir()
    (place / "model-1.safetensors").write_bytes(b"")
    sample = b'{"metadata": {"total_size": 4}, "weight_map": {"a": "model-1.safetensors", "b": "model-1.safetensors"}}'

    def read(path: Path) -> None:
        assert all(file.is_file() and file.parent == place for file in weight_files(place))

    return Reader("list of a model's parts", [sample], _written(place / "model.safetensors.index.json", read), 8)


def _weights(folder: Path) -> Reader:
    """Weights whose names begin with those of a wrapper, that are not finite, or that are partly missing."""
    place = folder / "weights"
    BertForSequenceClassification(BertConfig(**tiny_shape())).save_pretrained(place)
    sound = load_file(place / "model.safetensors")
    wrapped = {f"module.{name}": value for name, value in sound.items()}
    broken = {name: np.full_like(value, np.nan) for name, value in sound.items()}
    samples = [save(weights, {"format": "pt"}) for weights in (sound, wrapped, broken, dict(list(sound.items())[9:]))]

    def read(path: Path) -> None:
        model = from_pretrained(AutoModelForSequenceClassification, str(path.parent))
        assert all(torch.isfinite(value).all() for value in model.state_dict().values())

    return Reader("weights of a model", samples, _written(place / "model.safetensors", read), 1)


def _variables() -> Reader:
    """Variables of the environment that a launcher has left."""
    sound = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    samples = ["\n".join(f"{name}={value}" for name, value in list(sound.items())[:count]) for count in (1, 3, 5)]

    def read(content: bytes) -> None:
        lines = (line.partition("=") for line in content.decode("utf-8", errors="replace").split("\n"))
        with mock.patch.object(processes.os, "environ", {name: value for name, _, value in lines}):
            rank, _, size = processes._place_in_group()
        assert 0 <= rank < size

    return Reader("variables of a launcher", [sample.encode() for sample in samples], read, 5)


def tiny_shape() -> dict[str, int]:
    """Of a BERT that takes no time to make."""
    return {"vocab_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2} | {
        "intermediate_size": 32,
        "max_position_embeddings": 16,
    }


def limit_memory() -> None:
    """Let this process ask for no more than `MEMORY` bytes beyond what it has."""
    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))


def fuzz_all(folder: Path, inputs_in_all: int, seed: int) -> Iterator[Tally]:
    """Every reader, each with its share of the inputs."""
    found = readers(folder)
    shares = sum(reader.share for reader in found)
    for reader in found:
        yield fuzz(reader, -(-inputs_in_all * reader.share // shares), seed)


def long_form(folder: Path, seed: int = 0) -> Iterator[Tally]:
    """A million inputs."""
    limit_memory()
    return fuzz_all(folder, 1_000_000, seed)
