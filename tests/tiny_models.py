"""A tiny random model of every known type, with a tokenizer of its own kind, made in code.

To test one more architecture, add its line to `TINY`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tiny
import torch
import transformers
from tokenizers import pre_tokenizers
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

LONGEST = 32
"""Tokens that each model takes."""


def word_pieces(tokenizer_class: type, unknown: str = "[UNK]") -> PreTrainedTokenizerBase:
    """WordPiece over the words of `tiny`."""
    named = tokenizer_class()
    special = [named.pad_token, unknown, named.cls_token, named.sep_token, named.mask_token]
    if named.cls_token == "<s>":  # MPNet's order, whose code has 1 for the padding
        special = [named.cls_token, named.pad_token, named.sep_token, named.mask_token, unknown]
    tokens = [*special, *tiny.WORDS]
    return tokenizer_class(vocab={token: index for index, token in enumerate(tokens)}, model_max_length=LONGEST)


def byte_pairs(tokenizer_class: type) -> PreTrainedTokenizerBase:
    """Byte-level BPE whose merges make the words of `tiny`: letters to syllables, syllables to words."""
    merges = {(word[i], word[i + 1]): None for word in tiny.WORDS for i in (0, 2)}
    merges |= {(word[:2], word[2:]): None for word in tiny.WORDS} | {("Ġ", word): None for word in tiny.WORDS}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *alphabet, *("".join(pair) for pair in merges), "<mask>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return tokenizer_class(vocab=vocabulary, merges=list(merges), model_max_length=LONGEST)


def unigrams(tokenizer_class: type) -> PreTrainedTokenizerBase:
    """Unigram pieces: the words of `tiny`, and their letters."""
    named = tokenizer_class()
    special = [named.pad_token, named.unk_token, named.cls_token, named.sep_token, named.mask_token]
    if named.cls_token == "<s>":  # the order of XLM-R, whose class looks for the unknown token in the fourth place
        special = [named.cls_token, named.pad_token, named.sep_token, named.unk_token, named.mask_token]
    letters = sorted({letter for word in tiny.WORDS for letter in word})
    pieces = [(f"▁{word}", -3.0) for word in tiny.WORDS] + [("▁", -8.0)] + [(letter, -9.0) for letter in letters]
    vocabulary = [(token, 0.0) for token in special] + pieces
    return tokenizer_class(vocab=vocabulary, unk_id=special.index(named.unk_token), model_max_length=LONGEST)


@dataclass(frozen=True)
class Tiny:
    """How a type is made tiny.

    Attributes:
        make_tokenizer: of a tokenizer's class.
        tokenizer_class: its name in Transformers.
        settings: of the configuration, on top of `SIZES` and `NO_DROPOUT`.
        extra_positions: rows of the position embeddings besides one a token.
    """

    make_tokenizer: Any
    tokenizer_class: str
    settings: dict[str, Any] = field(default_factory=dict)
    extra_positions: int = 0


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
_DEBERTA_V3 = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "share_att_key": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "type_vocab_size": 0,
    "pooler_dropout": 0.0,
}
TINY = {
    "bert": Tiny(word_pieces, "BertTokenizer"),
    "roberta": Tiny(byte_pairs, "RobertaTokenizer", {"type_vocab_size": 1}, extra_positions=2),
    "xlm-roberta": Tiny(unigrams, "XLMRobertaTokenizer", {"type_vocab_size": 1}, extra_positions=2),
    "camembert": Tiny(unigrams, "CamembertTokenizer", {"type_vocab_size": 1}, extra_positions=2),
    "electra": Tiny(word_pieces, "BertTokenizer", {"embedding_size": 8}),
    "distilbert": Tiny(
        word_pieces, "BertTokenizer", {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
    ),
    "mpnet": Tiny(word_pieces, "MPNetTokenizer", extra_positions=2),
    "albert": Tiny(unigrams, "AlbertTokenizer", {"embedding_size": 8, "classifier_dropout_prob": 0.0}),
    "deberta-v2": Tiny(unigrams, "DebertaV2Tokenizer", _DEBERTA_V3),
    "modernbert": Tiny(byte_pairs, "RobertaTokenizer", {"local_attention": 8, "global_attn_every_n_layers": 2}),
}
MODEL_TYPES = tuple(TINY)


def tokenizer(model_type: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a tiny model: every word of `tiny` is one token."""
    return TINY[model_type].make_tokenizer(getattr(transformers, TINY[model_type].tokenizer_class))


def config(model_type: str, num_labels: int = 2, **settings: Any) -> Any:
    """The configuration of a tiny model without dropout, with two layers of two heads."""
    made = tokenizer(model_type)
    names = ("pad", "cls", "sep", "bos", "eos")
    ids = {f"{name}_token_id": getattr(made, f"{name}_token_id") for name in names}
    positions = LONGEST + TINY[model_type].extra_positions
    sizes = {**SIZES, "vocab_size": len(made), "max_position_embeddings": positions, "initializer_range": 0.2}
    config_class = CONFIG_MAPPING[model_type]
    dropout = {key: value for key, value in NO_DROPOUT.items() if hasattr(config_class(), key)}
    given = {**sizes, **dropout, **ids, **TINY[model_type].settings, **settings}
    return config_class(num_labels=num_labels, **given)


def model(model_type: str, num_labels: int = 2, seed: int = 0, **settings: Any) -> PreTrainedModel:
    """A dense classifier of random weights, in evaluation mode."""
    torch.manual_seed(seed)
    made = config(model_type, num_labels, **settings)
    return AutoModelForSequenceClassification.from_config(made).eval()


HEADS = {
    "classes": ("AutoModelForSequenceClassification", {"num_labels": 3}),
    "several labels": (
        "AutoModelForSequenceClassification",
        {"num_labels": 3, "problem_type": "multi_label_classification"},
    ),
    "scores": ("AutoModelForSequenceClassification", {"num_labels": 1}),
    "tokens": ("AutoModelForTokenClassification", {"num_labels": 3}),
    "spans": ("AutoModelForQuestionAnswering", {"num_labels": 2}),
    "embeddings": ("AutoModel", {"num_labels": 2}),
}
"""Kind of task head -> its Auto class, and settings."""


def with_head(kind: str, model_type: str = "bert", seed: int = 0, **settings: Any) -> PreTrainedModel:
    """A dense model of random weights with a task head, in evaluation mode; vectors are drawn too, none is zero."""
    auto, own = HEADS[kind]
    torch.manual_seed(seed)
    made = getattr(transformers, auto).from_config(config(model_type, **{**own, **settings})).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return made


def save(folder: Path, model_type: str, num_labels: int = 2, seed: int = 0, **settings: Any) -> Path:
    """Save a tiny model and its tokenizer."""
    model(model_type, num_labels, seed, **settings).save_pretrained(folder)
    tokenizer(model_type).save_pretrained(folder)
    return folder
