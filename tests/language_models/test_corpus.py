"""Text to corpus and back: what is kept, split, dropped and counted, and what a damaged corpus says."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from emmental.atomic import DamagedError
from emmental.data.batching import LengthGroupedBatches, RowBatch
from emmental.errors import UserError
from emmental.language_models import corpus as corpora
from emmental.language_models.corpus import (
    BinarizeReport,
    CorpusDataset,
    SequenceRules,
    binarize,
    main,
    sequence_rules,
)

CLS, SEP, UNK = 2, 3, 1


def make(folder: Path, tokenizer: PreTrainedTokenizerBase, text: str, **rules: object) -> CorpusDataset:
    (folder / "text.txt").write_text(text, encoding="utf-8")
    settings = {"min_length": 3, "max_length": 8, **rules}
    binarize(folder / "text.txt", tokenizer, folder / "corpus", sequence_rules(tokenizer, **settings), None, False)
    return CorpusDataset(folder / "corpus")


def tokens_of(corpus: CorpusDataset, tokenizer: PreTrainedTokenizerBase) -> list[list[str]]:
    return [tokenizer.convert_ids_to_tokens(corpus[row]) for row in range(len(corpus))]


def test_lines_become_sequences_between_their_special_tokens(tmp_path: Path, tokenizer) -> None:
    corpus = make(tmp_path, tokenizer, "the cat sat\n\n  \nthe dogs ran on\r\n")
    assert tokens_of(corpus, tokenizer) == [
        ["[CLS]", "the", "cat", "sat", "[SEP]"],
        ["[CLS]", "the", "dog", "##s", "ran", "on", "[SEP]"],
    ]
    assert corpus.lengths.tolist() == [5, 7]
    assert (corpus.description["lines"], corpus.description["empty"]) == (4, 2)


def test_special_tokens_in_the_text_are_text(tmp_path: Path, tokenizer) -> None:
    corpus = make(tmp_path, tokenizer, "the [SEP] cat\n", max_unknown=1.0)
    ids = corpus[0].tolist()
    assert ids[0] == CLS
    assert ids[-1] == SEP
    assert SEP not in ids[1:-1]
    assert tokens_of(corpus, tokenizer)[0][1:-1] == ["the", "[", "sep", "]", "cat"]


def test_long_lines_are_split_each_part_with_its_special_tokens(tmp_path: Path, tokenizer) -> None:
    corpus = make(tmp_path, tokenizer, "the cat sat on the mat the dog ran on\n", max_length=6)
    assert tokens_of(corpus, tokenizer) == [
        ["[CLS]", "the", "cat", "sat", "on", "[SEP]"],
        ["[CLS]", "the", "mat", "the", "dog", "[SEP]"],
        ["[CLS]", "ran", "on", "[SEP]"],
    ]
    assert corpus.description["split"] == 1
    assert corpus.description["longest"] == 6


def test_short_and_unknown_sequences_are_dropped_and_counted(tmp_path: Path, tokenizer) -> None:
    corpus = make(tmp_path, tokenizer, "cat\nzebra zebu\nthe zebra cat\nzebra cat\nthe cat sat\n", min_length=4)
    # "cat" has 3 tokens with its special ones; "zebra zebu" is unknown, and "zebra cat" is half unknown.
    assert tokens_of(corpus, tokenizer) == [
        ["[CLS]", "the", "[UNK]", "cat", "[SEP]"],
        ["[CLS]", "the", "cat", "sat", "[SEP]"],
    ]
    assert (corpus.description["too_short"], corpus.description["unknown"]) == (1, 2)


def test_token_counts_are_those_of_the_sequences(tmp_path: Path, tokenizer) -> None:
    corpus = make(tmp_path, tokenizer, "the cat sat\nthe cat ran\nthe the the\n")
    counts = corpus.token_counts
    the, cat = tokenizer.convert_tokens_to_ids(["the", "cat"])
    assert (counts[the], counts[cat], counts[CLS], counts[SEP], counts[UNK]) == (5, 2, 3, 3, 0)
    assert counts.sum() == corpus.lengths.sum() == corpus.description["tokens"]


def test_the_order_is_the_seeds(tmp_path: Path, tokenizer) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"the cat sat{' on' * count}\n" for count in range(1, 30)), encoding="utf-8")
    rules = sequence_rules(tokenizer, min_length=3, max_length=64)
    lengths = {}
    for name, seed in (("a", 5), ("b", 5), ("c", 6), ("text", None)):
        binarize(text, tokenizer, tmp_path / name, rules, seed, False)
        lengths[name] = CorpusDataset(tmp_path / name).lengths.tolist()
    assert lengths["text"] == list(range(6, 35))
    assert lengths["a"] == lengths["b"] != lengths["c"]
    assert sorted(lengths["a"]) == lengths["text"]
    assert lengths["a"] != lengths["text"]
    assert (tmp_path / "a" / "tokens.bin").read_bytes() == (tmp_path / "c" / "tokens.bin").read_bytes()
    fingerprints = [CorpusDataset(tmp_path / name).fingerprint for name in ("a", "b", "c")]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_chunks_do_not_show(tmp_path: Path, tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(f"the cat sat{' on' * (count % 4)}\n" for count in range(50))
    whole = make(tmp_path, tokenizer, text)
    expected = tokens_of(whole, tokenizer)
    monkeypatch.setattr(corpora, "_LINES", 7)
    monkeypatch.setattr(corpora, "_BYTES", 60)
    again = make(tmp_path, tokenizer, text)
    assert tokens_of(again, tokenizer) == expected
    assert again.fingerprint == whole.fingerprint


def test_memory_does_not_grow_with_the_text(tmp_path: Path, tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "_BYTES", 100_000)
    rules = sequence_rules(tokenizer, min_length=3, max_length=512)
    peaks = []
    for size in (40, 400):
        (tmp_path / "text.txt").write_text(("the cat sat on the mat . " * 400 + "\n") * size, encoding="utf-8")
        tracemalloc.start()
        binarize(tmp_path / "text.txt", tokenizer, tmp_path / "corpus", rules, 1, False)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (tmp_path / "text.txt").stat().st_size == 400 * 10_001
    assert peaks[1] - peaks[0] < 300_000


def test_a_batch_is_padded_on_the_right(tmp_path: Path, tokenizer) -> None:
    corpus = make(tmp_path, tokenizer, "the cat sat\nthe dogs ran on\n")
    corpus.pad_token_id = 9
    batch = corpus.__getitems__(RowBatch(np.array([1, 0]), np.ones(2, np.float32)))
    assert batch["lengths"].tolist() == [7, 5]
    assert batch["index"].tolist() == [1, 0]
    assert batch["input_ids"].shape == (2, 7)
    assert batch["input_ids"][1].tolist() == [*corpus[0].tolist(), 9, 9]
    assert batch["input_ids"][0].tolist() == corpus[1].tolist()


@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9), min_size=1, max_size=12), st.booleans())
@settings(deadline=None, max_examples=40)
def test_sequences_in_memory_come_back(rows: list[list[int]], paired: bool) -> None:
    corpus = CorpusDataset.from_sequences([(np.array(row), len(row)) for row in rows] if paired else rows)
    assert [corpus[row].tolist() for row in range(len(corpus))] == rows
    batches = LengthGroupedBatches(corpus.lengths, 3, seed=1)
    seen = [row for batch in batches for row in corpus.__getitems__(batch)["index"].tolist()]
    assert sorted(seen) == list(range(len(rows)))


@given(st.lists(st.integers(4, 40), min_size=1, max_size=60), st.integers(3, 12))
@settings(deadline=None, max_examples=60)
def test_splitting_loses_nothing_but_what_is_dropped(ids: list[int], longest: int) -> None:
    report = BinarizeReport()
    rules = SequenceRules(CLS, SEP, UNK, 3, longest, 0.5)
    sequences = list(rules.sequences(ids, report))
    assert [token for sequence in sequences for token in sequence[1:-1]] == ids
    assert all(len(sequence) <= longest and (sequence[0], sequence[-1]) == (CLS, SEP) for sequence in sequences)
    assert report.split == (len(ids) > longest - 2)


def test_files_that_are_cut_or_foreign_are_named(tmp_path: Path, tokenizer) -> None:
    make(tmp_path, tokenizer, "the cat sat\nthe dog ran on\n")
    folder = tmp_path / "corpus"
    tokens = (folder / "tokens.bin").read_bytes()
    (folder / "tokens.bin").write_bytes(tokens[:-2])
    with pytest.raises(DamagedError, match=r"tokens\.bin"):
        CorpusDataset(folder)
    (folder / "tokens.bin").write_bytes(tokens)
    np.array([0, 900], "<i8").tofile(folder / "starts.bin")
    with pytest.raises(DamagedError, match="outside its tokens"):
        CorpusDataset(folder)
    description = json.loads((folder / "corpus.json").read_text())
    (folder / "corpus.json").write_text(json.dumps({**description, "dtype": "O"}))
    with pytest.raises(DamagedError, match=r"corpus\.json"):
        CorpusDataset(folder)
    with pytest.raises(DamagedError, match="is not a corpus"):
        CorpusDataset(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"cat\ncat\n", "leaves no sequence: of 2 lines 0 are empty, 2 sequences are shorter than --min_length 12"),
        (b"", "leaves no sequence: of 0 lines"),
        (b"the cat\n\xff\xfe\n", "text.txt:2: not UTF-8"),
        (None, "text.txt"),
    ],
)
def test_texts_without_use_are_one_line(
    tmp_path: Path, tokenizer, capsys: pytest.CaptureFixture, text: bytes | None, message: str
) -> None:
    tokenizer.model_max_length = 16
    tokenizer.save_pretrained(tmp_path / "a" / "tokenizer")
    if text is not None:
        (tmp_path / "text.txt").write_bytes(text)
    flags = ["--file_path", str(tmp_path / "text.txt"), "--tokenizer", str(tmp_path / "a" / "tokenizer")]
    with pytest.raises(SystemExit) as raised:
        main(["binarize", *flags, "--dump_file", str(tmp_path / "corpus")])
    errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert raised.value.code == 2
    assert len(errors) == 1
    assert message in errors[0]
    assert not (tmp_path / "corpus").exists()
    assert not list(tmp_path.glob(".incomplete*"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--min_length", "1"], "--min_length accepts numbers from 3"),
        (["--min_length", "99"], "--min_length accepts 3 up to the --max_length 16"),
        (["--max_length", "99"], "--max_length accepts up to 16"),
        (["--max_unknown", "1.5"], "--max_unknown is a share"),
        (["--seed", "-1"], "--seed accepts numbers from 0"),
    ],
)
def test_wrong_flags_are_one_line(
    tmp_path: Path, tokenizer, capsys: pytest.CaptureFixture, flags: list[str], message: str
) -> None:
    tokenizer.model_max_length = 16
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "text.txt").write_text("the cat sat\n")
    names = ["--file_path", str(tmp_path / "text.txt"), "--tokenizer", str(tmp_path / "tokenizer")]
    with pytest.raises(SystemExit) as raised:
        main(["binarize", *names, "--dump_file", str(tmp_path / "corpus"), *flags])
    assert raised.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "corpus").exists()


def test_the_length_must_be_given_when_the_tokenizer_does_not_know_it(make_tokenizer) -> None:
    tokenizer = make_tokenizer()
    assert tokenizer.model_max_length > 1_000_000
    with pytest.raises(ValueError, match="--max_length is required"):
        sequence_rules(tokenizer)
    assert sequence_rules(tokenizer, 3, 10).max_length == 10


def test_a_folder_of_someone_else_is_left_alone(tmp_path: Path, tokenizer) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="left alone"):
        make(tmp_path, tokenizer, "the cat sat\n")
    assert [file.name for file in (tmp_path / "corpus").iterdir()] == ["thesis.txt"]


def test_command_line_makes_the_corpus(tmp_path: Path, tokenizer) -> None:
    tokenizer.model_max_length = 16
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "text.txt").write_text("the cat sat on the mat\nthe dog ran\n")
    flags = ["--file_path", str(tmp_path / "text.txt"), "--tokenizer", str(tmp_path / "tokenizer"), "--no-shuffle"]
    report = main(["binarize", *flags, "--dump_file", str(tmp_path / "corpus"), "--min_length", "4"])
    assert (report.lines, report.sequences, report.tokens) == (2, 2, 13)
    assert CorpusDataset(tmp_path / "corpus").lengths.tolist() == [8, 5]


def test_tokens_outside_the_vocabulary_are_refused(tmp_path: Path, tokenizer) -> None:
    corpus = make(tmp_path, tokenizer, "the cat sat")
    corpus.check_tokens()
    tokens = tmp_path / "corpus" / "tokens.bin"
    tokens.write_bytes(b"\xff\xff" + tokens.read_bytes()[2:])
    with pytest.raises(DamagedError, match="outside its vocabulary"):
        CorpusDataset(tmp_path / "corpus").check_tokens()


@pytest.mark.parametrize(
    ("file", "number", "message"),
    [("starts.bin", 2**63 - 1, "outside its tokens"), ("lengths.bin", 4, "the longest sequence is not as long")],
)
def test_sequences_that_lie_are_refused(tmp_path: Path, tokenizer, file: str, number: int, message: str) -> None:
    make(tmp_path, tokenizer, "the cat sat")
    kind = "<i8" if file == "starts.bin" else "<i4"
    np.array([number], kind).tofile(tmp_path / "corpus" / file)
    with pytest.raises(DamagedError, match=message):
        CorpusDataset(tmp_path / "corpus")
