"""Movement pruning of BERT: masked models, their training, and what comes out of it."""

from emmental.configuration_bert_masked import MaskedBertConfig
from emmental.modeling_bert_masked import (
    MaskedBertForMultipleChoice,
    MaskedBertForQuestionAnswering,
    MaskedBertForSequenceClassification,
    MaskedBertForTokenClassification,
    MaskedBertModel,
)

__version__ = "0.1.0"

__all__ = [
    "MaskedBertConfig",
    "MaskedBertForMultipleChoice",
    "MaskedBertForQuestionAnswering",
    "MaskedBertForSequenceClassification",
    "MaskedBertForTokenClassification",
    "MaskedBertModel",
]
