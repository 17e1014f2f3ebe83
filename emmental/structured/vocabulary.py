"""Removes tokens that texts hardly use: from the tokenizer, and from the model's embeddings."""

from __future__ import annotations

import copy
import numbers
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from emmental.architectures import ARCHITECTURES, base_model_type, longest_input
from emmental.data.tokenization import check_token_ids, plain_text_backend
from emmental.errors import UserError
from emmental.shrinking import filled
from emmental.structured.agreement import agreement, answers
from emmental.structured.smaller_tokenizer import (
    Pieces,
    choose,
    id_order,
    needed_ids,
    pieces_of,
    read_state,
    smaller_tokenizer,
)
from emmental.structured.texts import Batch, Material, Text, batches_in_order, check_rows, material
from emmental.task_heads import TaskHead, task_head

AUTO = "auto"
MOST_CHANGED = 0.01
"""`auto` takes the smallest size at which a smaller share of the answers to held-out texts changes."""
_SEEN_OFTEN = 2
"""`auto` keeps every token that the texts use so often."""
MOST_COUNTED = 1_000_000
"""Most texts whose tokens are counted."""
_LONGEST = 128
_WORTH_SAYING = 0.2
"""Smallest share of a model's bytes that `saving` speaks of."""


@dataclass(frozen=True)
class Reduced:
    """A model and its tokenizer with fewer tokens.

    Attributes:
        order: for each new id the old one.
        changed: for "auto": share of the answers to held-out texts that are others now; None for a number.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    order: list[int]
    changed: float | None = None


@dataclass(frozen=True)
class HeldOut:
    """Texts on which "auto" tries sizes. Their tokens do not count then.

    Attributes:
        texts: the one or two strings of each.
        counts: id -> how often they use it.
        head: what the model answers.
        max_length: tokens beyond which a text is cut.
        batch_size: texts that go through the model at once.
    """

    texts: Sequence[tuple[str, ...]]
    counts: Counter[int]
    head: TaskHead
    max_length: int
    batch_size: int = 32

    def batches(self, tokenizer: PreTrainedTokenizerBase) -> list[Batch]:
        """The texts, in order, with the tokens of a tokenizer."""
        return batches_in_order(tokenizer, self.texts, self.max_length, self.batch_size, self.head)


def reduce_vocabulary(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[Text],
    size: int | str = AUTO,
    max_length: int = _LONGEST,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and its tokenizer with the tokens that the texts use most. Both originals stay as they are.

    A text without unknown tokens has none afterwards: it is spelt by more, shorter tokens.

    Args:
        model: plain, masked or small, of a known type, with any head; output embeddings follow too.
        tokenizer: the model's own, a fast one (WordPiece, BPE or Unigram).
        texts: strings or pairs of strings of the kind that the model will read. All count, up to a million.
        size: tokens that stay, at most; or "auto": the smallest size, by doubling, at which less than 1 % of the
            answers to held-out texts change, and never less than all tokens that the texts use twice.
        max_length: for "auto": tokens beyond which a held-out text is cut.

    Raises:
        UserError: the tokenizer is of another kind, `size` is below the tokens that must stay or above all, or "auto"
            gets fewer than 32 texts, or a model that answers for every token.
    """
    texts = counted_texts(texts)
    rows = None
    if vocabulary_size(size) == AUTO:
        rows = material(
            tokenizer, texts, max_length=min(max_length, longest_input(model.config)), head=task_head(model)
        )
    found = reduced(model, tokenizer, texts, size, rows)
    return found.model, found.tokenizer


def reduced(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Text],
    size: int | str,
    rows: Material | None = None,
    called: str = "vocabulary",
) -> Reduced:
    """`reduce_vocabulary`, with what it found.

    Args:
        rows: some of the texts, with those that are held out; needed for "auto".
        called: the name of `size` for messages.
    """
    size = vocabulary_size(size, called)
    check_token_ids(tokenizer, model.config, "tokenizer", "model")
    source, counts = Vocabulary(tokenizer, model.config), token_counts(tokenizer, texts)
    if size != AUTO:
        return source.reduced(model, source.choose(counts, size, called))
    head = rows.head or task_head(model)
    if head.needs_words:
        raise UserError(f"vocabulary auto: the answers of {head.title} change with the tokens; give a number")
    spelling = rows.spelling
    of_held_out = token_counts(tokenizer, rows.held_out)
    held_out = HeldOut(rows.held_out, of_held_out, head, spelling.max_length, spelling.batch_size)
    return source.automatic(model, counts, held_out)


