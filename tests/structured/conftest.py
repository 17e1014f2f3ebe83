"""What the tests of structured pruning share: tiny models of every type."""

from __future__ import annotations

import pytest
import tiny_models
import torch
from transformers import PreTrainedModel


@pytest.fixture(params=tiny_models.MODEL_TYPES)
def model_type(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(model_type: str) -> PreTrainedModel:
    """Three classes; biases and LayerNorms are drawn too, so that nothing is zero or one by chance."""
    model = tiny_models.model(model_type, num_labels=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model
