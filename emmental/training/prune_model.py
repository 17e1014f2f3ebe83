"""`emmental.prune`: makes a smaller model of any task head from a trained one and some texts, in about a minute."""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from emmental.architectures import longest_input
from emmental.data.tokenization import check_token_ids
from emmental.errors import UserError
from emmental.export.sentence_models import Surroundings, is_sentence_model, parts_of, with_parts
from emmental.structured.agreement import agreement, answers
from emmental.structured.prune import known_labels, prune_on, share_budget, time_budget, trained_head
from emmental.structured.rungs import CLIFF, Pruned, bf16_products
from emmental.structured.selection import Budget
from emmental.structured.texts import Material, Text, material, spelt_again
from emmental.structured.vocabulary import counted_texts, reduced
from emmental.task_heads import MOST_PASSES, TaskHead
from emmental.training.text_recovery import recover, recovery_run


def prune(
    model: Any,
    tokenizer: PreTrainedTokenizerBase | None = None,
    texts: Iterable[Text] | None = None,
    labels: Iterable[Any] | None = None,
    *,
    keep: float | Sequence[float] | None = None,
    speedup: float | None = None,
    max_length: int = 128,
    batch_size: int = 32,
    refit: bool = True,
    passes: int = MOST_PASSES,
    updates: int = 0,
    accept_unknown_tokens: bool = False,
    vocabulary: int | str | None = None,
) -> Any:
    """Cut attention heads and feed-forward neurons out of a trained model, without labels.

    Args:
        model: an encoder of a known type with one of the task heads: classes, several labels, scores (regression,
            rerankers), classes of tokens, answers in a text, or no head (embeddings, as means over tokens). A
            `CrossEncoder` or `SentenceTransformer` too. It stays as it is.
        tokenizer: the model's own. Those two classes have one.
        texts: strings, pairs of strings, or for rerankers `(query, [documents])`, a list or an iterator, of the kind
            that the model will read. About 2,000 are best; at most 4,096 are read.
        labels: of the texts: class ids or names, scores, or lists of ids or names for several labels. Without them,
            the model's own answers are used.
        keep: share of the encoder's matrix weights that stays, above 0 and up to 1. Several make a model each.
        speedup: instead of `keep`: how many times as fast as `model` the result must be, for one text of
            `max_length` tokens in PyTorch, measured on this machine.
        max_length: tokens beyond which a text is cut; at most the model's positions.
        batch_size: texts that go through the model at once.
        refit: fit the remaining weights to make up for those that were cut.
        passes: most backward passes for a batch without labels.
        accept_unknown_tokens: continue even if the tokenizer knows less than half of the texts' tokens.
        updates: after the cut, updates in which the small model learns the dense model's answers to the texts.
        vocabulary: tokens that stay, or "auto"; all texts count. Not for heads that answer for every token.

    Returns:
        The small model, in evaluation mode, of the same kind as `model`; a list of them for several `keep`. With
        `vocabulary` a pair: that, and the new tokenizer.

    Warns:
        UserWarning: more than 5 % of the answers to held-out texts differ from those of `model`; many texts are equal;
            the tokenizer does not know many of the tokens.

    Raises:
        UserError: an argument is not accepted. The message names it.
    """
    shares = list(keep) if isinstance(keep, list | tuple) and keep else [keep]
    _check_numbers(shares, speedup, max_length=max_length, batch_size=batch_size, passes=passes, updates=updates)
    encoder, tokenizer, texts, around = _parts(model, tokenizer, texts)
    head = trained_head(encoder, passes=passes, **around.options)
    _check_tokenizer(tokenizer, encoder)
    max_length = min(max_length, longest_input(encoder.config))
    texts = texts if vocabulary is None else counted_texts(texts)
    known = None if labels is None else known_labels(head, encoder, labels)
    rows = material(tokenizer, texts, known, max_length, batch_size, accept_unknown_tokens, head)
    start = Start.of(encoder, tokenizer, rows, texts, vocabulary)
    timed = min(max_length, tokenizer.model_max_length)
    budgets = [share_budget(encoder, share) if share else time_budget(encoder, speedup, timed) for share in shares]
    models = []
    for budget in budgets:
        found = recovered(start, start.cut(budget, refit), updates=updates)
        _warn_of_cliff(found, head)
        models.append(found.model)
    if model is not encoder:
        models = [with_parts(model, [(encoder, small), (tokenizer, start.tokenizer)]) for small in models]
    pruned = models if isinstance(keep, list | tuple) else models[0]
    return pruned if vocabulary is None else (pruned, start.tokenizer)


