"""Stores a pruned model in one small file: non-zeros exactly or in int8, positions in nearly the fewest possible bits.

    python -m emmental.export.storage --model_name_or_path out --package model.emmental --weights int8

`package.py` describes the layout, `position_code.py` how positions are coded.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

from emmental.architectures import ARCHITECTURES, UP, base_model_type, encoder_linears, encoder_room
from emmental.atomic import atomic_file
from emmental.command_line import OneLineParser, user_mistakes
from emmental.errors import UserError
from emmental.export.arguments import read_arguments
from emmental.export.bertarize import bertarize
from emmental.export.model_folder import build_model, class_of, make_config, read_model
from emmental.export.package import (
    VALUE_TYPES,
    Package,
    StoredMatrix,
    array_sizes,
    is_package,
    quantize_rows,
    read_package,
    write_package,
)
from emmental.export.position_code import entropy_bits
from emmental.export.tokenizer import check_vocabulary, read_tokenizer_files
from emmental.patching import masked_layers

_WORDS = ("embeddings.word_embeddings.weight", "embeddings.tok_embeddings.weight")
"""Possible endings of the name of the word embeddings."""
_UNSET = ("problem_type", "classifier_dropout")
"""Settings that a package may have, although not every configuration has them."""


@dataclass(frozen=True)
class PackageSizes:
    """Bytes of a package.

    Attributes:
        file: the file on the disk.
        without_embeddings: the file minus the embedding matrices.
        encoder: arrays of the encoder: matrices, their positions and scales, biases, LayerNorms.
        matrices: of these, the pruned matrices with positions and scales.
        bound: entropy of the positions and the bits of each non-zero, over the pruned matrices.
        nonzeros, weights: of the pruned matrices.
    """

    file: int
    without_embeddings: int
    encoder: int
    matrices: int
    bound: int
    nonzeros: int
    weights: int


def save_package(
    model: PreTrainedModel | str | Path,
    path: str | Path,
    weights: str = "fp32",
    embeddings: str = "fp32",
    tokenizer_folder: str | Path | None = None,
) -> PackageSizes:
    """Write a model as a package, whole or not at all, and check that it reads back the same.

    Args:
        model: a masked or plain model, or the folder of one. A masked one is converted by `bertarize`.
        path: the file. An existing one is replaced if it is a package.
        weights: type of the encoder's matrices: fp32 (exact), fp16, or int8 with a scale for each row.
        embeddings: the same for the embedding matrices. LayerNorms, biases, pooler and head are always fp32.
        tokenizer_folder: folder of the tokenizer's files, which the package holds too; default: the folder of the
            model, if one is given.

    Raises:
        UserError: an unknown type, a weight too large for fp16, `path` is another file, or as `read_model`.
    """
    for flag, value in (("weights", weights), ("embeddings", embeddings)):
        if value not in VALUE_TYPES:
            raise UserError(f"--{flag} accepts {', '.join(VALUE_TYPES)}, not {value!r}")
    path = Path(path)
    if path.exists() and not is_package(path):
        raise UserError(f"--output {path} exists and is not a package; it is left alone")
    if isinstance(model, str | os.PathLike):
        tokenizer_folder = model if tokenizer_folder is None else tokenizer_folder
        model = read_model(model)
    tokenizer = {} if tokenizer_folder is None else read_tokenizer_files(tokenizer_folder)
    check_vocabulary(tokenizer, model.config.vocab_size, tokenizer_folder or "")
    plain = bertarize(model) if masked_layers(model) else model
    package = replace(to_package(plain, weights, embeddings), tokenizer=tokenizer)
    with atomic_file(path) as temporary:
        write_package(temporary, package)
        _require_same(package, read_package(temporary))
    return package_sizes(path)


def load_package(path: str | Path) -> PreTrainedModel:
    """The plain Transformers model of a package, float32, in evaluation mode.

    Raises:
        UserError: the file is not a package, is damaged, or its arrays do not fit its configuration.
    """
    return to_model(read_package(path), str(path))


def to_model(package: Package, source: str) -> PreTrainedModel:
    """The plain Transformers model of a package that was read from `source`. Errors are those of `load_package`."""
    config = checked_config(package, source)
    cls = class_of(config.model_type, package.config.get("architectures"), source)
    state = {key: torch.from_numpy(matrix.dense()) for key, matrix in package.matrices.items()}
    state |= {key: torch.from_numpy(array) for key, array in package.arrays().items()}
    return build_model(cls, config, state, source)


def package_sizes(path: str | Path) -> PackageSizes:
    """Measure a package.

    Raises:
        UserError: the file is not a package, or is damaged.
    """
    package = read_package(path)
    matrices, encoder_part = package.matrices, f".{encoder_room(checked_config(package, path))}."
    sizes = array_sizes(path)
    file = Path(path).stat().st_size
    embeddings = sum(size for name, size in sizes.items() if _is_embedding(name.partition("|")[0]))
    bits = sum(
        entropy_bits(len(m.values), m.shape[0] * m.shape[1]) + 8 * m.values.itemsize * len(m.values)
        for m in matrices.values()
    )
    return PackageSizes(
        file=file,
        without_embeddings=file - embeddings,
        encoder=sum(size for name, size in sizes.items() if encoder_part in f".{name}"),
        matrices=sum(size for name, size in sizes.items() if name.partition("|")[0] in matrices),
        bound=int(np.ceil(bits / 8)),
        nonzeros=sum(len(matrix.values) for matrix in matrices.values()),
        weights=sum(matrix.shape[0] * matrix.shape[1] for matrix in matrices.values()),
    )


def _is_embedding(name: str) -> bool:
    return name.endswith("_embeddings.weight")


def to_package(model: PreTrainedModel, weights: str = "fp32", embeddings: str = "fp32") -> Package:
    """What `save_package` stores of a plain model, without a tokenizer; same types as there."""
    linears = {f"{name}.weight" for name in encoder_linears(model)}
    defaults = type(model.config)().to_dict()
    known = _known_settings(model.config.model_type)
    settings = {
        key: value
        for key, value in model.config.to_dict().items()
        if key in known and (value is not None or defaults.get(key) is not None)
    }
    settings |= {"architectures": [type(model).__name__], "model_type": model.config.model_type}
    settings.pop("dtype", None)
    settings = json.loads(json.dumps(settings))  # names of labels get string keys, as in JSON
    matrices, tensors = {}, {}
    for name, parameter in model.state_dict().items():
        array = parameter.detach().cpu().float().numpy()
        if name in linears:
            matrices[name] = _to_matrix(name, array, weights)
        elif _is_embedding(name) and embeddings == "int8":
            rows = np.repeat(np.arange(len(array)), array.shape[1])
            values, scales = quantize_rows(array.reshape(-1), rows, len(array))
            tensors[name] = values.reshape(array.shape), scales
        else:
            tensors[name] = _cast(name, array, embeddings if _is_embedding(name) else "fp32")
    return Package(settings, matrices, tensors)


def _to_matrix(name: str, array: np.ndarray, weights: str) -> StoredMatrix:
    positions = np.flatnonzero(array)
    values = array.reshape(-1)[positions]
    scales = None
    if weights == "int8":
        values, scales = quantize_rows(values, positions // array.shape[1], len(array))
    else:
        values = _cast(name, values, weights)
    kept = values != 0  # values that round to zero need no position
    return StoredMatrix(array.shape, positions[kept], values[kept], scales)


def _cast(name: str, array: np.ndarray, to: str) -> np.ndarray:
    if to == "fp16" and np.abs(array).max(initial=0.0) > np.finfo(np.float16).max:
        raise UserError(f"{name} has a weight of {np.abs(array).max():g}, too large for fp16; use fp32 or int8")
    return array.astype(VALUE_TYPES[to])


def _require_same(meant: Package, written: Package) -> None:
    """Check the round trip: every array bit for bit."""
    same = meant.config == written.config and meant.matrices.keys() == written.matrices.keys()
    same = same and meant.tokenizer == written.tokenizer and meant.tensors.keys() == written.tensors.keys()
    for one, other in [(meant.matrices[k], written.matrices[k]) for k in meant.matrices if same]:
        same &= one.shape == other.shape and np.array_equal(one.positions, other.positions)
        same &= _same_array(one.values, other.values) and _same_array(one.scales, other.scales)
    for one, other in [(meant.tensors[k], written.tensors[k]) for k in meant.tensors if same]:
        pairs = zip(one, other, strict=True) if isinstance(one, tuple) else [(one, other)]
        same &= all(_same_array(a, b) for a, b in pairs)
    if not same:
        raise UserError("the package does not read back as it was written; it is not kept")


def _same_array(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def checked_config(package: Package, path: str | Path) -> PreTrainedConfig:
    """The configuration, after checking that its sizes fit the arrays."""
    given: dict[str, Any] = dict(package.config)
    model_type = given.pop("model_type", None)
    if not isinstance(model_type, str) or base_model_type(model_type) not in ARCHITECTURES or "masked_" in model_type:
        raise UserError(f"{path}: its config is not that of a known encoder (model_type)")
    if strange := set(given) - _known_settings(model_type):
        raise UserError(f"{path}: its config is not that of a {model_type} ({', '.join(sorted(strange))})")
    config = make_config(CONFIG_MAPPING[model_type], given, str(path))
    words = [_shape(value) for name, value in package.tensors.items() if name.endswith(_WORDS)]
    if len(words) != 1 or len(words[0]) != 2:
        raise UserError(f"{path}: its arrays do not fit a {model_type}: it has no word embeddings")
    if config.vocab_size != words[0][0]:
        raise UserError(f"{path}: vocab_size is {config.vocab_size}, the arrays say {words[0][0]}")
    entry = ARCHITECTURES[base_model_type(model_type)]
    layers = sum(name.endswith(f".{entry.roles[UP]}.weight") for name in package.matrices)
    if model_type in ARCHITECTURES and not entry.shared and config.num_hidden_layers != layers:
        raise UserError(f"{path}: num_hidden_layers is {config.num_hidden_layers}, the arrays say {layers}")
    return config


def _known_settings(model_type: str) -> set[str]:
    declared = CONFIG_MAPPING[model_type]().to_dict()
    sizes = () if model_type in ARCHITECTURES else ("per_layer_config",)  # of a small model
    return {*declared, *sizes, *_UNSET, *ARCHITECTURES[base_model_type(model_type)].undeclared}


def _shape(value: np.ndarray | tuple[np.ndarray, np.ndarray]) -> tuple[int, ...]:
    return (value[0] if isinstance(value, tuple) else value).shape


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser("Write a pruned model as one small file.")
    parser.add_argument("--model_name_or_path", required=True, help="folder of a masked or bertarized model")
    parser.add_argument("--output", "--package", dest="output", required=True, help="file to write")
    parser.add_argument(
        "--weights", choices=VALUE_TYPES, default="fp32", help="type in which the encoder's matrices are stored"
    )
    parser.add_argument(
        "--embeddings", choices=VALUE_TYPES, default="fp32", help="type in which the embeddings are stored"
    )
    parser.add_argument("--json", action="store_true", help="print the sizes as JSON, in bytes")
    return parser


def _summary(sizes: PackageSizes) -> str:
    remaining = 100 * sizes.nonzeros / sizes.weights
    ratio = sizes.matrices / sizes.bound if sizes.bound else 1.0
    return "\n".join(
        (
            f"file                  {sizes.file / 1e6:10.3f} MB",
            f"without embeddings    {sizes.without_embeddings / 1e6:10.3f} MB",
            f"encoder               {sizes.encoder / 1e6:10.3f} MB",
            f"pruned matrices       {sizes.matrices / 1e6:10.3f} MB, {remaining:.2f} % of {sizes.weights} weights",
            f"entropy bound of them {sizes.bound / 1e6:10.3f} MB, times {ratio:.3f}",
        )
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Write what the command line asks for; a mistake is one line on stderr and exit status 2."""
    args = read_arguments(_parser(), argv)
    with user_mistakes():
        model = read_model(args.model_name_or_path, args.pruning_method, args.threshold)
        sizes = save_package(model, args.output, args.weights, args.embeddings, args.model_name_or_path)
    print(json.dumps(asdict(sizes)) if args.json else _summary(sizes))


if __name__ == "__main__":
    main()
