"""A BERT and GLUE tasks small enough to train in a test: made in code, the same bytes in every run."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from emmental.methods import PRUNING_METHODS

WORDS = tuple(f"{a}{b}" for a in ("ka", "lo", "mi", "nu", "pe", "ri") for b in ("sa", "te", "vo", "zu", "da", "fi"))
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
GOOD, BAD = WORDS[:12], WORDS[12:24]
"""Words that mark one class and the other; the rest says nothing."""
METHODS = {name: ["--final_threshold", "0.25"] for name in PRUNING_METHODS} | {
    "threshold": ["--initial_threshold", "-1", "--final_threshold", "0.001", "--mask_init", "kaiming"],
    "sigmoied_threshold": [
        *("--initial_threshold", "0", "--final_threshold", "0.5", "--mask_init", "kaiming"),
        *("--regularization", "l1", "--final_lambda", "10"),
    ],
    "l0": ["--mask_scale", "2.197", "--regularization", "l0", "--final_lambda", "1", "--final_threshold", "1"],
}
"""Flags with which each method prunes a tiny model within a few updates."""


def tokenizer() -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer over `WORDS`."""
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *WORDS))}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=32, **names)


def save_bert(folder: Path, num_labels: int = 2, seed: int = 0, **config: object) -> Path:
    """Save a dense two-layer BERT (hidden 16, 2 heads) without dropout, and its tokenizer."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": len(SPECIAL) + len(WORDS),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 32,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.2,
    }
    model = BertForSequenceClassification(BertConfig(num_labels=num_labels, **{**settings, **config}))
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def sentence(generator: random.Random, label: int) -> str:
    """Three to eight words, two of them of the class `label` (0 or 1)."""
    words = generator.choices(WORDS[24:], k=generator.randint(1, 6)) + generator.choices((BAD, GOOD)[label], k=2)
    generator.shuffle(words)
    return " ".join(words)


def write_task(folder: Path, name: str, train: int = 24, dev: int = 10, test: int = 6, seed: int = 0) -> Path:
    """Write the files of a GLUE task in its official layout, of invented sentences with a learnable label."""
    generator = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for file, header, size, row in _LAYOUTS[name](train, dev, test):
        lines = [header] if header else []
        for index in range(size):
            label = index % 2
            lines.append(row(index, label, sentence(generator, label), sentence(generator, label)))
        (folder / file).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def _single(train: int, dev: int, test: int) -> list[tuple]:
    def labelled(index: int, label: int, a: str, b: str) -> str:
        return f"{a}\t{label}"

    return [
        ("train.tsv", "sentence\tlabel", train, labelled),
        ("dev.tsv", "sentence\tlabel", dev, labelled),
        ("test.tsv", "index\tsentence", test, lambda index, label, a, b: f"{index}\t{a}"),
    ]


def _cola(train: int, dev: int, test: int) -> list[tuple]:
    def labelled(index: int, label: int, a: str, b: str) -> str:
        return f"src\t{label}\t\t{a}"

    return [
        ("train.tsv", "", train, labelled),
        ("dev.tsv", "", dev, labelled),
        ("test.tsv", "index\tsentence", test, lambda index, label, a, b: f"{index}\t{a}"),
    ]


def _mrpc(train: int, dev: int, test: int) -> list[tuple]:
    header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"

    def labelled(index: int, label: int, a: str, b: str) -> str:
        return f"{label}\t{index}\t{index + 1}\t{a}\t{b}"

    return [
        ("train.tsv", header, train, labelled),
        ("dev.tsv", header, dev, labelled),
        ("test.tsv", header.replace("Quality", "index"), test, lambda i, label, a, b: f"{i}\t{i}\t{i}\t{a}\t{b}"),
    ]


def _stsb(train: int, dev: int, test: int) -> list[tuple]:
    columns = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2"

    def unlabelled(index: int, label: int, a: str, b: str) -> str:
        return f"{index}\tg\tf\t2012\t{index}\tnone\tnone\t{a}\t{b}"

    def labelled(index: int, label: int, a: str, b: str) -> str:
        return f"{unlabelled(index, label, a, b)}\t{label * 3 + index % 3:.3f}"

    return [
        ("train.tsv", f"{columns}\tscore", train, labelled),
        ("dev.tsv", f"{columns}\tscore", dev, labelled),
        ("test.tsv", columns, test, unlabelled),
    ]


def _qqp(train: int, dev: int, test: int) -> list[tuple]:
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"

    def labelled(index: int, label: int, a: str, b: str) -> str:
        return f"{index}\t{index}\t{index}\t{a}\t{b}\t{label}"

    return [
        ("train.tsv", header, train, labelled),
        ("dev.tsv", header, dev, labelled),
        ("test.tsv", "id\tquestion1\tquestion2", test, lambda i, label, a, b: f"{i}\t{a}\t{b}"),
    ]


def _mnli(train: int, dev: int, test: int) -> list[tuple]:
    columns = "index\tpromptID\tpairID\tgenre\tb1\tb2\tp1\tp2\tsentence1\tsentence2"
    names = ("contradiction", "entailment")

    def unlabelled(index: int, label: int, a: str, b: str) -> str:
        return f"{index}\t1\t1\tg\tx\tx\tx\tx\t{a}\t{b}"

    def labelled(index: int, label: int, a: str, b: str) -> str:
        name = "neutral" if index % 7 == 0 else names[label]
        return f"{unlabelled(index, label, a, b)}\t{name}"

    return [
        ("train.tsv", f"{columns}\tgold_label", train, labelled),
        ("dev_matched.tsv", f"{columns}\tgold_label", dev, labelled),
        ("dev_mismatched.tsv", f"{columns}\tgold_label", dev, labelled),
        ("test_matched.tsv", columns, test, unlabelled),
        ("test_mismatched.tsv", columns, test, unlabelled),
    ]


def _pairs(first: str, second: str, names: tuple[str, str]):
    def layout(train: int, dev: int, test: int) -> list[tuple]:
        header = f"index\t{first}\t{second}"

        def unlabelled(index: int, label: int, a: str, b: str) -> str:
            return f"{index}\t{a}\t{b}"

        def labelled(index: int, label: int, a: str, b: str) -> str:
            return f"{unlabelled(index, label, a, b)}\t{names[label]}"

        return [
            ("train.tsv", f"{header}\tlabel", train, labelled),
            ("dev.tsv", f"{header}\tlabel", dev, labelled),
            ("test.tsv", header, test, unlabelled),
        ]

    return layout


_LAYOUTS = {
    "cola": _cola,
    "sst-2": _single,
    "mrpc": _mrpc,
    "sts-b": _stsb,
    "qqp": _qqp,
    "mnli": _mnli,
    "qnli": _pairs("question", "sentence", ("entailment", "not_entailment")),
    "rte": _pairs("sentence1", "sentence2", ("entailment", "not_entailment")),
    "wnli": _pairs("sentence1", "sentence2", ("0", "1")),
}
TASK_NAMES = tuple(_LAYOUTS)
