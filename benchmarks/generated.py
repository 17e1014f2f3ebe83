"""Models and tasks made in code, for measurements without downloads: any shape, any number of lines, any length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_WORDS = 2000
_MOST_POSITIONS = 512


def tokenizer() -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer whose every word, `w0` to `w1999`, is one token."""
    vocabulary = {token: number for number, token in enumerate((*_SPECIAL, *(f"w{n}" for n in range(_WORDS))))}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), _SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=_MOST_POSITIONS, **names)


def save_model(folder: Path, layers: int, hidden: int, vocab_size: int = 30522) -> Path:
    """Save a dense BERT of random weights and its tokenizer; heads of 64 and a feed-forward of 4 x hidden."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 64),
        intermediate_size=4 * hidden,
        max_position_embeddings=_MOST_POSITIONS,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def write_sentences(folder: Path, lines: int, words: tuple[int, int], dev: int = 64, seed: int = 0) -> Path:
    """Write SST-2 files of random words: `lines` sentences to train on, each of `words` = (least, most) words."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, size in (("train.tsv", lines), ("dev.tsv", dev)):
        with open(folder / name, "w", encoding="utf-8") as file:
            file.write("sentence\tlabel\n")
            for sentence, label in zip(_texts(size, words, seed), _labels(size, 2, seed), strict=True):
                file.write(f"{sentence}\t{label}\n")
    return folder


def write_pairs(folder: Path, lines: int, words: tuple[int, int], seed: int = 0) -> Path:
    """Write the training file of MNLI with random words, each sentence of `words` = (least, most) words."""
    folder.mkdir(parents=True, exist_ok=True)
    header = "index\tpromptID\tpairID\tgenre\tb1\tb2\tp1\tp2\tsentence1\tsentence2\tlabel1\tgold_label\n"
    names = ("contradiction", "entailment", "neutral")
    firsts, seconds = _texts(lines, words, seed), _texts(lines, words, seed + 1)
    with open(folder / "train.tsv", "w", encoding="utf-8") as file:
        file.write(header)
        for index, (a, b, label) in enumerate(zip(firsts, seconds, _labels(lines, 3, seed), strict=True)):
            file.write(f"{index}\t1\t1\tfiction\tx\tx\tx\tx\t{a}\t{b}\tneutral\t{names[label]}\n")
    return folder


def _texts(count: int, words: tuple[int, int], seed: int) -> list[str]:
    generator = np.random.default_rng(seed)
    lengths = generator.integers(words[0], words[1] + 1, count)
    drawn = np.char.add("w", generator.integers(0, _WORDS, int(lengths.sum())).astype(str)).tolist()
    ends = np.cumsum(lengths)
    return [" ".join(drawn[end - length : end]) for length, end in zip(lengths.tolist(), ends.tolist(), strict=True)]


def _labels(count: int, classes: int, seed: int) -> list[int]:
    return np.random.default_rng(seed + 1000).integers(0, classes, count).tolist()
