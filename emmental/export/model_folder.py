"""Reads a model folder without trusting it: masked, plain or small, with any head."""

from __future__ import annotations

import inspect
import json
import logging
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

from emmental import atomic, small_models
from emmental.architectures import ARCHITECTURES, base_model_type
from emmental.errors import UserError
from emmental.masked_models import MaskedConfig, masked_class, unmasked_class
from emmental.methods import METHODS, canonical_pruning_method
from emmental.patching import set_threshold
from emmental.pretrained import check_folder, check_sizes, making, read_weights, renamed, renaming
from emmental.small_models import auto_classes

logger = logging.getLogger(__name__)

MOST_LABELS = 1 << 20
"""Most labels. A configuration makes a table of their names before its weights are checked."""
_OF_CALLS = ("return_dict", "output_attentions", "output_hidden_states")
"""Settings of what a call returns. The caller decides these, not the model."""


def read_model(
    folder: str | Path, pruning_method: str | None = None, threshold: float | None = None
) -> PreTrainedModel:
    """The model of a folder in evaluation mode, masked ones with the masks they predict with.

    Args:
        folder: a folder of the trainer, `bertarize` or Transformers, or an earlier masked BERT with pytorch_model.bin.
        pruning_method: replaces the method of a masked model's configuration.
        threshold: replaces its threshold, and removes a global top-k.

    Raises:
        UserError: no such folder, no known encoder, damaged or incomplete weights, NaN among them, a masked model
            without a threshold, or one outside what its method accepts; one line that names the file or the flag.
    """
    folder = Path(folder)
    check_folder(folder, f"--model_name_or_path {folder}")
    settings = read_settings(folder)
    if (folder / atomic.MANIFEST).is_file():
        atomic.verify_folder(folder)
    state = read_weights(folder)
    source, model_type = str(folder / "config.json"), settings["model_type"]
    masked = model_type.startswith("masked_")
    if not masked and (pruning_method is not None or threshold is not None):
        raise UserError(f"{folder} is not masked: --pruning_method and --threshold are for masked models")
    cls = class_of(model_type, settings.get("architectures"), source)
    given = {key: value for key, value in settings.items() if key != "model_type"}
    config = make_config(CONFIG_MAPPING[model_type], given, source)
    if masked:
        _override(config, pruning_method, threshold, folder)
        if not METHODS[config.pruning_method].has_scores:
            state = {key: value for key, value in state.items() if not key.endswith(".mask_scores")}
    model = build_model(cls, config, state, str(folder))
    if masked:
        set_threshold(model, config.threshold, config.global_boundary)
    return model


def build_model(cls: type[PreTrainedModel], config: PreTrainedConfig, state: dict[str, Tensor], source: str) -> Any:
    """A model in evaluation mode that holds exactly the tensors of `state`.

    A base model gets a pooler if `state` has one. Position numbers, which earlier models saved, are ignored.

    Raises:
        UserError: a tensor is missing, unexpected, of the wrong shape, or not finite; the message names `source`.
    """
    state = {key: value for key, value in state.items() if key.rpartition(".")[2] != "position_ids"}
    has_choice = "add_pooling_layer" in inspect.signature(small_models.plain_class(unmasked_class(cls))).parameters
    options = {"add_pooling_layer": any(key.startswith("pooler.") for key in state)} if has_choice else {}
    with making(source, "no model can be made from its configuration"), torch.device("meta"):
        expected = {key: value.shape for key, value in cls(config, **options).state_dict().items()}
    if lacking := expected.keys() - state.keys():
        rule = renaming(lacking, state.keys() - expected.keys(), cls.base_model_prefix)
        state = {renamed(key, rule): value for key, value in state.items()}
    for key in sorted({*expected, *state}):
        if key not in state or key not in expected:
            raise UserError(f"{source}: {key} is {'missing' if key in expected else 'not part of the model'}")
        if state[key].shape != expected[key]:
            raise UserError(f"{source}: {key} has shape {list(state[key].shape)}, not {list(expected[key])}")
        if not torch.isfinite(state[key]).all():
            raise UserError(f"{source}: {key} holds NaN or infinite numbers")
    return cls.from_pretrained(None, config=config, state_dict=state, dtype=torch.float32, **options).eval()


def make_config(cls: type[PreTrainedConfig], settings: dict[str, Any], source: str) -> Any:
    """A configuration from untrusted settings, without those that say what a call returns.

    Raises:
        UserError: the class refuses them, there are too many labels, or another program quantised the weights;
            the message names `source`.
    """
    labels = settings.get("num_labels")
    if labels is not None and not (type(labels) is int and 1 <= labels <= MOST_LABELS):
        raise UserError(f"{source}: num_labels accepts 1 to {MOST_LABELS}, not {labels!r}")
    if "quantization_config" in settings:
        raise UserError(f"{source}: quantization_config is not accepted; give a model with weights of 16 or 32 bits")
    with making(source):
        config = cls(**{key: value for key, value in settings.items() if key not in _OF_CALLS})
    check_sizes(config, source)
    return config


def read_settings(folder: str | Path) -> dict[str, Any]:
    """The config.json of an encoder of a known type, masked, plain or small.

    Raises:
        UserError: it is missing or unreadable, or of another model.
    """
    file = Path(folder) / "config.json"
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        check_folder(folder, f"--model_name_or_path {folder}")
        raise UserError(f"--model_name_or_path {folder} has no config.json; it accepts a model's folder") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is unreadable ({type(error).__name__})") from error
    model_type = settings.get("model_type") if isinstance(settings, dict) else None
    if not isinstance(model_type, str) or base_model_type(model_type) not in ARCHITECTURES:
        raise UserError(
            f"{file}: model_type must be one of {', '.join(ARCHITECTURES)}, or its masked_ or small_ form; to add an "
            "encoder, see emmental/architectures.py"
        )
    return settings


def class_of(model_type: str, architectures: object, source: str) -> type[PreTrainedModel]:
    """The class of a model: `masked_bert` with `["MaskedBertModel"]` or `["BertModel"]` -> `MaskedBertModel`.

    Raises:
        UserError: `architectures` names none, several, or one that is not a known head of the type.
    """
    inner = model_type.removeprefix("masked_")
    classes = {cls.__name__: cls for cls in auto_classes(inner).values()}
    name = architectures[0] if isinstance(architectures, list) and len(architectures) == 1 else None
    found = classes.get(name.removeprefix("Masked")) if isinstance(name, str) else None
    if found is None:
        raise UserError(f"{source}: architectures must hold one of {', '.join(classes)}")
    return found if inner == model_type else masked_class(found)


def _override(config: MaskedConfig, name: str | None, threshold: float | None, folder: Path) -> None:
    """Set method and threshold in `config`, or refuse them."""
    name = config.pruning_method if name is None else canonical_pruning_method(name)
    if name != config.pruning_method or threshold is not None:
        config.threshold, config.global_boundary = threshold, None
    config.pruning_method, method = name, METHODS[name]
    if not method.has_threshold:
        if threshold is not None:
            raise UserError(f"--threshold is not for {name}, which prunes by its gates; omit it")
    elif config.global_boundary is None:
        value, (lowest, highest) = config.threshold, method.threshold_limits
        if value is None:
            raise UserError(f"{folder} records no threshold for {name}: give --threshold, {method.threshold_accepts}")
        if not math.isfinite(value) or not lowest <= value <= highest:
            raise UserError(f"--threshold for {name} accepts {method.threshold_accepts}, not {value:g}")
