from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from torch.utils.data import DataLoader

from emmental.atomic import MANIFEST, DamagedError, atomic_folder
from emmental.data import features
from emmental.data.batching import LengthGroupedBatches, SequentialBatches, padding_share
from emmental.data.features import FEATURES_FILE, FeatureDataset, batch_loader, load_features
from emmental.errors import UserError
from emmental.tasks import TASKS, Task, read_split, user_task
from emmental.tasks.task import Layout

MRPC = TASKS["mrpc"]


@pytest.fixture
def load(mrpc_dir: Path, tokenizer, tmp_path: Path) -> Callable[..., FeatureDataset]:
    """`load_features` on the tiny MRPC folder; any argument can be replaced."""

    def call(**others: object) -> FeatureDataset:
        arguments: dict = {
            "task": MRPC,
            "data_dir": mrpc_dir,
            "split": "train",
            "tokenizer": tokenizer,
            "max_seq_length": 16,
            "cache_dir": tmp_path / "cache",
            "show_progress": False,
        }
        return load_features(**(arguments | others))

    return call


def contents(dataset: FeatureDataset) -> list[dict]:
    rows = [dataset[row] for row in range(len(dataset))]
    return [{name: np.asarray(value).tolist() for name, value in row.items()} for row in rows]


def folders(cache: Path) -> list[str]:
    return sorted(folder.name for folder in cache.iterdir())


@pytest.mark.parametrize("max_seq_length", [4, 8, 16, 64])
def test_rows_equal_direct_tokenisation(load, tokenizer, mrpc_dir: Path, max_seq_length: int) -> None:
    dataset = load(max_seq_length=max_seq_length)
    examples = read_split(MRPC, mrpc_dir, "train")
    expected = tokenizer(
        examples.texts_a,
        examples.texts_b,
        truncation="longest_first",
        max_length=max_seq_length,
        split_special_tokens=True,
        return_token_type_ids=True,
    )
    rows = contents(dataset)
    assert [row["input_ids"] for row in rows] == expected["input_ids"]
    assert [row["token_type_ids"] for row in rows] == expected["token_type_ids"]
    assert [row["label"] for row in rows] == [1, 0, 1, 0, 1]
    assert dataset.lengths.tolist() == [len(ids) for ids in expected["input_ids"]]
    assert dataset.indices == ["0", "1", "2", "3", "4"]


def test_a_special_token_in_the_text_is_text_and_the_tokenizer_is_left_alone(load, tokenizer) -> None:
    before = tokenizer.backend_tokenizer.to_str()
    ids = load()[2]["input_ids"].tolist()
    separator = tokenizer.sep_token_id
    spelled = tokenizer.convert_tokens_to_ids(["[", "se", "##p", "]"])
    assert ids.count(separator) == 2
    assert ids[ids.index(spelled[0]) :][:1] == spelled[:1]
    assert tokenizer.backend_tokenizer.to_str() == before
    assert tokenizer("the [SEP] cat")["input_ids"].count(separator) == 2


def test_the_state_of_the_tokenizer_does_not_matter(load, tokenizer) -> None:
    first = load()
    tokenizer("the cat", truncation=True, max_length=5, padding="max_length", split_special_tokens=True)
    assert load().folder == first.folder


def test_batches_are_padded_to_their_longest_member(load) -> None:
    dataset = load()
    batch = dataset.batch([3, 0], weights=np.array([1.0, 0.0]))
    short, long = dataset[3], dataset[0]
    width, filled = len(long["input_ids"]), len(short["input_ids"])
    assert batch["input_ids"].tolist() == [
        short["input_ids"].tolist() + [0] * (width - filled),
        long["input_ids"].tolist(),
    ]
    assert batch["attention_mask"].tolist() == [[1] * filled + [0] * (width - filled), [1] * width]
    assert batch["token_type_ids"][0].tolist() == [0, 0, 0, 1, 1] + [0] * (width - filled)
    assert batch["labels"].tolist() == [0, 1]
    assert batch["index"].tolist() == [3, 0]
    assert batch["weights"].tolist() == [1.0, 0.0]
    kinds = {name: str(tensor.dtype) for name, tensor in batch.items()}
    assert kinds.pop("weights") == "torch.float32"
    assert set(kinds.values()) == {"torch.int64"}
    assert dataset.batch([3], pad_to_multiple_of=8)["input_ids"].shape == (1, 8)


