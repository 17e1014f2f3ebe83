"""Rewrites a fast tokenizer to fewer tokens. What the removed tokens stood for is spelt by those that stay.

A text that the tokenizer spells without unknown tokens is spelt without them afterwards. For each kind of model:

- WordPiece keeps every character, as the first of a word and as a later one.
- BPE keeps every character (a byte-level one its 256 bytes), and with a token all tokens that its merges go through.
- Unigram keeps every character and byte, and the scores.

Some vocabularies have tokens that are not spelt by single characters of theirs. Such tokens stay, and all that share
a character with them, directly or through other tokens: no token then reaches across the border of such a place.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerBase

from emmental.errors import UserError

_FILE = "tokenizer.json"


def read_state(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The content of a fast tokenizer's tokenizer.json.

    Raises:
        UserError: the tokenizer is a slow one.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UserError("vocabulary needs a fast tokenizer (tokenizer.json)")
    return json.loads(tokenizer.backend_tokenizer.to_str())


class Pieces:
    """The tokens of a tokenizer's model, and which of them others need.

    Args:
        state: see `read_state`.

    Attributes:
        model: the part of `state` that holds the vocabulary.
        ids: token -> id.
        added: ids of added tokens, special ones among them.
        spelling: ids without which a text could become unknown.
    """

    def __init__(self, state: Mapping[str, Any]) -> None:
        self.model = state["model"]
        self.ids = self._ids()
        self.added = {token["id"] for token in state["added_tokens"]}
        self.ordinary = {token: number for token, number in self.ids.items() if number not in self.added}
        self.pre_tokenizer = state["pre_tokenizer"]
        self.spelling = {number for token, number in self.ordinary.items() if self._spells(token)} | self._stuck()

    def _ids(self) -> dict[str, int]:
        return dict(self.model["vocab"])

    def unknown(self) -> int | None:
        """Id of the unknown token, if there is one."""
        return self.ids.get(self.model.get("unk_token"))

    def characters(self, token: str) -> list[str]:
        """The tokens of single characters that spell a token."""
        return list(token)

    def _spells(self, token: str) -> bool:
        return len(self.characters(token)) == 1 or _is_byte(token)

    def _stuck(self) -> set[int]:
        """Ids of tokens that have to stay because single characters cannot spell some of them."""
        return set()

    def with_parts(self, number: int) -> set[int]:
        """An id, and those of the tokens that it is made of."""
        return {number}

    def kept(self, order: Mapping[str, int]) -> dict[str, Any]:
        """The model with the tokens of `order` (token -> new id, ascending) alone."""
        return {**self.model, "vocab": dict(order)}


class WordPieces(Pieces):
    """WordPiece: the longest token that fits is taken, from the left to the right of a word."""

    def characters(self, token: str) -> list[str]:
        prefix = self.model["continuing_subword_prefix"]
        if token.startswith(prefix) and token != prefix:
            return [prefix + character for character in token.removeprefix(prefix)]
        return [token[:1], *(prefix + character for character in token[1:])]

    def _stuck(self) -> set[int]:
        found = _unspelt(self)
        if found and self.pre_tokenizer is not None:  # "[unused1]" is never inside of a word
            empty = json.loads(Tokenizer(models.WordPiece()).to_str())
            splitting = Tokenizer.from_str(json.dumps({**empty, "pre_tokenizer": self.pre_tokenizer}))
            split, prefix = splitting.pre_tokenizer.pre_tokenize_str, self.model["continuing_subword_prefix"]
            found = [token for token in found if len(split(token.removeprefix(prefix))) == 1]
        return _neighbours(self, found, lambda character: character[-1:])


class Unigrams(Pieces):
    """Unigram: the tokens with the highest sum of scores are taken."""

    def _ids(self) -> dict[str, int]:
        return {token: number for number, (token, _) in enumerate(self.model["vocab"])}

    def unknown(self) -> int | None:
        return self.model["unk_id"]

    def _stuck(self) -> set[int]:
        found = [token for token in _unspelt(self) if not _is_byte(token)]
        if not found:
            return set()
        # An unknown character costs a fixed amount more than the lowest score, so that stays too.
        lowest = min(range(len(self.model["vocab"])), key=lambda number: self.model["vocab"][number][1])
        return _neighbours(self, found, str) | {lowest}

    def kept(self, order: Mapping[str, int]) -> dict[str, Any]:
        scores = dict(self.model["vocab"])
        unknown = self.model["unk_id"]
        name = None if unknown is None else self.model["vocab"][unknown][0]
        return {**self.model, "vocab": [[token, scores[token]] for token in order], "unk_id": order.get(name)}


class BytePairs(Pieces):
    """Byte pair encoding, byte-level or not: merges are applied in their order."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        self.prefix = state["model"].get("continuing_subword_prefix") or ""
        self.suffix = state["model"].get("end_of_word_suffix") or ""
        self.ranks = {(left, right): rank for rank, (left, right) in enumerate(state["model"]["merges"])}
        self.first_merge: dict[str, tuple[str, str]] = {}
        for pair in self.ranks:
            self.first_merge.setdefault(self._merged(*pair), pair)
        self._parts: dict[str, set[str]] = {}
        super().__init__(state)
        self._names = {number: token for token, number in self.ordinary.items()}

    def _merged(self, left: str, right: str) -> str:
        return left + right.removeprefix(self.prefix)

    def characters(self, token: str) -> list[str]:
        body = token.removeprefix(self.prefix).removesuffix(self.suffix)
        if not body:
            return [token]
        begins = self.prefix if token.startswith(self.prefix) else ""
        ends = self.suffix if token.endswith(self.suffix) else ""
        symbols = [begins + body[0], *(self.prefix + character for character in body[1:])]
        return [*symbols[:-1], symbols[-1] + ends]

    def with_parts(self, number: int) -> set[int]:
        token = self._names.get(number)
        return {number} if token is None else {self.ids[part] for part in self._made_of(token)} | {number}

    def _made_of(self, token: str) -> set[str]:
        """The tokens that the merges go through from characters to a token, with itself."""
        if token not in self._parts:
            symbols = self.characters(token)
            seen = {*symbols}
            while len(symbols) > 1:
                pairs = [pair for pair in itertools.pairwise(symbols) if pair in self.ranks]
                if not pairs:
                    break
                symbols = self._apply(symbols, min(pairs, key=self.ranks.__getitem__))
                seen |= {*symbols}
            if symbols != [token]:  # other merges come first when the token stands alone
                pair = self.first_merge.get(token)
                seen = {token} if pair is None else {token}.union(*map(self._made_of, pair))
            self._parts[token] = seen & self.ids.keys()
        return self._parts[token]

    def _apply(self, symbols: Sequence[str], pair: tuple[str, str]) -> list[str]:
        found: list[str] = []
        place = 0
        while place < len(symbols):
            if tuple(symbols[place : place + 2]) == pair:
                found.append(self._merged(*pair))
                place += 2
            else:
                found.append(symbols[place])
                place += 1
        return found

    def kept(self, order: Mapping[str, int]) -> dict[str, Any]:
        merges = [
            [left, right]
            for left, right in self.model["merges"]
            if left in order and right in order and self._merged(left, right) in order
        ]
        return {**self.model, "vocab": dict(order), "merges": merges}


