"""Loads models, configurations and tokenizers, and never runs code from their folders."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import logging
import os
import re
import traceback
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from os.path import isfile  # False, too, for names that no file can have
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from emmental.architectures import ARCHITECTURES, UnknownArchitectureError, architecture_of
from emmental.atomic import verify_if_listed
from emmental.errors import UserError, names_near

logger = logging.getLogger(__name__)

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""Files that may hold a folder's weights, in this order. Each may be in parts that `<name>.index.json` lists."""
_LFS, _LFS_SIZE = b"version https://git-lfs.github.com/spec/", 1024
MOST_LAYERS = 1000
MOST_WEIGHTS = 1 << 31
"""Most weights of one matrix. The largest matrix of BERT-large has 3.1e7."""
_WRAPPER = r"(?:(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+"
_WRAPPERS = {f"^{_WRAPPER}": "", rf"(?<=\.){_WRAPPER}": ""}
"""What DataParallel, torch.compile and sharded training put into the names of weights that are saved from inside."""
_NOT_MODELS = (AutoConfig, AutoTokenizer, PreTrainedConfig)


def from_pretrained(loader: Any, name: str, *, flag: str = "", **options: Any) -> Any:
    """`loader.from_pretrained(name, **options)`. It never runs code from the model's folder.

    Models are loaded in float32, because 16-bit weights lose the small steps of training. A folder that this program
    made is compared with its manifest before its weights are read. What wrappers of models put before the names of
    weights, such as `module.`, is taken off.

    Args:
        loader: a class of Transformers, one of the Auto classes or another.
        name: folder or Hub name.
        flag: the flag that gave the name, for messages.
        options: those of the loader.

    Raises:
        UserError: it cannot be found or loaded, is damaged, needs code of its own, `check_sizes` refuses its
            configuration, weights of its encoder are missing, its files have more layers than its configuration,
            or a weight is not finite.
    """
    called = f"{flag} {name}".strip()
    check_folder(name, called)
    if not issubclass(loader, _NOT_MODELS):
        return _model_from(loader, name, called, **options)
    with loading(called):
        loaded = loader.from_pretrained(name, trust_remote_code=False, **options)
    if isinstance(loaded, PreTrainedConfig):
        check_sizes(loaded, called)
    return loaded


def _model_from(loader: Any, name: str, called: str, output_loading_info: bool = False, **options: Any) -> Any:
    options |= {"trust_remote_code": False, "dtype": torch.float32, "output_loading_info": True}
    with loading(called):
        verify_if_listed(name)
        model, info = loader.from_pretrained(name, **options)
        lacking = _encoder_weights(model, info["missing_keys"])
        names = renaming(lacking, info["unexpected_keys"], model.base_model_prefix) if lacking else {}
        if names:
            logger.info("%s: the names of its weights begin with those of a wrapper, which are taken off", called)
            model, info = loader.from_pretrained(name, key_mapping=names, **options)
            lacking = _encoder_weights(model, info["missing_keys"])
    if lacking:
        raise UserError(f"{called}: {_what_is_lacking(model, lacking, info['unexpected_keys'])}")
    _check_unused(model, info["unexpected_keys"], called)
    require_finite_weights(model, called)
    model.config.return_dict = True  # a folder saved for TorchScript answers with tuples
    return (model, info) if output_loading_info else model


def renaming(lacking: Collection[str], found: Iterable[str], base: str = "") -> dict[str, str]:
    """How names of weights in a file become those of the model, if one rule explains all that are lacking.

    Args:
        lacking: names that the model has and the file has not.
        found: names that the file has and the model has not.
        base: name of the model's encoder, as in `bert.embeddings`; wrappers may have another one.

    Returns:
        Regular expressions and what stands in their place, for `renamed`; empty if there is no such rule.
    """
    found, one = sorted(found), min(lacking)
    inner = one.removeprefix(f"{base}.")
    rules = [_WRAPPERS]
    for name in found:
        for end, new in ((one, ""), (inner, f"{base}." if base else "")):
            start = name.removesuffix(end)
            if name.endswith(end) and start.endswith("."):
                rules.append({f"^{re.escape(start)}": new})
    return next((rule for rule in rules if set(lacking) <= {renamed(name, rule) for name in found}), {})


def renamed(name: str, rule: dict[str, str]) -> str:
    """The name of a weight after a rule of `renaming`."""
    for pattern, new in rule.items():
        name = re.sub(pattern, new, name)
    return name