def test_padding_takes_the_tokenizers_own_token(load, make_tokenizer) -> None:
    dataset = load(tokenizer=make_tokenizer(pad_token="[MASK]"))
    assert dataset.batch([0, 3])["input_ids"][1, -1].item() == 4


def test_test_split_has_names_and_no_labels(load, mrpc_dir: Path) -> None:
    header = "index\t#1 ID\t#2 ID\t#1 String\t#2 String"
    (mrpc_dir / "test.tsv").write_text(f"{header}\n8\t1\t2\tthe cat\tdog\n9\t1\t2\tcat\tdog\n")
    dataset = load(split="test")
    assert dataset.labels is None
    assert dataset.indices == ["8", "9"]
    assert "labels" not in dataset.batch([0])
    assert "label" not in dataset[0]


def test_scores_are_float32_and_single_sentences_have_type_zero(load, tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("sentence1,label\nthe cat,0.5\ndog,2\n")
    dataset = load(task=user_task(tmp_path / "own.csv", None, None), data_dir=None)
    batch = dataset.batch([0, 1])
    assert batch["labels"].dtype == torch.float32
    assert batch["labels"].tolist() == [0.5, 2.0]
    assert batch["token_type_ids"].sum().item() == 0
    assert dataset.folder.name.startswith("custom-train-16-")


def test_a_sound_cache_is_used_without_reading_the_data_again(load, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load()
    monkeypatch.setattr("emmental.data.features.read_split", lambda *_: pytest.fail("the data were read again"))
    second = load()
    assert contents(second) == contents(first)
    assert second.fingerprint == first.fingerprint
    assert first.folder.name == f"mrpc-train-16-{first.fingerprint[:16]}"


def test_overwriting_makes_the_cache_again(load, tmp_path: Path) -> None:
    before = (load().folder / FEATURES_FILE).stat()
    again = load(overwrite_cache=True)
    assert (again.folder / FEATURES_FILE).stat().st_ino != before.st_ino
    assert folders(tmp_path / "cache") == [again.folder.name]


def test_the_key_covers_all_that_the_features_depend_on(load, make_tokenizer, mrpc_dir: Path, tmp_path: Path) -> None:
    keys = {"as it is": load().fingerprint}
    keys["vocabulary"] = load(tokenizer=make_tokenizer(["the", "cat"])).fingerprint
    keys["casing"] = load(tokenizer=make_tokenizer(do_lower_case=False)).fingerprint
    keys["padding token"] = load(tokenizer=make_tokenizer(pad_token="[MASK]")).fingerprint
    keys["truncation side"] = load(tokenizer=make_tokenizer(truncation_side="left")).fingerprint
    keys["length"] = load(max_seq_length=17).fingerprint
    keys["labels"] = load(task=replace(MRPC, labels=("1", "0"))).fingerprint
    swapped: Layout = replace(MRPC.layout("train"), text_a=4, text_b=3, names=())
    keys["columns"] = load(task=replace(MRPC, train=swapped, name="other")).fingerprint
    data = mrpc_dir / "train.tsv"
    data.write_bytes(data.read_bytes().replace(b"dog ran", b"dog Ran"))
    keys["one byte of the data"] = load().fingerprint
    assert len(set(keys.values())) == len(keys) == len(folders(tmp_path / "cache"))


def test_casing_gives_other_ids(load, make_tokenizer) -> None:
    cased = make_tokenizer(do_lower_case=False)
    assert load(tokenizer=cased)[0]["input_ids"][1] == cased.convert_tokens_to_ids("The")
    assert load()[0]["input_ids"][1] == cased.convert_tokens_to_ids("the")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("name", [FEATURES_FILE, MANIFEST])
@pytest.mark.parametrize("damage", [truncate, flip, empty, Path.unlink])
def test_a_damaged_cache_is_named_and_made_again(
    load, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None], name: str
) -> None:
    first = load()
    expected, fingerprint = contents(first), first.fingerprint
    damage(first.folder / name)
    with caplog.at_level(logging.WARNING):
        again = load()
    assert str(first.folder) in caplog.text
    assert contents(again) == expected
    assert again.fingerprint == fingerprint
    caplog.clear()
    overridden = load()
    assert contents(overridden) == expected
    if (name, damage) != (MANIFEST, Path.unlink):
        assert not caplog.records


def test_a_folder_that_is_not_ours_is_left_alone(load, caplog: pytest.LogCaptureFixture) -> None:
    first = load()
    expected = contents(first)
    shutil.rmtree(first.folder)
    first.folder.mkdir()
    (first.folder / "mine.txt").write_text("keep")
    with caplog.at_level(logging.WARNING):
        again = load()
    assert again.folder.name == f"{first.folder.name}-2"
    assert (first.folder / "mine.txt").read_text() == "keep"
    assert contents(again) == expected
    assert "left alone" in caplog.text


@pytest.mark.parametrize("fault", ["offsets", "labels", "version", "fingerprint", "another file"])
def test_a_well_formed_folder_with_wrong_contents_is_made_again(
    load, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    first = load()
    expected = contents(first)
    arrays = load_file(first.folder / FEATURES_FILE)
    metadata = {"fingerprint": first.fingerprint, "pad_token_id": "0", "version": "2"}
    if fault == "offsets":
        arrays["offsets"] = arrays["offsets"][::-1].copy()
    elif fault == "labels":
        arrays["labels"] = arrays["labels"][1:]
    elif fault in metadata:
        metadata[fault] = "1"
    with atomic_folder(first.folder) as folder:
        save_file(arrays, folder / ("x" if fault == "another file" else FEATURES_FILE), metadata)
    with caplog.at_level(logging.WARNING):
        assert contents(load()) == expected
    assert f"The feature cache {first.folder} is damaged" in caplog.text


@pytest.mark.parametrize("text", ["{", "[1]", '{"tokens": 1, "odd": 2}', '{"tokens": "1"}', "[" * 100_000])
def test_a_damaged_record_of_unknown_tokens_is_named(load, tmp_path: Path, text: str) -> None:
    folder = load().folder
    with safe_open(folder / FEATURES_FILE, framework="numpy") as file:
        metadata = file.metadata() | {"unknown": text}
    save_file(load_file(folder / FEATURES_FILE), tmp_path / FEATURES_FILE, metadata)
    with pytest.raises(DamagedError, match=f"{FEATURES_FILE} is damaged: its record of unknown tokens is not one"):
        FeatureDataset(tmp_path)


def test_a_fault_in_the_data_leaves_no_cache(load, mrpc_dir: Path, tmp_path: Path) -> None:
    with (mrpc_dir / "train.tsv").open("a") as file:
        file.write("maybe\t1\t2\ta\tb\n")
    with pytest.raises(ValueError, match=r"train\.tsv:7: label 'maybe' is none of 0, 1"):
        load()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("rival", [True, False])
def test_a_cache_that_cannot_be_written_is_used_if_another_run_has_made_it(
    load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rival: bool
) -> None:
    other = load(cache_dir=tmp_path / "other")

    @contextmanager
    def beaten(folder: Path, damaged_too: bool) -> Iterator[Path]:
        yield tmp_path
        if rival:
            shutil.copytree(other.folder, folder)
        raise OSError("Directory not empty")

    monkeypatch.setattr("emmental.data.features.atomic_folder", beaten)
    if rival:
        assert contents(load()) == contents(other)
    else:
        with pytest.raises(UserError, match=r"^--feature_cache_dir: .* cannot be written \(Directory not empty\)"):
            load()


def test_a_cache_folder_that_cannot_be_made_names_its_flag(load, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=r"^--feature_cache_dir: .* cannot be written.*; give another folder$"):
            load(cache_dir=place)


def test_no_pickle_is_ever_loaded(load, tmp_path: Path) -> None:
    first = load()
    expected = contents(first)
    marker = tmp_path / "code-ran"
    poison = f"cposix\nsystem\n(S'touch {marker}'\ntR.".encode()
    with atomic_folder(first.folder) as folder:
        (folder / FEATURES_FILE).write_bytes(poison)
    for name in ("cached_train_tiny_16_mrpc", "mrpc-train-16", f"{first.folder.name}.pt"):
        (first.folder.parent / name).write_bytes(poison)
    assert contents(load()) == expected
    assert not marker.exists()


def test_unusable_tokenizers_and_lengths(load, make_tokenizer) -> None:
    class Slow:
        is_fast = False
        name_or_path = "slow-one"

    without_padding = make_tokenizer()
    without_padding.pad_token = None
    for others, message in (
        ({"tokenizer": Slow()}, "--tokenizer_name slow-one: a fast tokenizer"),
        ({"tokenizer": without_padding}, "the tokenizer has no padding token"),
        ({"max_seq_length": 3}, "--max_seq_length 3: at least 4 is needed"),
    ):
        with pytest.raises(ValueError, match=message):
            load(**others)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_yields_whole_batches_and_leaves_the_random_state(load, workers: int) -> None:
    dataset = load()
    dataset.pad_to_multiple_of = 4
    batches = SequentialBatches(dataset.lengths, 2)
    before = torch.get_rng_state()
    loaded = list(batch_loader(dataset, batches, num_workers=workers))
    assert torch.equal(torch.get_rng_state(), before)
    for batch, rows in zip(loaded, batches, strict=True):
        expected = dataset.batch(rows.indices, rows.weights, pad_to_multiple_of=4)
        assert all(torch.equal(batch[name], tensor) for name, tensor in expected.items())
    assert sorted(torch.cat([batch["index"] for batch in loaded]).tolist()) == [0, 1, 2, 3, 4]


def test_workers_need_no_shared_memory(load, monkeypatch) -> None:
    """As in a container whose /dev/shm is full: sending a tensor would fail there, and the run wait for ever."""

    def full(*_: object) -> None:
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", full)
    monkeypatch.setattr(torch.UntypedStorage, "_share_filename_cpu_", full)
    dataset = load()
    batches = SequentialBatches(dataset.lengths, 2)
    loader = batch_loader(dataset, batches, num_workers=1)
    loader.timeout = 20
    assert [batch["index"].tolist() for batch in loader] == [list(rows.indices) for rows in batches]


class Deadly:
    """Batches of which the second ends the process that makes it."""

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        if row:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"index": torch.tensor([row])}


def test_a_dead_worker_and_one_that_cannot_start_are_one_line(load, monkeypatch) -> None:
    def take(dataset: object, batches: list) -> None:
        for _ in batch_loader(dataset, batches, num_workers=1):
            pass

    monkeypatch.setattr(features, "_as_arrays", _first_as_arrays)
    with pytest.raises(UserError, match=r"--num_workers 1: DataLoader worker \(pid.* Give --num_workers 0"):
        take(Deadly(), [[0], [1]])

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch.multiprocessing, "Queue", full)
    with pytest.raises(UserError, match="--num_workers 1: No space left on device; give --num_workers 0"):
        take(load(), [[0]])


