"""Tiny models of every type to shrink, and what they answer."""

from __future__ import annotations

import tiny_models
import torch
from torch import nn

from emmental.architectures import ARCHITECTURES

HEADS, NEURONS = 4, 12
UNEVEN = [([2, 0], [1, 5, 7]), ([], [3]), ([3], [])]


def dense(model_type: str, seed: int = 0, **options: object) -> nn.Module:
    """Three layers of four heads and twelve neurons; biases are not zero, so that closed gates show."""
    sizes = {"num_hidden_layers": 3, "num_attention_heads": HEADS, "num_labels": 3}
    sizes[ARCHITECTURES[model_type].neurons] = NEURONS
    if model_type == "albert":
        sizes["num_hidden_groups"] = 3
    if model_type == "modernbert":
        sizes["classifier_pooling"] = "cls"
    model = tiny_models.model(model_type, seed=seed, **{**sizes, **options})
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and "norm" not in name.lower():
            nn.init.normal_(parameter, std=0.3)
    return model


def batch(model: nn.Module, length: int = 11) -> dict[str, torch.Tensor]:
    """Three rows, the second padded."""
    ids = torch.randint(5, 20, (3, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, length // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def logits(model: nn.Module, length: int = 11, **options: object) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**batch(model, length), **options).logits
