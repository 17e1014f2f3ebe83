"""A new classifier of several labels begins at their shares."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tiny_models
import torch

from emmental.modules.label_shares import start_at_shares
from emmental.modules.output_linear import output_linear


def test_the_bias_of_a_new_classifier_is_the_log_odds_of_the_labels() -> None:
    """Of three rows, a has 2.5 of 4, b 0.5 of 4, c 3.5 of 4; a row without known labels does not count."""
    model = tiny_models.with_head("several labels")
    linear = output_linear(model)
    trained = linear.bias.detach().clone()
    labels = np.array([[1, 0, 1], [1, 0, 1], [0, 0, 1], [np.nan] * 3], np.float32)
    start_at_shares(model, labels)
    assert torch.equal(linear.bias, trained)
    torch.nn.init.zeros_(linear.bias)
    start_at_shares(model, np.array([0, 1, 2]))  # one class a row
    assert not linear.bias.any()
    start_at_shares(model, labels)
    assert linear.bias.tolist() == pytest.approx([math.log(2.5 / 1.5), math.log(0.5 / 3.5), math.log(3.5 / 0.5)])
