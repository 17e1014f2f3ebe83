"""Predictions for sentences: text or a table in, JSON lines out, in batches of similar length."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from emmental.data.tokenization import plain_text_backend
from emmental.errors import UserError
from emmental.first_token import first_token_only
from emmental.tasks.tables import read_table, table_format

STANDARD_INPUT = "-"
_TABLES = (".tsv", ".csv", ".jsonl", ".json")
_FIRST, _SECOND = ("sentence1", "sentence", "text"), "sentence2"
_BATCHES_AT_ONCE = 32
"""So many batches are read before they are sorted by length and answered."""

Text = str | tuple[str, str]


def read_texts(source: str) -> Iterator[Text]:
    """The sentences, or pairs of them, that a file holds.

    Args:
        source: a table with a header (.tsv, .csv, .jsonl, .json: column `sentence1`, `sentence` or `text`, and for
            pairs `sentence2`), any other file as UTF-8 text, a sentence a line, or `-`: standard input, likewise.

    Raises:
        UserError: no such file, not UTF-8, a table without such a column; one line that names file and line.
    """
    if source == STANDARD_INPUT:
        return _lines(sys.stdin.buffer, "standard input")
    path = Path(source)
    if not path.is_file():
        raise UserError(f"--input {source} is no file; it accepts text, {', '.join(_TABLES)}, or - (standard input)")
    if path.suffix.lower() in _TABLES:
        return iter(_table_texts(path))
    return _file_lines(path)


def _table_texts(path: Path) -> list[Text]:
    table = read_table(path, table_format(path), keys=(*_FIRST, _SECOND))
    header = table.header or []
    first = next((name for name in _FIRST if name in header), _FIRST[0])
    column = table.column(first)
    if _SECOND not in header:
        return [cells[column] for _, cells in table.rows]
    other = table.column(_SECOND)
    return [(cells[column], cells[other]) for _, cells in table.rows]


def _file_lines(path: Path) -> Iterator[str]:
    with open(path, "rb") as file:
        yield from _lines(file, str(path))


def _lines(file: Iterable[bytes], name: str) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UserError(f"{name}:{number}: byte 0x{error.object[error.start]:02x} is not UTF-8") from None


class Predictor:
    """A sequence classifier with its tokenizer.

    Text is only ever text: "[SEP]" in a sentence is not the token, as in training.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_seq_length: int) -> None:
        """Args:
            model: of any engine, called as a Transformers model; `config` has the labels.
            max_seq_length: tokens, the special ones with them, beyond which text is cut.

        Raises:
            UserError: a model of another head, fewer tokens than special ones need, more than the model has places
                for, or words that it has no embedding for.
        """
        if not type(model).__name__.endswith("ForSequenceClassification"):
            raise UserError(f"--model is a {type(model).__name__}; only sequence classifiers predict on this command")
        longest = model.config.max_position_embeddings
        backend = plain_text_backend(tokenizer)
        smallest = backend.num_special_tokens_to_add(is_pair=True) + 1
        if not smallest <= max_seq_length <= longest:
            raise UserError(f"--max_seq_length accepts {smallest} to {longest} for this model, not {max_seq_length}")
        if backend.get_vocab_size() > model.config.vocab_size:
            raise UserError(
                f"the tokenizer has {backend.get_vocab_size()} words, the model {model.config.vocab_size}: "
                "they do not belong together"
            )
        backend.enable_truncation(max_seq_length, strategy="longest_first", direction=tokenizer.truncation_side)
        self._model = model
        self._backend: Tokenizer = backend

    def predict(self, texts: Iterable[Text], batch_size: int) -> Iterator[dict[str, Any]]:
        """One answer for each text, in their order, see `answer`; texts are read as they are needed."""
        texts = iter(texts)
        while window := list(islice(texts, batch_size * _BATCHES_AT_ONCE)):
            yield from self._predict_window(window, batch_size)

    def _predict_window(self, texts: Sequence[Text], batch_size: int) -> list[dict[str, Any]]:
        encodings = self._backend.encode_batch(texts)
        order = sorted(range(len(texts)), key=lambda row: len(encodings[row]))
        answers: list[dict[str, Any]] = [{}] * len(texts)
        for begin in range(0, len(order), batch_size):
            rows = order[begin : begin + batch_size]
            with torch.inference_mode(), first_token_only(self._model):
                logits = self._model(**_padded([encodings[row] for row in rows])).logits
            for row, values in zip(rows, logits, strict=True):
                answers[row] = self.answer(values)
        return answers

    def answer(self, logits: Tensor) -> dict[str, Any]:
        """What (labels,) logits say.

        Returns:
            `label`, `score` (its probability) and `probabilities` of all labels; of a regression `score` alone.
        """
        if len(logits) == 1:
            return {"score": logits.item()}
        labels = self._model.config.id2label
        probabilities = torch.softmax(logits.double(), 0).tolist()
        best = max(range(len(probabilities)), key=probabilities.__getitem__)
        return {
            "label": labels[best],
            "score": probabilities[best],
            "probabilities": {labels[index]: value for index, value in enumerate(probabilities)},
        }


def json_line(index: int, answer: dict[str, Any]) -> str:
    """The answer to text number `index`, counted from 0."""
    return json.dumps({"index": index, **answer}, ensure_ascii=False, allow_nan=False)


def _padded(encodings: Sequence[Encoding]) -> dict[str, Tensor]:
    length = max(len(encoding) for encoding in encodings)
    inputs = {
        name: torch.zeros(len(encodings), length, dtype=torch.int64)
        for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    for row, encoding in enumerate(encodings):
        inputs["input_ids"][row, : len(encoding)] = torch.tensor(encoding.ids)
        inputs["token_type_ids"][row, : len(encoding)] = torch.tensor(encoding.type_ids)
        inputs["attention_mask"][row, : len(encoding)] = 1
    return inputs
