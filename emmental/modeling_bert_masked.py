"""Masked BERT: Transformers' own BERT classes with the encoder's linear layers masked."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    BertPreTrainedModel,
)
from transformers.models.bert.modeling_bert import BertEmbeddings

from emmental.configuration_bert_masked import MaskedBertConfig
from emmental.modules.masked_nn import MaskedLinear
from emmental.patching import mask_linears, set_threshold


def _with_threshold(forward: Callable[..., Any]) -> Callable[..., Any]:
    """`forward` with a keyword `threshold`: when given, it becomes the model's threshold before the call."""

    @functools.wraps(forward)
    def masked_forward(self: nn.Module, *args: Any, threshold: float | None = None, **kwargs: Any) -> Any:
        if threshold is not None:
            set_threshold(self, threshold)
        return forward(self, *args, **kwargs)

    signature = inspect.signature(forward)
    keyword = inspect.Parameter("threshold", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=float | None)
    named, rest = [], []
    for parameter in signature.parameters.values():
        (rest if parameter.kind is inspect.Parameter.VAR_KEYWORD else named).append(parameter)
    masked_forward.__signature__ = signature.replace(parameters=[*named, keyword, *rest])
    return masked_forward


class MaskedBertPreTrainedModel(BertPreTrainedModel):
    """What every masked BERT has: scores that start as asked where no checkpoint gives them, and frozen embeddings."""

    config: MaskedBertConfig
    config_class = MaskedBertConfig
    _keys_to_ignore_on_load_missing = (r"mask_scores$",)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MaskedLinear):
            module.reset_mask_scores()
        elif isinstance(module, BertEmbeddings):
            module.requires_grad_(False)


class MaskedBertModel(MaskedBertPreTrainedModel, BertModel):
    """`BertModel` with every linear layer of the encoder masked; `forward` takes `threshold` besides.

    Embeddings do not train; the pooler trains unmasked.
    """

    def __init__(self, config: MaskedBertConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config, add_pooling_layer=add_pooling_layer)
        mask_linears(
            self.encoder,
            pruning_method=config.pruning_method,
            mask_init=config.mask_init,
            mask_scale=config.mask_scale,
        )
        set_threshold(self, config.threshold, config.global_boundary)
        self.post_init()

    forward = _with_threshold(BertModel.forward)


class _MaskedBertWithHead(MaskedBertPreTrainedModel):
    """A BERT class with a head, its `bert` replaced by a `MaskedBertModel`; the head trains unmasked."""

    def __init__(self, config: MaskedBertConfig) -> None:
        super().__init__(config)
        # Transformers starts missing weights through the nearest PreTrainedModel above them: a plain BertModel there
        # would leave mask scores as uninitialised memory.
        self.bert = MaskedBertModel(config, add_pooling_layer=self.bert.pooler is not None)
        self.post_init()


class MaskedBertForSequenceClassification(_MaskedBertWithHead, BertForSequenceClassification):
    """`BertForSequenceClassification` with a masked encoder; `forward` takes `threshold` too."""

    forward = _with_threshold(BertForSequenceClassification.forward)


class MaskedBertForMultipleChoice(_MaskedBertWithHead, BertForMultipleChoice):
    """`BertForMultipleChoice` with a masked encoder; `forward` takes `threshold` too."""

    forward = _with_threshold(BertForMultipleChoice.forward)


class MaskedBertForQuestionAnswering(_MaskedBertWithHead, BertForQuestionAnswering):
    """`BertForQuestionAnswering` with a masked encoder; `forward` takes `threshold` too."""

    forward = _with_threshold(BertForQuestionAnswering.forward)


class MaskedBertForTokenClassification(_MaskedBertWithHead, BertForTokenClassification):
    """`BertForTokenClassification` with a masked encoder; `forward` takes `threshold` too."""

    forward = _with_threshold(BertForTokenClassification.forward)


def _register_with_auto_classes() -> None:
    AutoConfig.register(MaskedBertConfig.model_type, MaskedBertConfig, exist_ok=True)
    for auto, model in (
        (AutoModel, MaskedBertModel),
        (AutoModelForSequenceClassification, MaskedBertForSequenceClassification),
        (AutoModelForMultipleChoice, MaskedBertForMultipleChoice),
        (AutoModelForQuestionAnswering, MaskedBertForQuestionAnswering),
        (AutoModelForTokenClassification, MaskedBertForTokenClassification),
    ):
        auto.register(MaskedBertConfig, model, exist_ok=True)


_register_with_auto_classes()