KINDS: dict[str, type[Pieces]] = {"WordPiece": WordPieces, "BPE": BytePairs, "Unigram": Unigrams}
"""Kind of a tokenizer's model -> how its tokens are made."""


def pieces_of(state: Mapping[str, Any]) -> Pieces:
    """The tokens of a tokenizer.

    Raises:
        UserError: a kind of model whose tokens no others can spell.
    """
    kind = state["model"]["type"]
    if kind not in KINDS:
        raise UserError(f"vocabulary accepts tokenizers of the kinds {', '.join(KINDS)}, not {kind}")
    return KINDS[kind](state)


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _unspelt(pieces: Pieces) -> list[str]:
    """Tokens that single characters of the vocabulary do not spell."""
    unknown = pieces.unknown()
    return [
        token
        for token, number in pieces.ordinary.items()
        if number != unknown and any(character not in pieces.ordinary for character in pieces.characters(token))
    ]


def _neighbours(pieces: Pieces, tokens: Iterable[str], letter: Callable[[str], str]) -> set[int]:
    """Ids of the tokens, and of all that share a letter with them, directly or through others."""
    letters = {token: {letter(one) for one in pieces.characters(token)} for token in pieces.ordinary}
    reached = set().union(*(letters[token] for token in tokens))
    grown = -1
    while grown != len(reached):
        grown = len(reached)
        reached = reached.union(*(each for each in letters.values() if each & reached))
    return {pieces.ordinary[token] for token, each in letters.items() if each & reached}


