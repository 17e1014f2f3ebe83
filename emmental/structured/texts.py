"""Makes batches from texts: to prune a model on, and to check it on."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence, Set, Sized
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from emmental.data.padding import pad_lists
from emmental.data.unknown_tokens import UnknownCounter, problem
from emmental.errors import UserError
from emmental.task_heads import GROUP, PAIR, READ, TEXT, TaskHead

Text = str | tuple[str, str] | tuple[str, Sequence[str]]
"""A string, a pair of strings, or a query with its documents."""
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
        information: for the Fisher information; with `labels` if they were given.
        refit: for the least squares.
        check: held out from both.
        head: what the model answers; None: the head of its class.
        groups: (N,) number of the query of each text of `check`; None: every text is on its own.
        labels: of the texts of `check`, if they were given.
        encodings: of all texts that are not held out, for a recovery.
        tokenizer: whose tokens these are.
        spelling: which texts are where, for `spelt_again`.
    """

    information: list[Batch]
    refit: list[Batch]
    check: list[Batch]
    head: TaskHead | None = None
    groups: Tensor | None = None
    labels: list[Any] | None = None
    encodings: Sequence[Mapping[str, Any]] = ()
    tokenizer: PreTrainedTokenizerBase | None = None
    spelling: _Spelling | None = None

    @property
    def held_out(self) -> list[tuple[str, ...]]:
        """The one or two strings of each text of `check`, in order."""
        return [] if self.spelling is None else [self.spelling.rows[number].parts for number in self.spelling.checked]


@dataclass(frozen=True)
class _Row:
    """One input: its one or two strings, the number of its query, its label."""

    parts: tuple[str, ...]
    group: int
    label: Any = None


@dataclass(frozen=True)
class _Spelling:
    """All inputs of a material, and the numbers of those in each of its parts, in order."""

    rows: Sequence[_Row]
    informing: Sequence[int]
    fitted: Sequence[int]
    checked: Sequence[int]
    others: Sequence[int]
    max_length: int
    batch_size: int


def material(
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[Text],
    labels: Iterable[Any] | None = None,
    max_length: int = 128,
    batch_size: int = 32,
    accept_unknown_tokens: bool = False,
    head: TaskHead | None = None,
) -> Material:
    """Read and tokenise texts (evenly over a list, or the first of an iterator), and divide them.

    "[SEP]" in a text is ordinary text and not the token, as in training. Texts of one query (a ranking model's pairs
    with the same first string) stay together.

    Args:
        labels: one for each text: a class id, a score, or 0 and 1 for each label.
        head: what the model answers; None: whatever takes strings and pairs.

    Raises:
        UserError: an empty text, one of a shape that the head does not take, too few different texts, fewer labels
            than texts, or more than half of the tokens are unknown.
    """
    rows = _read(texts, labels, head.shapes if head else (TEXT, PAIR))
    if head and head.needs_words and not tokenizer.is_fast:
        raise UserError(f"tokenizer: {head.title} need a fast one (tokenizer.json)")
    encodings = [_encode(tokenizer, row.parts, max_length, head) for row in rows]
    special = tokenizer.num_special_tokens_to_add(pair=len(rows[0].parts) == 2)
    counter = UnknownCounter(tokenizer.unk_token_id, special)
    counter.add([row.parts for row in rows], (list(each["input_ids"]) for each in encodings))
    if line := problem(counter.found(), "texts", accept_unknown_tokens, "accept_unknown_tokens=True"):
        warnings.warn(line, stacklevel=3)
    _check_different([encoding["input_ids"] for encoding in encodings], accept_unknown_tokens)
    held_out = _held_out(rows)
    checked = [number for number, row in enumerate(rows) if row.group in held_out]
    others = [number for number, row in enumerate(rows) if row.group not in held_out]
    length = sum(len(encodings[row]["input_ids"]) for row in others) / len(others)
    informing = _spread(others, min(INFORMATION_TEXTS, int(INFORMATION_TOKENS / length)))
    fitted = _spread(others, min(REFIT_TEXTS, int(REFIT_TOKENS / length)))
    known = None if labels is None else [row.label for row in rows]

    def batches(numbers: Sequence[int], answers: Sequence[Any] | None = None) -> list[Batch]:
        return padded_batches(tokenizer, encodings, numbers, batch_size, answers)

    in_order = longest_first(encodings, checked)
    spelling = _Spelling(rows, informing, fitted, in_order, others, max_length, batch_size)
    grouped = len({row.group for row in rows}) < len(rows)
    return Material(
        batches(informing, known),
        batches(fitted),
        batches(checked),
        head,
        torch.tensor([rows[number].group for number in in_order]) if grouped else None,
        None if known is None else [known[number] for number in in_order],
        [encodings[number] for number in others],
        tokenizer,
        spelling,
    )


def batches_in_order(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[tuple[str, ...]],
    max_length: int,
    batch_size: int,
    head: TaskHead | None = None,
) -> list[Batch]:
    """The one or two strings of each text as batches, in their order, each padded to its longest."""
    encodings = [_encode(tokenizer, parts, max_length, head) for parts in texts]
    starts = range(0, len(encodings), batch_size)
    return [_padded(tokenizer, encodings, range(len(encodings))[begin : begin + batch_size]) for begin in starts]


