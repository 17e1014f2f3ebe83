"""Whether a model is fine-tuned already, so that the dense training can be left out."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from emmental.training.phases.dense import is_fine_tuned


class Knowing(nn.Module):
    """Answers class `i` to a text whose first token is `i`; with `wrong`, the other one."""

    def __init__(self, wrong: bool = False, bias: float = 1.0) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_labels=2, model_type="bert", type_vocab_size=2, problem_type=None)
        self.base_model, self.wrong = nn.Identity(), wrong
        self.classifier = nn.Linear(2, 2)
        nn.init.constant_(self.classifier.bias, bias)

    def forward(self, input_ids: torch.Tensor, **others: torch.Tensor) -> SimpleNamespace:
        answers = input_ids[:, 0] ^ int(self.wrong)
        return SimpleNamespace(logits=torch.nn.functional.one_hot(answers, 2).float())


class Sorted:
    """600 rows, sorted by class."""

    labels = np.repeat([0, 1], 300)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        ids = torch.as_tensor(self.labels[rows])[:, None]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}


@pytest.mark.parametrize(("model", "expected"), [(Knowing(), True), (Knowing(wrong=True), False)])
def test_rows_are_spread_over_a_sorted_file(model, expected):
    """The first 200 rows are one class: there nothing beats the majority class."""
    assert is_fine_tuned(model, Sorted()) is expected


def test_a_classifier_whose_bias_is_zero_was_never_trained():
    assert not is_fine_tuned(Knowing(bias=0.0), Sorted())