def _encoder_weights(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Those of the names that are weights of the encoder. A pooler counts as part of the head."""
    base, own = model.base_model, dict(model.named_parameters(remove_duplicate=False))
    body = "" if base is model else f"{model.base_model_prefix}."
    inside = (name for name in names if name in own and name.startswith(body))
    return sorted(name for name in inside if not name.removeprefix(body).startswith("pooler."))


def _what_is_lacking(model: nn.Module, lacking: list[str], found: Iterable[str]) -> str:
    whole, found = len(_encoder_weights(model, dict(model.named_parameters()))), sorted(found)
    shown = ", ".join([*lacking[:2], *lacking[-1:]][: len(lacking)])
    columns = zip(*(name.split(".") for name in found), strict=False)
    start = "".join(f"{column[0]}." for column in itertools.takewhile(lambda column: len({*column}) == 1, columns))
    other = f"its files have names such as {found[0]}" if found else "its files have no others in their place"
    begin = f", all beginning with {start!r}" if start and len(found) > 1 else ""
    return (
        f"{len(lacking)} of the {whole} weights of its encoder are not in its files ({shown}); {other}{begin}. "
        "Only a classifier may start at random: save the model again by its own save_pretrained"
    )


def _check_unused(model: nn.Module, found: Iterable[str], called: str) -> None:
    """Refuse files with layers that the model has not, and say which other weights of an encoder are not used.

    Args:
        model: as its configuration says.
        found: names in its files that it has not.
        called: the model's name in messages.
    """
    base, prefix = model.base_model, f"{model.base_model_prefix}."
    parts = {name for name, _ in base.named_children()} - {"pooler"}
    inside = {name: name.removeprefix(prefix) for name in found}
    unused = sorted(name for name, inner in inside.items() if inner.partition(".")[0] in parts and not _is_made(name))
    if not unused:
        return
    own = {_any_layer(name) for name in base.state_dict()}
    lost = [name for name in unused if _any_layer(inside[name]) in own]
    shown = f"{', '.join((lost or unused)[:2])}{', ...' if len(lost or unused) > 2 else ''}"
    if lost:
        raise UserError(
            f"{called}: its files have layers that its configuration lacks ({shown}; num_hidden_layers is "
            f"{model.config.num_hidden_layers}): correct config.json, or save the model again"
        )
    logger.warning(
        "%s: its files have weights that its encoder does not use (%d, such as %s)", called, len(unused), shown
    )


def _is_made(name: str) -> bool:
    """Whether a name is of numbers that models make themselves, and that earlier versions saved."""
    return name.rpartition(".")[2] in ("position_ids", "token_type_ids", "inv_freq")


def _any_layer(name: str) -> str:
    return re.sub(r"\.\d+(?=\.)", ".N", name)


def require_finite_weights(model: nn.Module, called: str) -> None:
    """Refuse a model with a weight that is NaN or infinite.

    Raises:
        UserError: it names the tensor and `called`, the model's name in messages.
    """
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(f"{called}: {name} holds NaN or infinite numbers")


@contextmanager
def loading(name: object) -> Iterator[None]:
    """Wraps the reading of a user's files. A failure becomes a `UserError` that names them.

    What this package's own code raises, other than a `ValueError`, is a bug and passes through.
    """
    try:
        yield
    except OSError as error:
        _refuse_lfs_pointers(name)
        message, given = " ".join(str(error).split())[:300], str(name).rpartition(" ")[2]
        if not Path(given).exists():
            near = names_near(given)
            message = f"there is no such folder{f' ({near})' if near else ''}; tried as a Hub name: {message}"
        raise UserError(f"{name} cannot be loaded: {message}") from error
    except SafetensorError as error:
        _refuse_lfs_pointers(name)
        raise UserError(f"{name}: a .safetensors file is damaged: {error}") from error
    except Exception as error:  # libraries fail on unexpected files with many types
        raise_if_ours(error)
        message = " ".join(str(error).split())
        if "trust_remote_code" in message:
            message = "it needs code of its own, which this program never runs"
        _refuse_lfs_pointers(name)
        raise UserError(f"{name} cannot be loaded: {message[:300] or type(error).__name__}") from error


def _refuse_lfs_pointers(called: object) -> None:
    """Refuse a folder in which Git has left pointers to large files in their place."""
    for file in sorted(Path(str(called).rpartition(" ")[2]).glob("*")):
        if file.is_file() and file.stat().st_size < _LFS_SIZE and file.read_bytes().startswith(_LFS):
            raise UserError(f"{called}: {file.name} is a Git LFS pointer, not the file itself; run `git lfs pull`")


@contextmanager
def making(source: str, failure: str = "") -> Iterator[None]:
    """Wraps what Transformers makes of a user's settings. A failure becomes a `UserError` that names their source.

    What this package's own code raises, other than a `ValueError`, is a bug and passes through.
    """
    try:
        yield
    except Exception as error:  # a bad configuration fails with many types
        raise_if_ours(error)
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{source}: {failure} ({reason})" if failure else f"{source}: {reason}") from error


def raise_if_ours(error: Exception) -> None:
    """Raise an error again that is no `ValueError`, if a line of this package raised it or called the built-in."""
    *_, (last, _) = traceback.walk_tb(error.__traceback__)
    if not isinstance(error, ValueError) and Path(last.f_code.co_filename).is_relative_to(Path(__file__).parent):
        raise error


def check_folder(name: str | os.PathLike[str], called: str) -> None:
    """Refuse a path that is not a folder, and a folder that holds an adapter instead of a model.

    Raises:
        UserError: it names folders with similar names, or says what to do with the adapter.
    """
    name = os.fspath(name)
    folder = Path(name)
    if not folder.exists() and (folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1):
        near = names_near(name)
        raise UserError(f"{called}: there is no such folder" + (f"; {near}" if near else ""))
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{called} is an adapter of PEFT, not a model: merge it with its model first "
            "(PeftModel.from_pretrained(...).merge_and_unload().save_pretrained(FOLDER)) and give that folder"
        )
    if folder.is_dir() and not any(folder.glob("*.safetensors")) and any(folder.glob("pytorch_model*.bin")):
        _say_that_pickles_are_read(str(folder.resolve()))


@functools.cache
def _say_that_pickles_are_read(folder: str) -> None:
    logger.warning(
        "%s has no .safetensors file: its pytorch_model.bin is read by PyTorch's weights-only reader, which runs no "
        "code in it",
        folder,
    )


def has_weights(folder: str | Path) -> bool:
    """Whether the folder has weights, in one file or in parts."""
    return any((Path(folder) / f"{name}{end}").is_file() for name in WEIGHT_FILES for end in ("", ".index.json"))


def weight_files(folder: str | Path) -> list[Path]:
    """The files that hold a folder's weights: one, or all parts in the order of their names.

    Raises:
        UserError: there are none, or the list of the parts is damaged.
    """
    folder = Path(folder)
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            try:
                parts = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise UserError(f"{index} is unreadable ({type(error).__name__})") from error
            if not parts:
                raise UserError(f"{index} lists no weights")
            for part in parts:
                if not isinstance(part, str) or Path(part).name != part or not isfile(folder / part):
                    raise UserError(f"{index} lists {part!r}, which is not a file beside it")
            return [folder / part for part in parts]
    raise UserError(f"{folder} has no weights: neither {' nor '.join(WEIGHT_FILES)}")


def read_weights(folder: str | Path) -> dict[str, Tensor]:
    """Name -> tensor of a folder's weights, on the CPU. Old names of LayerNorms (gamma, beta) become weight and bias.

    Raises:
        UserError: there are none, or a file is damaged or holds something other than named tensors.
    """
    weights: dict[str, Tensor] = {}
    for file in weight_files(folder):
        try:
            if file.suffix == ".safetensors":
                state = load_file(file)
            else:
                state = torch.load(file, map_location="cpu", weights_only=True)
        except (SafetensorError, OSError) as error:
            _refuse_lfs_pointers(folder)
            raise UserError(f"{file} is damaged: {error}") from error
        except Exception as error:  # torch.load answers damage and forbidden content with many types
            raise UserError(f"{file} is damaged, or holds more than tensors ({type(error).__name__})") from error
        if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
            raise UserError(f"{file} holds something other than named tensors")
        weights |= state
    new_names = {".gamma": ".weight", ".beta": ".bias"}
    return {
        key.removesuffix(old) + new_names[old] if (old := f".{key.rpartition('.')[2]}") in new_names else key: value
        for key, value in weights.items()
    }


def require_encoder(config: PreTrainedConfig, called: str) -> None:
    """Refuse a model that is not an encoder of a known type.

    Args:
        config: of the model.
        called: what messages call it: flag and name.

    Raises:
        UserError: it is an encoder-decoder or a decoder, or `emmental/architectures.py` has no entry for it.
    """
    generates = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    generates &= config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if config.is_encoder_decoder or getattr(config, "is_decoder", False) or generates:
        kind = "an encoder-decoder" if config.is_encoder_decoder else "a decoder"
        raise UserError(f"{called} is {kind} ({config.model_type}); encoders are accepted: {', '.join(ARCHITECTURES)}")
    try:
        architecture_of(config)
    except UnknownArchitectureError as error:
        raise UserError(f"{called}: {error}") from None


def weights_fingerprint(model: nn.Module) -> str:
    """SHA-256 over the names and bytes of all weights of a model."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(bytes_of(value))
    return digest.hexdigest()


def bytes_of(value: Tensor) -> memoryview:
    """The bytes of a tensor of any dtype, also of one that NumPy does not know."""
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def check_sizes(config: PreTrainedConfig, name: object) -> None:
    """Refuse a configuration whose model fits on no machine, before memory is allocated for it.

    Raises:
        UserError: a size is not a whole number, below 1, or too large. The message begins with `name`.
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
            raise UserError(f"{name}: {key} {sizes[key]} by hidden_size {hidden}: the matrix is too large")
