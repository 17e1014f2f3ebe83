"""Reads what a finished model keeps, for pictures: masks, non-zeros of a plain model, or sizes of a small one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import logging

import emmental
from emmental.errors import UserError
from emmental.pictures.densities import separated
from emmental.pretrained import from_pretrained, require_encoder
from emmental.pruning import masks_of
from emmental.shrinking import layer_sizes
from emmental.small_models import neurons_name


def read_model_masks(folder: str | Path) -> tuple[dict[str, np.ndarray], int]:
    """Masks of a finished model, masked or bertarized, and its number of attention heads.

    A model without masks, such as `bertarize` writes, has exact zeros in the encoder's linear layers instead: they
    count as pruned.

    Returns:
        Module name -> (out, in) bool, and the number of heads.

    Raises:
        UserError: `folder` has no model of this kind.
    """
    model = _read(folder)
    masks = separated({name: mask.cpu().numpy() for name, mask in masks_of(model, zeros=True).items()})
    return masks, model.config.num_attention_heads


def read_structure(folder: str | Path) -> tuple[tuple[np.ndarray, int], np.ndarray, int]:
    """How many heads and neurons each layer of a model has, and how many there were before it became small.

    Returns:
        ((layers,) heads, heads before), (layers,) neurons, neurons before.

    Raises:
        UserError: `folder` has no model of a known encoder.
    """
    model = _read(folder)
    sizes = layer_sizes(model)
    heads, neurons = (np.array([getattr(size, kind) for size in sizes]) for kind in ("heads", "neurons"))
    return (heads, model.config.num_attention_heads), neurons, int(getattr(model.config, neurons_name(model.config)))


def _read(folder: str | Path) -> PreTrainedModel:
    if not (Path(folder) / "config.json").is_file():
        raise UserError(f"--model_name_or_path: {folder} has no config.json; it accepts a model's folder")
    emmental.register()
    logging.disable_progress_bar()
    try:
        config = from_pretrained(AutoConfig, folder, local_files_only=True)
        model = from_pretrained(
            AutoModelForSequenceClassification, folder, config=config, local_files_only=True, use_safetensors=True
        )
    except UserError as error:
        raise UserError(f"--model_name_or_path: {folder} holds no readable model: {error}") from error
    require_encoder(config, f"--model_name_or_path {folder}")
    return model.eval()
