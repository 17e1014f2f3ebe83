"""Tokenizers as data preparation needs them: text is only ever text, whatever it looks like."""

from __future__ import annotations

import hashlib
import json

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from emmental.errors import UserError


def plain_text_backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A copy of the tokenizer's backend that neither pads nor truncates, and reads special tokens in a text as text.

    Raises:
        UserError: a slow tokenizer, which has no such backend.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"--tokenizer_name {tokenizer.name_or_path}: a fast tokenizer (tokenizer.json) is needed")
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = True
    return backend


def vocabulary_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hexadecimal SHA-256 over every token and its id: equal for tokenizers whose ids mean the same tokens."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(vocabulary).encode("utf-8")).hexdigest()


def differing_tokens(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> list[str]:
    """Tokens that the two tokenizers give different ids, or that one of them lacks, in alphabetical order."""
    ours, theirs = one.get_vocab(), other.get_vocab()
    return sorted(token for token in {*ours, *theirs} if ours.get(token) != theirs.get(token))
