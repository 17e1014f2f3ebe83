"""Loads tokenizers. Text is always read as text, even if it looks like a special token."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import CONFIG_MAPPING, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from emmental.architectures import ARCHITECTURES, base_model_type, longest_input, takes_token_types
from emmental.atomic import read_object
from emmental.errors import UserError
from emmental.pretrained import from_pretrained

_PROBE = "a"


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


def fit_to_model(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
    """Set a tokenizer to return the token types that its model reads, and to know the model's longest input.

    ALBERT's, for example, omits the types. The tokenizer is saved with the model, so pipelines get both.
    """
    tokenizer.model_max_length = min(tokenizer.model_max_length, longest_input(config))
    tokenizer.init_kwargs["model_max_length"] = tokenizer.model_max_length
    if takes_token_types(config) and "token_type_ids" not in tokenizer.model_input_names:
        tokenizer.model_input_names = [*tokenizer.model_input_names, "token_type_ids"]
        tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names


def check_token_ids(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, named: str, model: str) -> None:
    """Refuse a tokenizer with an id that the model's embeddings have no row for.

    Args:
        tokenizer: any one; of its vocabulary, also tokens that no text uses are checked.
        config: of the model.
        named: what messages call the tokenizer: flag and value.
        model: what messages call the model.

    Raises:
        UserError: it names the id and the token.
    """
    probe = tokenizer(_PROBE, _PROBE)  # the ids of special tokens may be fixed, apart from the vocabulary
    ids = {**tokenizer.get_vocab(), **{f"number {number}": number for number in probe["input_ids"]}}
    check_ids(ids, config.vocab_size, named, model)
    types = max(probe.get("token_type_ids") or [0])
    if takes_token_types(config) and types >= config.type_vocab_size:
        raise UserError(f"{named}: the tokenizer has the token type {types}, {model} has {config.type_vocab_size}")


def check_ids(ids: Mapping[str, int], size: int, named: str, model: str) -> None:
    """Refuse token -> id if an id is not below `size`, the rows of the model's embeddings: see `check_token_ids`."""
    token, highest = max(ids.items(), key=lambda pair: pair[1], default=("", -1))
    if highest >= size:
        raise UserError(
            f"{named}: the tokenizer has the id {highest} ({token!r}), {model} has {size} tokens: they do not belong "
            "together"
        )


def _model_type(file: Path) -> str:
    model_type = read_object(file).get("model_type")
    return model_type if isinstance(model_type, str) else ""  # the loading of the model reports what is wrong


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
