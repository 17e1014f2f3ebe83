"""Fixtures: a tiny fast tokenizer and a tiny MRPC folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import BertTokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [
    "the",
    "cat",
    "dog",
    "sat",
    "ran",
    "on",
    "mat",
    "The",
    "##s",
    "se",
    "##p",
    "[",
    "]",
    ".",
    '"',
    "sep",
    "SE",
    "##P",
]
HEADER = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
ROWS = [
    "1\t10\t11\tThe cat sat on the mat.\tthe cat sat",
    "0\t12\t13\tthe dog ran\tthe dogs ran on the mat . the cats sat",
    '1\t14\t15\tthe "cat" [SEP] sat\tthe cat',
    "0\t16\t17\tdog\tcat",
    "1\t18\t19\tthe cat ran on\tthe dog sat on the mat",
]


@pytest.fixture
def make_tokenizer() -> Callable[..., BertTokenizer]:
    def make(words: list[str] | None = None, **options: object) -> BertTokenizer:
        vocabulary = {token: number for number, token in enumerate(SPECIAL + (words or WORDS))}
        return BertTokenizer(vocab=vocabulary, **options)

    return make


@pytest.fixture
def tokenizer(make_tokenizer: Callable[..., BertTokenizer]) -> BertTokenizer:
    return make_tokenizer()


@pytest.fixture
def mrpc_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "MRPC"
    folder.mkdir()
    for split in ("train", "dev"):
        (folder / f"{split}.tsv").write_text("\n".join([HEADER, *ROWS]) + "\n", encoding="utf-8")
    return folder