def needed_ids(state: Mapping[str, Any], pieces: Pieces, others: Iterable[int]) -> set[int]:
    """Ids that stay whatever the texts hold.

    Args:
        others: ids that the tokenizer's class and the model's configuration name; those without a token are omitted.
    """
    known = {*pieces.ids.values(), *pieces.added}
    named = {*_ids_of_template(state["post_processor"]), *others, pieces.unknown()}
    if state["padding"]:
        named.add(state["padding"]["pad_id"])
    return pieces.spelling | pieces.added | (named & known)


def choose(pieces: Pieces, needed: set[int], counts: Counter[int], size: int) -> set[int]:
    """At most `size` ids: those that are needed, then those with the highest counts; equal ones by their ids."""
    kept = set(needed)
    for number in sorted(pieces.ids.values(), key=lambda number: (-counts[number], number)):
        if len(kept) >= size:
            break
        more = pieces.with_parts(number) - kept
        if len(kept) + len(more) <= size:
            kept |= more
    return kept


def id_order(state: Mapping[str, Any], pieces: Pieces, kept: set[int]) -> list[int]:
    """The old ids in the order of the new ones: the old order, but added tokens outside of the model come last.

    The tokenizers library numbers them so when it reads a file.
    """
    own = sorted({*pieces.ids.values()} & kept)
    return own + sorted(pieces.added - {*own})


def smaller_tokenizer(
    tokenizer: PreTrainedTokenizerBase, state: Mapping[str, Any], pieces: Pieces, order: Sequence[int]
) -> PreTrainedTokenizerBase:
    """A tokenizer of the same class and settings with fewer tokens.

    Files of slow tokenizers (vocab.txt, merges.txt, sentencepiece.bpe.model) are not made: tokenizer.json holds all.

    Args:
        order: old ids in the order of the new ones, see `id_order`.
    """
    renumbered = {old: new for new, old in enumerate(order)}
    tokens = {token: renumbered[number] for token, number in pieces.ids.items() if number in renumbered}
    state = json.loads(json.dumps(state))
    state["model"] = pieces.kept(dict(sorted(tokens.items(), key=lambda item: item[1])))
    for token in state["added_tokens"]:
        token["id"] = renumbered[token["id"]]
    _renumber_template(state["post_processor"], renumbered)
    if state["padding"]:
        state["padding"]["pad_id"] = renumbered.get(state["padding"]["pad_id"], 0)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        (Path(folder) / _FILE).write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")
        for surplus in Path(folder).iterdir():
            if surplus.name not in (_FILE, "tokenizer_config.json", "special_tokens_map.json"):
                surplus.unlink()
        made = type(tokenizer).from_pretrained(folder)
    made.name_or_path = tokenizer.name_or_path
    return made


def _processors(processor: Mapping[str, Any] | None) -> Iterable[Any]:
    if processor is None:
        return []
    inner = processor.get("processors")
    return [processor] if inner is None else [each for one in inner for each in _processors(one)]


def _ids_of_template(processor: Mapping[str, Any] | None) -> set[int]:
    found: set[int] = set()
    for each in _processors(processor):
        found.update(each[name][1] for name in ("sep", "cls") if name in each)
        found.update(number for special in each.get("special_tokens", {}).values() for number in special["ids"])
    return found


def _renumber_template(processor: dict[str, Any] | None, renumbered: Mapping[int, int]) -> None:
    for each in _processors(processor):
        for name in ("sep", "cls"):
            if name in each:
                each[name][1] = renumbered[each[name][1]]
        for special in each.get("special_tokens", {}).values():
            special["ids"] = [renumbered[number] for number in special["ids"]]