def counted_texts(texts: Iterable[Text]) -> list[Text]:
    """The texts whose tokens count, as a list.

    Raises:
        UserError: something that is no row of texts.
    """
    check_rows("texts", texts)
    return list(islice(texts, MOST_COUNTED))


def embedding_weights(model: PreTrainedModel) -> int:
    """Number of weights in the input and output embeddings of tokens; tied ones count once."""
    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    return sum({id(each.weight): each.weight.numel() for each in tables if each is not None}.values())


def saving(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    counts: Counter[int],
    flag: str,
    bytes_of_weight: int | None = None,
) -> str | None:
    """A line that says what `flag` would save at most; None if that is little, or the tokens cannot be fewer.

    Args:
        counts: id -> how often the texts use it.
        bytes_of_weight: in the file; default: as in memory.
    """
    try:
        source = Vocabulary(tokenizer, model.config)
    except UserError:
        return None
    share = 1 - source.seen_often(counts) / source.whole
    megabyte = 1e6 / (bytes_of_weight or next(model.parameters()).element_size())
    whole = sum(each.numel() for each in model.parameters()) / megabyte
    saved = share * embedding_weights(model) / megabyte
    if round(saved) == 0 or saved < _WORTH_SAYING * whole:
        return None
    return f"{saved:.0f} of {whole:.0f} MB are embeddings of tokens that your texts hardly use: {flag} {AUTO}"


def vocabulary_size(value: Any, called: str = "vocabulary") -> int | str:
    """A number of tokens, or "auto".

    Raises:
        UserError: anything else.
    """
    if value == AUTO:
        return AUTO
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise UserError(f"{called} accepts auto or a number of tokens that stay, not {value!r:.60}")
    return int(value)