def _first_as_arrays(rows: list[dict[str, torch.Tensor]]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in rows[0].items()}


def test_spawned_workers_map_the_file_themselves(load) -> None:
    dataset = load()
    spawn = multiprocessing.get_context("spawn")
    loader = DataLoader(
        dataset, batch_sampler=[[0, 3], [1]], collate_fn=dict, num_workers=1, multiprocessing_context=spawn
    )
    for batch, rows in zip(loader, ([0, 3], [1]), strict=True):
        assert torch.equal(batch["input_ids"], dataset.batch(rows)["input_ids"])


def test_the_manifest_names_the_only_other_file(load) -> None:
    folder = load().folder
    assert sorted(file.name for file in folder.iterdir()) == [FEATURES_FILE, MANIFEST]
    assert list(json.loads((folder / MANIFEST).read_text())["files"]) == [FEATURES_FILE]


@pytest.mark.glue
@pytest.mark.parametrize(("name", "folder"), [("mrpc", "MRPC"), ("rte", "RTE")])
def test_real_tasks_are_padded_little(load, glue_dir: Path, name: str, folder: str, tmp_path: Path) -> None:
    task: Task = TASKS[name]
    dataset = load(task=task, data_dir=glue_dir / folder, max_seq_length=128)
    for batch_size in (8, 32):
        assert padding_share(dataset.lengths, LengthGroupedBatches(dataset.lengths, batch_size)) < 0.05