def spelt_again(material: Material, tokenizer: PreTrainedTokenizerBase) -> Material:
    """The same texts, in the same parts, with the tokens of another tokenizer; those of `check` in the same order."""
    spelling = material.spelling
    if spelling is None:
        raise ValueError("the texts of this material are not known")
    encodings = [_encode(tokenizer, row.parts, spelling.max_length, material.head) for row in spelling.rows]
    size = spelling.batch_size
    known = [row.label for row in spelling.rows] if material.labels is not None else None
    groups = [spelling.checked[begin : begin + size] for begin in range(0, len(spelling.checked), size)]
    return replace(
        material,
        information=padded_batches(tokenizer, encodings, spelling.informing, size, known),
        refit=padded_batches(tokenizer, encodings, spelling.fitted, size),
        check=[_padded(tokenizer, encodings, group) for group in groups],
        encodings=[encodings[number] for number in spelling.others],
        tokenizer=tokenizer,
    )


def _held_out(rows: Sequence[_Row]) -> set[int]:
    """Numbers of the queries whose texts are checked."""
    groups = list(dict.fromkeys(row.group for row in rows))
    step = max(_CHECKED_SHARE, -(-len(rows) // MOST_CHECKED))
    return set(groups[::step])


def longest_first(encodings: Sequence[Mapping[str, Any]], rows: Sequence[int]) -> list[int]:
    """The rows in the order of `padded_batches`."""
    return sorted(rows, key=lambda row: -len(encodings[row]["input_ids"]))


def padded_batches(
    tokenizer: PreTrainedTokenizerBase,
    encodings: Sequence[Mapping[str, Any]],
    rows: Sequence[int],
    batch_size: int,
    labels: Sequence[Any] | None = None,
) -> list[Batch]:
    """The rows in batches of similar length, the longest first; rows of equal length stay in order."""
    order = longest_first(encodings, rows)
    batches = []
    for begin in range(0, len(order), batch_size):
        members = order[begin : begin + batch_size]
        batch = _padded(tokenizer, encodings, members)
        if labels is not None:
            batch["labels"] = torch.tensor([labels[row] for row in members])
        batches.append(batch)
    return batches


def _padded(
    tokenizer: PreTrainedTokenizerBase, encodings: Sequence[Mapping[str, Any]], members: Sequence[int]
) -> Batch:
    paddings = {"input_ids": tokenizer.pad_token_id}
    return {
        name: pad_lists([encodings[row][name] for row in members], paddings.get(name, 0))
        for name in encodings[members[0]]
    }


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


def _read(texts: Iterable[Text], labels: Iterable[Any] | None, shapes: Sequence[str]) -> list[_Row]:
    check_rows("texts", texts)
    whole = isinstance(texts, Sized)
    read = list(texts if whole else islice(texts, MOST_TEXTS))
    answers = [None] * len(read) if labels is None else list(islice(labels, len(read) + 1))
    if len(read) == MOST_TEXTS and not whole:  # an iterator of texts may hold more, with labels
        answers = answers[:MOST_TEXTS]
    if len(answers) != len(read):
        given = "more" if len(answers) > len(read) else len(answers)
        raise UserError(f"labels needs one for each text ({len(read)}), got {given}")
    rows = _rows(read, answers, shapes)
    if len(rows) < FEWEST_TEXTS:
        raise UserError(f"texts needs at least {FEWEST_TEXTS} items, got {len(rows)}; about 2,000 work best")
    if len(rows) <= MOST_TEXTS:
        return rows
    groups = list(dict.fromkeys(row.group for row in rows))
    kept = set(_spread(groups, max(2, MOST_TEXTS * len(groups) // len(rows))))
    return [row for row in rows if row.group in kept]


def _rows(texts: Sequence[Text], labels: Sequence[Any], shapes: Sequence[str]) -> list[_Row]:
    rows: list[_Row] = []
    queries: dict[Any, int] = {}
    for number, (text, label) in enumerate(zip(texts, labels, strict=True)):
        inputs = _inputs(text)
        shape = None if inputs is None else GROUP if isinstance(inputs, list) else (TEXT, PAIR)[len(inputs) - 1]
        if shape not in shapes:
            raise UserError(f"texts: text {number} is {text!r:.60}; {' or '.join(shapes)} is accepted")
        if shape == GROUP and label is not None:
            raise UserError("labels accepts one for each pair; give pairs of query and document, not lists")
        for parts in inputs if shape == GROUP else [inputs]:
            if not "".join(parts).strip():
                raise UserError(f"texts: text {number} is empty")
            key = parts[0] if GROUP in shapes and len(parts) == 2 else number
            rows.append(_Row(parts, queries.setdefault(key, len(queries)), label))
    if len(queries) == 1:  # nothing would be left to prune on
        return [replace(row, group=number) for number, row in enumerate(rows)]
    return rows


def _inputs(text: Any) -> tuple[str, ...] | list[tuple[str, str]] | None:
    """The one or two strings of a text, or the pairs of a query and its documents; None for anything else."""
    if isinstance(text, Mapping):
        text = (text.get("query"), text.get("documents"))
    parts = (text,) if isinstance(text, str) else text
    if not isinstance(parts, list | tuple) or len(parts) not in (1, 2) or not isinstance(parts[0], str):
        return None
    if all(isinstance(one, str) for one in parts):
        return tuple(parts)
    documents = parts[1]
    if isinstance(documents, list | tuple) and documents and all(isinstance(one, str) for one in documents):
        return [(parts[0], one) for one in documents]
    return None


def _encode(
    tokenizer: PreTrainedTokenizerBase, parts: tuple[str, ...], max_length: int, head: TaskHead | None
) -> Mapping[str, Any]:
    encoding = tokenizer(*parts, truncation=True, max_length=max_length, split_special_tokens=True)
    read = head.read(encoding.sequence_ids(0)) if head and head.needs_words else None
    return encoding if read is None else {**encoding, READ: read}


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
