"""Models, configurations and tokenizers that others made, loaded without trusting them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig

from emmental.atomic import verify_if_listed
from emmental.errors import UserError

MOST_LAYERS = 1000
MOST_WEIGHTS = 1 << 31
"""Of one matrix; the largest of BERT-large has 3.1e7."""
_NOT_MODELS = (AutoConfig, AutoTokenizer, PreTrainedConfig)


def from_pretrained(loader: Any, name: str, *, flag: str = "", **options: Any) -> Any:
    """`loader.from_pretrained(name, **options)`, which never runs code that lies beside a model, nor asks to.

    Models come in float32, whatever they are stored in: weights of 16 bits lose the small steps of a training. A
    folder that this program made is compared with its manifest before its weights are read.

    Args:
        loader: a class of Transformers, one of the Auto classes or another.
        name: folder or Hub name.
        flag: the one that gave the name, for messages.
        options: as the loader takes them.

    Raises:
        UserError: it cannot be loaded, is damaged, wants code of its own to run, or is a configuration as
            `check_sizes` refuses.
        UserError: it cannot be found.
    """
    called = f"{flag} {name}".strip()
    with loading(called):
        of_model = not issubclass(loader, _NOT_MODELS)
        if of_model:
            verify_if_listed(name)
        dtype = {"dtype": torch.float32} if of_model else {}
        loaded = loader.from_pretrained(name, trust_remote_code=False, **dtype, **options)
    if isinstance(loaded, PreTrainedConfig):
        check_sizes(loaded, called)
    return loaded


@contextmanager
def loading(name: object) -> Iterator[None]:
    """Around whatever reads what someone else wrote: every failure names it; all but an OSError are ValueErrors."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{name} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    except SafetensorError as error:
        raise UserError(f"{name}: a .safetensors file is damaged: {error}") from error
    except Exception as error:  # a library meets what it did not expect in many ways
        message = " ".join(str(error).split())
        if "trust_remote_code" in message:
            message = "it brings code of its own, which is never run here"
        raise UserError(f"{name} cannot be loaded: {message[:300] or type(error).__name__}") from error


def weights_fingerprint(model: nn.Module) -> str:
    """SHA-256 over the names and bytes of all weights of a model."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(bytes_of(value))
    return digest.hexdigest()


def bytes_of(value: Tensor) -> memoryview:
    """The bytes of a tensor of any type, also of those that NumPy does not know."""
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def check_sizes(config: PreTrainedConfig, name: object) -> None:
    """Refuse a configuration whose model no machine holds, before anything of its size is made.

    Raises:
        UserError: sizes are no numbers, below 1, or absurd; `name` says of what.
    """
    matrices = ("hidden_size", "vocab_size", "intermediate_size", "max_position_embeddings")
    sizes = {
        key: value
        for key in ("num_hidden_layers", "num_attention_heads", *matrices)
        if (value := getattr(config, key, None)) is not None
    }
    for key, value in sizes.items():
        if type(value) is not int or value < 1:
            raise UserError(f"{name}: {key} accepts whole numbers from 1, not {value!r}")
    if sizes.get("num_hidden_layers", 0) > MOST_LAYERS:
        raise UserError(f"{name}: {sizes['num_hidden_layers']} layers; up to {MOST_LAYERS} are accepted")
    hidden = sizes.get("hidden_size", 1)
    for key in matrices:
        if sizes.get(key, 1) * hidden > MOST_WEIGHTS:
            raise UserError(f"{name}: {key} {sizes[key]} by hidden_size {hidden}: no such matrix can be made")
