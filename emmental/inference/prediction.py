"""Predictions for sentences: text or a table in, JSON lines out, in batches of similar length."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from emmental.architectures import longest_input
from emmental.data.padding import pad_lists
from emmental.data.texts import Text
from emmental.data.tokenization import check_token_ids, plain_text_backend
from emmental.data.unknown_tokens import UnknownCounter, problem
from emmental.errors import UserError
from emmental.runs.evaluation import model_inputs
from emmental.shrinking import first_token_form
from emmental.tasks.classes import classes_of_model, refuse_several_labels

logger = logging.getLogger(__name__)

_BATCHES_AT_ONCE = 32
"""Number of batches that are read, then sorted by length and answered."""


class Predictor:
    """A sequence classifier with its tokenizer.

    "[SEP]" in a sentence is ordinary text and not the token, as in training.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        max_seq_length: int,
        accept_unknown_tokens: bool = False,
    ) -> None:
        """Args:
            model: a model of any engine, called like a Transformers model; its `config` has the labels.
            max_seq_length: texts are cut to this many tokens, special ones included.
            accept_unknown_tokens: answer although the tokenizer does not know more than half of the first tokens.

        Raises:
            UserError: the model has another head, `max_seq_length` is too small for the special tokens or too large
                for the model, or the tokenizer has more words than the model.
        """
        name = (model.config.architectures or [type(model).__name__])[0]
        if not name.endswith("ForSequenceClassification"):
            raise UserError(f"--model_name_or_path is a {name}; this command accepts sequence classifiers only")
        refuse_several_labels(model.config, "--model_name_or_path")
        longest = longest_input(model.config)
        backend = plain_text_backend(tokenizer)
        smallest = backend.num_special_tokens_to_add(is_pair=True) + 1
        if not smallest <= max_seq_length <= longest:
            raise UserError(f"--max_seq_length accepts {smallest} to {longest} for this model, not {max_seq_length}")
        check_token_ids(tokenizer, model.config, f"--tokenizer_name {tokenizer.name_or_path}", "the model")
        backend.enable_truncation(max_seq_length, strategy="longest_first", direction=tokenizer.truncation_side)
        self._model = first_token_form(model)
        self._labels = classes_of_model(model.config, "--model_name_or_path")
        self._backend: Tokenizer = backend
        self._pad_token_id, self._unknown_id = tokenizer.pad_token_id, tokenizer.unk_token_id
        self._accept_unknown_tokens = accept_unknown_tokens

    def predict(self, texts: Iterable[Text], batch_size: int) -> Iterator[dict[str, Any]]:
        """One answer for each text, in order, see `answer`. Texts are read as they are needed.

        Raises:
            UserError: more than half of the tokens of the first texts are unknown to the tokenizer; an answer is NaN.
        """
        texts, first = iter(texts), True
        while window := list(islice(texts, batch_size * _BATCHES_AT_ONCE)):
            yield from self._predict_window(window, batch_size, first)
            first = False

    def _predict_window(self, texts: Sequence[Text], batch_size: int, first: bool) -> list[dict[str, Any]]:
        encodings = self._backend.encode_batch(texts)
        if first:
            self._check_known(texts, encodings)
        order = sorted(range(len(texts)), key=lambda row: len(encodings[row]))
        answers: list[dict[str, Any]] = [{}] * len(texts)
        for begin in range(0, len(order), batch_size):
            rows = order[begin : begin + batch_size]
            with torch.inference_mode():
                inputs = _padded([encodings[row] for row in rows], self._pad_token_id)
                logits = self._model(**model_inputs(inputs, torch.device("cpu"), self._model)).logits
            for row, values in zip(rows, logits, strict=True):
                answers[row] = self.answer(values)
        return answers

    def _check_known(self, texts: Sequence[Text], encodings: Sequence[Encoding]) -> None:
        special = self._backend.num_special_tokens_to_add(not isinstance(texts[0], str))
        counter = UnknownCounter(self._unknown_id, special).add(texts, (encoding.ids for encoding in encodings))
        if line := problem(counter.found(), "the first texts", self._accept_unknown_tokens):
            logger.warning("%s", line)

    def answer(self, logits: Tensor) -> dict[str, Any]:
        """The answer for (labels,) logits.

        Returns:
            `label`, `score` (its probability) and `probabilities` of all labels; of a regression `score` alone.
        """
        if not logits.isfinite().all():
            raise UserError("the model's answer is NaN or infinite: the model is damaged")
        if len(logits) == 1:
            return {"score": logits.item()}
        labels = self._labels
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


def _padded(encodings: Sequence[Encoding], pad_token_id: int) -> dict[str, Tensor]:
    return {
        "input_ids": pad_lists([encoding.ids for encoding in encodings], pad_token_id),
        "attention_mask": pad_lists([encoding.attention_mask for encoding in encodings], 0),
        "token_type_ids": pad_lists([encoding.type_ids for encoding in encodings], 0),
    }
