"""Language models, a tokenizer for causal ones, and a corpus small enough to distil in a test."""

from __future__ import annotations

import json
import random
from pathlib import Path

import tiny
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from emmental.language_models.corpus import binarize, sequence_rules

VOCABULARY = len(tiny.SPECIAL) + len(tiny.WORDS)
_BERT_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.2,
}
_GPT2_SHAPE = {
    "vocab_size": VOCABULARY,
    "n_embd": 16,
    "n_head": 2,
    "n_positions": 32,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "initializer_range": 0.2,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
TEACHER_OF = {"distilbert": "bert", "roberta": "roberta", "gpt2": "gpt2"}


def causal_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words, with beginning and end of text."""
    vocabulary = {token: index for index, token in enumerate((*tiny.SPECIAL, *tiny.WORDS))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=32, bos_token="[CLS]", eos_token="[SEP]", unk_token="[UNK]"
    )


def config_of(kind: str, layers: int, dropout: float = 0.0) -> PreTrainedConfig:
    """Configuration of a tiny model: bert, distilbert, roberta or gpt2."""
    if kind == "gpt2":
        return GPT2Config(n_layer=layers, **{**_GPT2_SHAPE, "resid_pdrop": dropout})
    if kind == "distilbert":
        shape = {"dim": 16, "hidden_dim": 32, "n_heads": 2, "n_layers": layers, "max_position_embeddings": 32}
        return DistilBertConfig(vocab_size=VOCABULARY, dropout=dropout, attention_dropout=0.0, **shape)
    shape = {**_BERT_SHAPE, "num_hidden_layers": layers, "hidden_dropout_prob": dropout}
    if kind == "roberta":
        return RobertaConfig(max_position_embeddings=33, pad_token_id=0, bos_token_id=2, eos_token_id=3, **shape)
    return BertConfig(max_position_embeddings=32, **shape)


def save_teacher(folder: Path, kind: str, layers: int = 4) -> Path:
    """Save a language model with random weights, and its tokenizer."""
    torch.manual_seed(1)
    classes = {"bert": BertForMaskedLM, "roberta": RobertaForMaskedLM, "gpt2": GPT2LMHeadModel}
    classes[kind](config_of(kind, layers)).save_pretrained(folder)
    tokenizer = causal_tokenizer() if kind == "gpt2" else tiny.tokenizer()
    tokenizer.save_pretrained(folder)
    return folder


def text_lines(count: int, seed: int = 0) -> list[str]:
    """Sentences of three to twelve words."""
    generator = random.Random(seed)
    return [" ".join(generator.choices(tiny.WORDS, k=generator.randint(3, 12))) for _ in range(count)]


def prepare(folder: Path, student: str, lines: int = 22, dropout: float = 0.0) -> list[str]:
    """Make teacher, corpus and student configuration; returns the flags of `distiller.py` that name them."""
    teacher = save_teacher(folder / "teacher", TEACHER_OF[student])
    text = folder / "text.txt"
    text.write_text("\n".join(text_lines(lines)) + "\n", encoding="utf-8")
    tokenizer = causal_tokenizer() if student == "gpt2" else tiny.tokenizer()
    binarize(text, tokenizer, folder / "corpus", sequence_rules(tokenizer, min_length=3), show_progress=False)
    config = folder / "student.json"
    config.write_text(json.dumps(config_of(student, 2, dropout).to_dict()), encoding="utf-8")
    flags = ["--student_type", student, "--student_config", str(config), "--data_file", str(folder / "corpus")]
    flags += ["--teacher_type", TEACHER_OF[student], "--teacher_name", str(teacher)]
    return [*flags, *([] if student == "gpt2" else ["--mlm"])]
