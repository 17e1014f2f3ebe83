"""`emmental.prune`: makes a smaller classifier from a fine-tuned one and some texts, in about a minute."""

from __future__ import annotations

import math
import numbers
import operator
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from emmental.architectures import longest_input
from emmental.data.tokenization import check_token_ids
from emmental.errors import UserError
from emmental.modules.binarizer import count_kept
from emmental.modules.score_head import classifier_of
from emmental.pretrained import require_finite_weights
from emmental.shrinking import require_plain_linears
from emmental.structured.gates import encoder_weights
from emmental.structured.rungs import CLIFF, prune_carefully, prune_in_rungs
from emmental.structured.selection import Budget, weight_budget
from emmental.structured.speed import measure_speed, settled_price, speed_budget
from emmental.structured.texts import Text, check_rows, material
from emmental.tasks.classes import model_classes, refuse_several_labels
from emmental.tasks.task import listed


def prune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[Text],
    labels: Iterable[int | float | str] | None = None,
    *,
    keep: float | None = None,
    speedup: float | None = None,
    max_length: int = 128,
    batch_size: int = 32,
    refit: bool = True,
    accept_unknown_tokens: bool = False,
) -> PreTrainedModel:
    """Cut attention heads and feed-forward neurons out of a fine-tuned classifier, without training.

    Args:
        model: a sequence classifier of a known encoder type; it stays as it is.
        tokenizer: the model's own.
        texts: strings or pairs of strings, a list or an iterator, of the kind that the model will read. About 2,000
            are best; at most 4,096 are read.
        labels: class ids or names, or scores, of the texts. Without them, the model's own answers are used.
        keep: share of the encoder's matrix weights that stays, above 0 and up to 1.
        speedup: instead of `keep`: how many times as fast as `model` the result must be, for one text of
            `max_length` tokens in PyTorch, measured on this machine.
        max_length: tokens beyond which a text is cut; at most the model's positions.
        batch_size: texts that go through the model at once.
        refit: fit the remaining weights to make up for those that were cut.
        accept_unknown_tokens: go on although the tokenizer does not know more than half of the tokens of the texts.

    Returns:
        The small model, in evaluation mode.

    Warns:
        UserWarning: more than 5 % of the answers to held-out texts differ from those of `model`; many texts are equal;
            the tokenizer does not know many of the tokens.

    Raises:
        UserError: an argument is not accepted. The message names it.
        UnknownArchitectureError: the type of the encoder is not known.
    """
    _check_numbers(keep, speedup, max_length, batch_size)
    _check_classifier(model)
    _check_tokenizer(tokenizer)
    require_finite_weights(model, "model")
    check_token_ids(tokenizer, model.config, "tokenizer", "model")
    if keep is not None and count_kept(keep, whole := encoder_weights(model)) < 1:
        raise UserError(f"keep {keep:g} is less than one of the {whole:,} encoder weights")
    max_length = min(max_length, longest_input(model.config))
    known = None if labels is None else _known(model, labels)
    rows = material(tokenizer, texts, known, max_length, batch_size, accept_unknown_tokens)
    if speedup is None:
        budget = weight_budget(model, keep)
    else:
        budget = _speed(model, speedup, min(max_length, tokenizer.model_max_length))
    with torch.random.fork_rng(devices=()), torch.enable_grad():
        in_rungs = partial(prune_in_rungs, model, rows, budget, refitted=refit)
        found = prune_carefully(in_rungs) if refit else in_rungs()
    if found.agreement.changed > CLIFF:
        warnings.warn(
            f"{100 * found.agreement.changed:.1f} % of the answers to held-out texts differ from the whole model's: "
            "keep more of it, give more texts, or train the small model",
            stacklevel=2,
        )
    return found.model.eval()


def _speed(model: PreTrainedModel, speedup: float, length: int) -> Budget:
    budget = speed_budget(measure_speed(model, length=length), model, speedup)
    return replace(budget, settle=partial(settled_price, budget, model, speedup, shape=(1, length)))


def _known(model: PreTrainedModel, labels: Iterable[Any]) -> Iterator[int | float]:
    """Class ids, from ids or names; or the scores of a regression."""
    check_rows("labels", labels)
    names = model_classes(model.config, "model")
    for row, label in enumerate(labels):
        if len(names) == 1:
            if not isinstance(label, numbers.Real | Tensor) or not math.isfinite(label):
                raise UserError(f"labels: score {row} is {label!r}; a finite number is accepted")
            yield float(label)
        elif isinstance(label, str) and label in names:
            yield names.index(label)
        else:
            try:
                number = operator.index(label)
            except TypeError:
                number = -1
            if not 0 <= number < len(names):
                raise UserError(
                    f"labels: label {row} is {label!r}; a number from 0 to {len(names) - 1}, or a name, is accepted: "
                    f"{listed(names)}"
                )
            yield number


def _check_numbers(keep: Any, speedup: Any, max_length: Any, batch_size: Any) -> None:
    if (keep is None) == (speedup is None):
        raise UserError("give either keep or speedup")
    name, value = ("keep", keep) if speedup is None else ("speedup", speedup)
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise UserError(f"{name} accepts a number, not {value!r:.60}")
    if keep is not None and not 0.0 < keep <= 1.0:
        raise UserError(f"keep accepts a share of weights above 0 and up to 1, not {keep}")
    for name, value in (("max_length", max_length), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
            raise UserError(f"{name} accepts whole numbers from 1, not {value!r:.60}")


def _check_tokenizer(tokenizer: Any) -> None:
    if not callable(tokenizer) or not hasattr(tokenizer, "pad_token_id"):
        raise UserError(f"tokenizer accepts the model's tokenizer of Transformers, not {tokenizer!r:.60}")
    if tokenizer.pad_token_id is None:
        raise UserError("tokenizer has no padding token: set tokenizer.pad_token")


def _check_classifier(model: PreTrainedModel) -> None:
    if not type(model).__name__.endswith("ForSequenceClassification"):
        raise UserError(f"model accepts a sequence classifier, not a {type(model).__name__}")
    refuse_several_labels(model.config, "model")
    require_plain_linears(model)
    if torch.is_inference_mode_enabled() or any(each.is_inference() for each in model.parameters()):
        raise UserError("model needs gradients: load it, and call prune, outside torch.inference_mode()")
    bias = classifier_of(model).bias
    if bias is not None and not bias.any():
        # Every type starts its classifier with a bias of exactly zero; the first update changes it.
        raise UserError("model has a classifier that was never trained: fine-tune it first")