class Vocabulary:
    """The tokens of a model, and which of them can go.

    Attributes:
        needed: ids that stay whatever the texts hold.
        whole: number of all tokens.

    Args:
        tokenizer: a fast one.
        config: of its model.

    Raises:
        UserError: a tokenizer of another kind, or one that does not belong to the model.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
        self.tokenizer = tokenizer
        self._state = read_state(tokenizer)
        self._pieces: Pieces = pieces_of(self._state)
        self.needed = needed_ids(self._state, self._pieces, _named(tokenizer, config))
        self._all = {*self._pieces.ids.values()} | self._pieces.added
        self.whole = len(self._all)
        position = _padding_position(config)
        if position is not None and position not in self.needed:
            raise UserError(f"vocabulary: pad_token_id {position} of the model is no token of the tokenizer")

    def check_size(self, size: int, called: str) -> None:
        """Refuse a number of tokens that cannot be; `called` is its name for messages."""
        if not len(self.needed) <= size <= self.whole:
            raise UserError(
                f"{called} accepts auto or {len(self.needed)} (characters and special tokens always stay) to "
                f"{self.whole} tokens, not {size}"
            )

    def choose(self, counts: Counter[int], size: int, called: str = "vocabulary") -> set[int]:
        """Ids of at most `size` tokens: those that are needed, then those with the highest counts.

        Raises:
            UserError: see `check_size`.
        """
        self.check_size(size, called)
        return choose(self._pieces, self.needed, counts, size)

    def seen_often(self, counts: Counter[int]) -> int:
        """Number of tokens that stay because the texts use them more than once, with all that must stay."""
        kept = set(self.needed)
        for number, count in counts.items():
            if count >= _SEEN_OFTEN:
                kept |= self._pieces.with_parts(number)
        return len(kept)

    def reduced(self, model: PreTrainedModel, kept: set[int], changed: float | None = None) -> Reduced:
        """The model and its tokenizer with the tokens `kept`. Both originals stay as they are."""
        order = id_order(self._state, self._pieces, kept)
        tokenizer = smaller_tokenizer(self.tokenizer, self._state, self._pieces, order)
        return Reduced(fewer_embeddings(model, order), tokenizer, order, changed)

    def automatic(self, model: PreTrainedModel, everything: Counter[int], held_out: HeldOut) -> Reduced:
        """Sizes are tried on held-out texts, which do not count. Then all texts count for the size that was found.

        Args:
            everything: id -> how often all texts use it, those that are held out among them.
            held_out: see `HeldOut`.
        """
        counts = everything - held_out.counts
        expected = answers(model, held_out.batches(self.tokenizer), held_out.head)
        size = self.seen_often(counts)
        while size < self.whole:
            found = self.reduced(model, self.choose(counts, size))
            reached = answers(found.model, held_out.batches(found.tokenizer), held_out.head)
            changed = agreement(held_out.head, expected, reached).changed
            if changed < MOST_CHANGED:
                size = max(size, self.seen_often(everything))
                return self.reduced(model, self.choose(everything, size), changed)
            size *= 2
        return self.reduced(model, self._all, 0.0)


def token_counts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text]) -> Counter[int]:
    """Id -> how often the texts use it."""
    parts = [part for text in texts for part in _strings(text)]
    counts: Counter[int] = Counter()
    for encoding in plain_text_backend(tokenizer).encode_batch(parts, add_special_tokens=False):
        counts.update(encoding.ids)
    return counts


def _named(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> list[int]:
    """Ids that the tokenizer's class and the model's configuration name."""
    found = [*tokenizer.all_special_ids]
    for value in _token_ids(config).values():
        found += value if isinstance(value, list) else [value]
    after = _positions_after(config)
    return found + (list(range(after + 1)) if isinstance(after, int) else [])


def _strings(text: Any) -> Iterator[str]:
    """The strings of a text, of a pair, or of a query with its documents."""
    if isinstance(text, str):
        yield text
        return
    if not isinstance(text, Mapping | Iterable):
        raise UserError(f"texts: {text!r:.60} is no string and no pair of strings")
    for part in text.values() if isinstance(text, Mapping) else text:
        yield from _strings(part)


def fewer_embeddings(model: PreTrainedModel, order: Sequence[int]) -> PreTrainedModel:
    """A model whose token i is the token `order[i]` of `model`, in input and output embeddings and in its settings.

    Types whose positions count from the padding token's id get position embeddings that are moved with it.
    Device, dtype and mode are as before.
    """
    config = copy.deepcopy(model.config)
    renumbered = {old: new for new, old in enumerate(order)}
    for name, value in _token_ids(config).items():
        ids = [renumbered.get(number) for number in value] if isinstance(value, list) else renumbered.get(value)
        setattr(config, name, ids)
    config.vocab_size = len(order)
    before, after = _padding_position(model.config), _padding_position(config)
    if before is not None:
        config.max_position_embeddings -= before - after
    rows = model.get_input_embeddings().weight.shape[0]
    index = torch.tensor(order, device=model.device)
    state = model.state_dict()
    for name, tensor in state.items():
        if tensor.shape[:1] == (rows,) and _of_tokens(model, name):
            state[name] = tensor[index]
        elif before != after and name.endswith("position_embeddings.weight"):
            state[name] = torch.cat((tensor[: after + 1], tensor[before + 1 :]))
    small = filled(model, type(model), config, state)
    small.tie_weights()
    return small


def _of_tokens(model: PreTrainedModel, name: str) -> bool:
    """Whether a tensor with a row for each token is an input embedding, or belongs to the output embeddings."""
    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    if any(model.get_submodule(name.rpartition(".")[0]) is table for table in tables):
        return True
    return not name.startswith(f"{model.base_model_prefix}.") and tables[1] is not None


def _token_ids(config: PreTrainedConfig) -> dict[str, Any]:
    """The settings that hold ids of tokens: a number, or a list of them."""
    return {
        name: value
        for name, value in vars(config).items()
        if name.endswith("_token_id") and (isinstance(value, int) or (isinstance(value, list) and value))
    }


def _positions_after(config: PreTrainedConfig) -> int | str | None:
    entry = ARCHITECTURES.get(base_model_type(config.model_type))
    return None if entry is None else entry.positions_after


def _padding_position(config: PreTrainedConfig) -> int | None:
    """The id of the padding token, for types whose positions count from it."""
    after = _positions_after(config)
    return getattr(config, after) if isinstance(after, str) else None
