"""Loads tokenizers. Text is always read as text, even if it looks like a special token."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import CONFIG_MAPPING, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from emmental.architectures import ARCHITECTURES, base_model_type, longest_input, takes_token_types
from emmental.errors import UserError
from emmental.pretrained import from_pretrained


def load_tokenizer(name: str | Path, *, flag: str = "", **options: Any) -> PreTrainedTokenizerBase:
    """The fast tokenizer of a model: plain, masked or small.

    Args:
        name: folder or Hub name.
        flag: the flag that gave the name, for messages.
        options: those of `AutoTokenizer.from_pretrained`.

    Raises:
        UserError: there is none, or no fast one, or it cannot be loaded.
    """
    model_type = _model_type(Path(name) / "config.json")
    if model_type not in ARCHITECTURES and base_model_type(model_type) in ARCHITECTURES:
        options["config"] = CONFIG_MAPPING[base_model_type(model_type)]()  # Transformers knows only its own types
    tokenizer = from_pretrained(AutoTokenizer, str(name), flag=flag, **options)
    called = f"{flag} {name}".strip()
    if not tokenizer.is_fast:
        raise UserError(f"{called} is not a fast tokenizer; it needs a tokenizer.json")
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # Transformers makes this one if it finds no files
        raise UserError(f"{called} holds no tokenizer; it needs a tokenizer.json or vocab.txt")
    return tokenizer


def lowers_case(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a fast tokenizer reads upper-case letters as lower-case ones."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    return normalizer is not None and normalizer.normalize_str("A").strip("\u2581 ") == "a"


def trained_length(config: PreTrainedConfig) -> int | None:
    """Number of tokens that texts were cut to in the model's training; None if its configuration lacks it."""
    length = getattr(config, "max_seq_length", None)
    return length if type(length) is int and 1 <= length <= longest_input(config) else None


def give_token_types(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
    """Set a tokenizer to return the token types that its model reads; that of ALBERT, for example, omits them.

    Training uses them. The tokenizer is saved with the model, so pipelines get them too.
    """
    if takes_token_types(config) and "token_type_ids" not in tokenizer.model_input_names:
        tokenizer.model_input_names = [*tokenizer.model_input_names, "token_type_ids"]
        tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names


def _model_type(file: Path) -> str:
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        return settings["model_type"] if isinstance(settings["model_type"], str) else ""
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""  # the loading of the model reports what is wrong


def plain_text_backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A copy of the tokenizer's backend that does not pad or truncate, and reads special tokens in a text as text.

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
    """Hexadecimal SHA-256 over every token and its id: equal if the ids of two tokenizers mean the same tokens."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(vocabulary).encode("utf-8")).hexdigest()


def differing_tokens(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> list[str]:
    """Tokens with different ids in the two tokenizers, or missing in one, in alphabetical order."""
    ours, theirs = one.get_vocab(), other.get_vocab()
    return sorted(token for token in {*ours, *theirs} if ours.get(token) != theirs.get(token))