def _parts(model: Any, tokenizer: Any, texts: Any) -> tuple[Any, Any, Any, Surroundings]:
    """Encoder, tokenizer, texts and surroundings. Models of sentence-transformers have a tokenizer of their own."""
    if not is_sentence_model(model):
        return model, tokenizer, texts, Surroundings()
    if texts is None and not isinstance(tokenizer, PreTrainedTokenizerBase):
        tokenizer, texts = None, tokenizer
    encoder, own, around = parts_of(model)
    return encoder, tokenizer or own, texts, around


def _check_numbers(shares: Sequence[Any], speedup: Any, **others: Any) -> None:
    if (shares[0] is None) == (speedup is None):
        raise UserError("give either keep or speedup")
    for name, value in [("keep", share) for share in shares] if speedup is None else [("speedup", speedup)]:
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
            raise UserError(f"{name} accepts a number, not {value!r:.60}")
        if name == "keep" and not 0.0 < value <= 1.0:
            raise UserError(f"keep accepts a share of weights above 0 and up to 1, not {value}")
    for name, value in others.items():
        smallest = 0 if name == "updates" else 1
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < smallest:
            raise UserError(f"{name} accepts whole numbers from {smallest}, not {value!r:.60}")


def _check_tokenizer(tokenizer: Any, model: PreTrainedModel) -> None:
    if not callable(tokenizer) or not hasattr(tokenizer, "pad_token_id"):
        raise UserError(f"tokenizer accepts the model's tokenizer of Transformers, not {tokenizer!r:.60}")
    if tokenizer.pad_token_id is None:
        raise UserError("tokenizer has no padding token: set tokenizer.pad_token")
    check_token_ids(tokenizer, model.config, "tokenizer", "model")


@dataclass(frozen=True)
class Start:
    """What is cut: the dense model, or the same with fewer tokens.

    Attributes:
        model, tokenizer, rows: what is cut, with its own tokens.
        dense, taught: the dense model as it was given, and the same texts with its tokens.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    rows: Material
    dense: PreTrainedModel
    taught: Material

    @classmethod
    def of(
        cls,
        dense: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: Material,
        texts: Sequence[Text],
        vocabulary: int | str | None,
        called: str = "vocabulary",
    ) -> Start:
        """With fewer tokens if `vocabulary` is given; `called` is its name for messages.

        Raises:
            UserError: see `reduce_vocabulary`; or the head answers for every token.
        """
        if vocabulary is None:
            return cls(dense, tokenizer, rows, dense, rows)
        if rows.head.needs_words:
            raise UserError(f"{called} is for answers to whole texts, not for {rows.head.title}; omit it")
        found = reduced(dense, tokenizer, texts, vocabulary, rows, called)
        return cls(found.model, found.tokenizer, spelt_again(rows, found.tokenizer), dense, rows)

    def cut(self, budget: Budget, refit: bool = True) -> Pruned:
        """The small model for a budget, compared with the dense model as it was given."""
        found = prune_on(self.model, self.rows, budget, refit)
        return found if self.model is self.dense else self.compared(found)

    def compared(self, found: Pruned) -> Pruned:
        """`found` with its agreement with the dense model as it was given."""
        head = self.rows.head
        with bf16_products(self.dense.device):
            expected = answers(self.dense, self.taught.check, head)
            reached = answers(found.model, self.rows.check, head)
        return replace(found, agreement=agreement(head, expected, reached))


def recovered(start: Start, found: Pruned, folder: Path | None = None, cut: str = "", **values: Any) -> Pruned:
    """`found` after the recovery, if there is one; see `recovery_run` for the other arguments."""
    if not values["updates"]:
        return found
    run = recovery_run(folder, cut, **values)
    small = recover(run, start.dense, found.model, start.rows, start.tokenizer, start.taught)
    return start.compared(replace(found, model=small))


def _warn_of_cliff(found: Pruned, head: TaskHead) -> None:
    if found.agreement.changed > CLIFF:
        warnings.warn(
            f"{100 * found.agreement.changed:.1f} % of the {head.unit} held-out texts differ from the whole model's: "
            "keep more of it, give more texts, or train the small model",
            stacklevel=3,
        )
