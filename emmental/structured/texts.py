"""Makes batches from texts: to prune a model on, and to check it on."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence, Set, Sized
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from emmental.data.padding import pad_lists
from emmental.data.unknown_tokens import UnknownCounter, problem
from emmental.errors import UserError

Text = str | tuple[str, str]
Batch = dict[str, Tensor]

MOST_TEXTS, FEWEST_TEXTS = 4096, 32
"""Most texts that are read, and fewest that are needed."""
MOST_CHECKED = 400
_CHECKED_SHARE = 5
"""One text in this many is held out for the check."""
INFORMATION_TEXTS, INFORMATION_TOKENS = 1024, 32_000
REFIT_TEXTS, REFIT_TOKENS = 1500, 60_000
"""Limits on the texts and on their tokens. They decide how long the pruning takes."""


@dataclass(frozen=True)
class Material:
    """Batches of model inputs, on the CPU, sorted by length.

    Attributes:
        information: for the Fisher information; with `labels` (B,) if they were given.
        refit: for the least squares.
        check: held out from both.
    """

    information: list[Batch]
    refit: list[Batch]
    check: list[Batch]


def material(
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[Text],
    labels: Iterable[int | float] | None = None,
    max_length: int = 128,
    batch_size: int = 32,
    accept_unknown_tokens: bool = False,
) -> Material:
    """Read and tokenise texts (evenly over a list, or the first of an iterator), and divide them.

    "[SEP]" in a text is ordinary text and not the token, as in training.

    Raises:
        UserError: an empty text, too few different texts, fewer labels than texts, or more than half of the tokens are
            unknown.
    """
    pairs = _read(texts, labels)
    encodings = [_encode(tokenizer, text, max_length) for text, _ in pairs]
    special = tokenizer.num_special_tokens_to_add(pair=not isinstance(pairs[0][0], str))
    counter = UnknownCounter(tokenizer.unk_token_id, special)
    counter.add([text for text, _ in pairs], (list(each["input_ids"]) for each in encodings))
    if line := problem(counter.found(), "texts", accept_unknown_tokens, "accept_unknown_tokens=True"):
        warnings.warn(line, stacklevel=3)
    _check_different([encoding["input_ids"] for encoding in encodings], accept_unknown_tokens)
    step = max(_CHECKED_SHARE, -(-len(pairs) // MOST_CHECKED))
    checked = range(0, len(pairs), step)
    others = [row for row in range(len(pairs)) if row % step]
    length = sum(len(encodings[row]["input_ids"]) for row in others) / len(others)
    informing = _spread(others, min(INFORMATION_TEXTS, int(INFORMATION_TOKENS / length)))
    fitted = _spread(others, min(REFIT_TEXTS, int(REFIT_TOKENS / length)))
    known = None if labels is None else [label for _, label in pairs]

    def batches(rows: Sequence[int], answers: Sequence[int | float] | None = None) -> list[Batch]:
        return padded_batches(tokenizer, encodings, rows, batch_size, answers)

    return Material(batches(informing, known), batches(fitted), batches(checked))


def padded_batches(
    tokenizer: PreTrainedTokenizerBase,
    encodings: Sequence[Mapping[str, Any]],
    rows: Sequence[int],
    batch_size: int,
    labels: Sequence[int | float] | None = None,
) -> list[Batch]:
    """The rows in batches of similar length, the longest first; rows of equal length stay in order."""
    order = sorted(rows, key=lambda row: -len(encodings[row]["input_ids"]))
    paddings = {"input_ids": tokenizer.pad_token_id}
    batches = []
    for begin in range(0, len(order), batch_size):
        members = order[begin : begin + batch_size]
        batch = {
            name: pad_lists([encodings[row][name] for row in members], paddings.get(name, 0))
            for name in encodings[members[0]]
        }
        if labels is not None:
            batch["labels"] = torch.tensor([labels[row] for row in members])
        batches.append(batch)
    return batches


def _spread(rows: Sequence[Any], most: int) -> list[Any]:
    """At most `most` rows, spread evenly over all, because files are often sorted by class."""
    if len(rows) <= most:
        return list(rows)
    return [rows[number * len(rows) // most] for number in range(most)]


def check_rows(name: str, rows: Any) -> None:
    """Refuse what is not a row of values in order. Loops over a table give the names of its columns, for example."""
    if isinstance(rows, str | bytes):
        raise UserError(f"{name} accepts a list or an iterator, not one {type(rows).__name__}")
    advice = None
    if isinstance(rows, Mapping):
        advice = f"list({name}.values())"
    elif isinstance(rows, Set):
        advice = "a list, whose order is fixed"
    elif hasattr(rows, "columns") or hasattr(rows, "column_names"):
        advice = f'one of its columns, as {name}["text"]'
    elif not isinstance(rows, Iterable):
        advice = "a list"
    if advice is not None:
        raise UserError(f"{name} accepts a list or an iterator, not a {type(rows).__name__}; give {advice}")


def _read(texts: Iterable[Text], labels: Iterable[int | float] | None) -> list[tuple[Text, int | float | None]]:
    check_rows("texts", texts)
    if isinstance(texts, Sized) and len(texts) > MOST_TEXTS:
        texts = list(texts)
        rows = _spread(range(len(texts)), MOST_TEXTS)
        if labels is not None:
            labels = list(labels)
            if len(labels) != len(texts):
                raise UserError(f"labels accepts one for each text: {len(texts)}, not {len(labels)}")
            labels = [labels[row] for row in rows]
        texts = [texts[row] for row in rows]
    read = list(islice(texts, MOST_TEXTS))
    answers = [None] * len(read) if labels is None else list(islice(labels, len(read) + 1))
    if len(read) == MOST_TEXTS:  # an iterator of texts may hold more, with labels
        answers = answers[:MOST_TEXTS]
    if len(answers) != len(read):
        given = "more" if len(answers) > len(read) else len(answers)
        raise UserError(f"labels accepts one for each text: {len(read)}, not {given}")
    if len(read) < FEWEST_TEXTS:
        raise UserError(f"texts needs at least {FEWEST_TEXTS} items, got {len(read)}; about 2,000 work best")
    for number, text in enumerate(read):
        parts = (text,) if isinstance(text, str) else text
        if not (
            isinstance(parts, list | tuple) and len(parts) in (1, 2) and all(isinstance(one, str) for one in parts)
        ):
            raise UserError(f"texts: text {number} is {text!r:.60}; a string or a pair of strings is accepted")
        if not "".join(parts).strip():
            raise UserError(f"texts: text {number} is empty")
    return list(zip(read, answers, strict=True))


def _encode(tokenizer: PreTrainedTokenizerBase, text: Text, max_length: int) -> Mapping[str, Any]:
    parts = (text,) if isinstance(text, str) else tuple(text)
    return tokenizer(*parts, truncation=True, max_length=max_length, split_special_tokens=True)


def _check_different(ids: Sequence[Sequence[int]], accepted: bool) -> None:
    """Warn of texts of which many are equal.

    Raises:
        UserError: fewer than `FEWEST_TEXTS` differ as tokens, and the user does not insist.
    """
    different = len({tuple(row) for row in ids})
    if different < FEWEST_TEXTS and not accepted:
        raise UserError(
            f"texts needs at least {FEWEST_TEXTS} different texts, got {different} among {len(ids)}; "
            "about 2,000 work best"
        )
    if 2 * different < len(ids):
        warnings.warn(f"texts: only {different} of {len(ids)} differ as tokens", stacklevel=4)
