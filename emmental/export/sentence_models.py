"""Models of sentence-transformers: what is around the encoder, in memory and in a folder. The package is not needed.

`modules.json` in a folder lists the parts: the encoder, a pooling, and for some models a linear layer and a scaling to
length 1. Classes that it names are known by their last word; nothing is imported from a name in a file.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from emmental import atomic
from emmental.errors import UserError
from emmental.task_heads import Pool, first_token, mean_of_tokens

MODULES, SETTINGS, LENGTHS = "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"
_KINDS = ("CrossEncoder", "SentenceTransformer")
_ENCODER, _IGNORED = "Transformer", ("Dropout", "Normalize")
"""Embeddings are compared by their cosine, so it does not matter whether they are scaled to length 1."""
_ACTIVATIONS = {"Identity": nn.Identity, "Tanh": nn.Tanh}


def max_of_tokens(hidden: Tensor, mask: Tensor) -> Tensor:
    """The largest value of the hidden states (B, T, H) over the attended tokens, (B, H)."""
    return hidden.masked_fill(mask.unsqueeze(-1) == 0, -torch.inf).amax(1)


_POOLINGS: dict[str, Pool] = {
    "mean": mean_of_tokens,
    "mean_tokens": mean_of_tokens,
    "mean_sqrt_len_tokens": mean_of_tokens,
    "cls": first_token,
    "cls_token": first_token,
    "max": max_of_tokens,
    "max_tokens": max_of_tokens,
}
"""Name of a pooling in `config.json`, of this and of earlier versions -> its function."""


@dataclass(frozen=True)
class Surroundings:
    """What is around the encoder of a model.

    Attributes:
        encoder: folder of the encoder; None for a model in memory.
        pool: hidden states -> embedding; None for a model with a head of its own.
        first_token_only: only the first token is read.
        max_length: tokens that texts are cut to; None if nobody says it.
        parts: name -> folder of the parts behind the encoder, in order.
        cross_encoder: it is a `CrossEncoder`, which ranks or classifies pairs.
    """

    encoder: Path | None = None
    pool: Pool | None = None
    first_token_only: bool = False
    max_length: int | None = None
    parts: dict[str, Path] = field(default_factory=dict)
    cross_encoder: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """Options of the task head."""
        return {} if self.pool is None else {"pool": self.pool, "first_token_only": self.first_token_only}


def is_sentence_model(model: object) -> bool:
    """Whether an object is a `CrossEncoder` or a `SentenceTransformer`."""
    classes = type(model).__mro__
    return any(cls.__name__ in _KINDS and cls.__module__.startswith("sentence_transformers") for cls in classes)


def parts_of(model: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Surroundings]:
    """Encoder, tokenizer and surroundings of a `CrossEncoder` or a `SentenceTransformer` in memory.

    Raises:
        UserError: it has no encoder of Transformers, or a pooling that is not known.
    """
    found = model.model if isinstance(getattr(model, "model", None), PreTrainedModel) else None
    if found is None and isinstance(model, nn.Module):
        found = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    if found is None:
        raise UserError(f"model accepts a {type(model).__name__} with an encoder of Transformers; this one has none")
    longest = getattr(model, "max_seq_length", None) or getattr(model, "max_length", None)
    if "CrossEncoder" in (cls.__name__ for cls in type(model).__mro__):
        return found, model.tokenizer, Surroundings(max_length=longest)
    behind = list(model)[1:]
    pooling = next((part for part in behind if type(part).__name__ == "Pooling"), None)
    if pooling is None:
        raise UserError("model is a SentenceTransformer without a pooling; one with a pooling is accepted")
    mode, _ = _pooling(pooling.get_config_dict(), "model")

    def pool(hidden: Tensor, mask: Tensor) -> Tensor:
        features = {"token_embeddings": hidden, "attention_mask": mask}
        for part in behind:
            features = part(features)
        return features["sentence_embedding"]

    return found, model.tokenizer, Surroundings(None, pool, mode is first_token, longest)


def with_parts(model: Any, pairs: Sequence[tuple[Any, Any]]) -> Any:
    """A copy of a `CrossEncoder` or `SentenceTransformer`, with the second of each pair in the place of the first."""
    return copy.deepcopy(model, {id(old): new for old, new in pairs})


def read_surroundings(folder: Path) -> Surroundings:
    """What is around the encoder in a folder; a folder that sentence-transformers did not write has nothing.

    Raises:
        UserError: a file is damaged, or names a part that is not known.
    """
    listed, crosses = _read(folder / MODULES), _is_cross_encoder(folder)
    if listed is None:
        return Surroundings(folder, max_length=_longest(folder), cross_encoder=crosses)
    try:
        parts = {Path(each["path"]).name: (each["type"].rpartition(".")[2], each["path"]) for each in listed}
        places = [(kind, folder / path) for kind, path in parts.values()]
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{folder / MODULES} is damaged: a list of parts with type and path is expected") from error
    if not places or places[0][0] != _ENCODER:
        raise UserError(f"{folder / MODULES} begins with {places[0][0] if places else 'nothing'}, not with an encoder")
    for _, place in places:
        if not place.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{folder / MODULES} names a part outside of the folder")
    encoder, behind = places[0][1], places[1:]
    named = {place.name: place for _, place in behind}
    if not behind:
        return Surroundings(encoder, max_length=_longest(encoder), cross_encoder=crosses)
    pool, only_first = _pool_of(behind)
    return Surroundings(encoder, pool, only_first, _longest(encoder), named)


def tag_of(around: Surroundings, model: nn.Module) -> str | None:
    """The tag on the Hub of a model of sentence-transformers; None for another one."""
    if around.parts:
        return "feature-extraction"
    return "text-ranking" if around.cross_encoder and model.config.num_labels == 1 else None


def copy_surroundings(folder: Path, found: Surroundings, target: Path) -> None:
    """Write what sentence-transformers reads beside an encoder into `target`, where the encoder is at the top."""
    listed = _read(folder / MODULES)
    if listed is not None:
        for each in listed:
            each["path"] = "" if each["type"].rpartition(".")[2] == _ENCODER else Path(each["path"]).name
        atomic.write_json(target / MODULES, listed)
    for source in (folder / SETTINGS, (found.encoder or folder) / LENGTHS):
        if source.is_file():
            shutil.copyfile(source, target / source.name)
    for name, place in found.parts.items():
        (target / name).mkdir(exist_ok=True)
        for file in sorted(place.iterdir()) if place.is_dir() else ():
            if file.suffix in (".json", ".safetensors") and file.is_file():
                shutil.copyfile(file, target / name / file.name)


def _pool_of(behind: Sequence[tuple[str, Path]]) -> tuple[Pool, bool]:
    (kind, place), *others = behind
    if kind != "Pooling":
        raise UserError(f"{place}: a pooling is expected behind the encoder, not {kind}")
    mode, only_first = _pooling(_settings(place), str(place / "config.json"))
    linears = [_dense(place) for kind, place in others if _is_dense(kind, place)]

    def pool(hidden: Tensor, mask: Tensor) -> Tensor:
        embedding = mode(hidden, mask)
        for weight, bias, activation in linears:
            embedding = activation(functional.linear(embedding, weight.to(embedding), None if bias is None else bias))
        return embedding

    return pool, only_first


def _is_dense(kind: str, place: Path) -> bool:
    if kind not in ("Dense", *_IGNORED):
        raise UserError(f"{place} is a {kind}; Pooling, Dense, {', '.join(_IGNORED)} are accepted behind the encoder")
    return kind == "Dense"


def _dense(place: Path) -> tuple[Tensor, Tensor | None, nn.Module]:
    name = str(_settings(place).get("activation_function", "Identity")).rpartition(".")[2]
    if name not in _ACTIVATIONS:
        raise UserError(f"{place / 'config.json'}: activation {name} is not known; {', '.join(_ACTIVATIONS)} are")
    try:
        state = load_file(place / "model.safetensors")
        return state["linear.weight"].float(), state.get("linear.bias"), _ACTIVATIONS[name]()
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{place / 'model.safetensors'} is missing or damaged") from error


def _pooling(settings: Mapping[str, Any], called: str) -> tuple[Pool, bool]:
    """The pooling of its settings, and whether it reads only the first token."""
    modes = settings.get("pooling_mode")
    if modes is None:
        modes = [name.removeprefix("pooling_mode_") for name, on in settings.items() if _is_mode(name) and on is True]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise UserError(f"{called}: pooling {', '.join(map(str, modes)) or 'none'}; mean, cls or max is accepted")
    return _POOLINGS[modes[0]], _POOLINGS[modes[0]] is first_token


def _is_mode(name: str) -> bool:
    return name.startswith("pooling_mode_")


def _settings(place: Path) -> dict[str, Any]:
    found = _read(place / "config.json")
    if not isinstance(found, dict):
        raise UserError(f"{place / 'config.json'} is missing, or no object")
    return found


def _is_cross_encoder(folder: Path) -> bool:
    """By its settings, or in earlier versions by an entry in the encoder's configuration."""
    kind, config = _read(folder / SETTINGS), _read(folder / "config.json")
    named = isinstance(kind, dict) and kind.get("model_type") == "CrossEncoder"
    return named or (isinstance(config, dict) and "sentence_transformers" in config)


def _longest(folder: Path) -> int | None:
    found = _read(folder / LENGTHS)
    length = found.get("max_seq_length") if isinstance(found, dict) else None
    return length if type(length) is int and length > 0 else None


def _read(file: Path) -> Any:
    """What a file of JSON holds; None if there is no such file."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is damaged ({type(error).__name__})") from error
