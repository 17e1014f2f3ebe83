"""A pruned model for CPU inference that computes with its non-zeros only.

`load_sparse` returns a Transformers model whose encoder is a `SparseEncoder`. It is called, and used in pipelines,
like any other model. A model that is hardly pruned stays dense.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.masking_utils import AttentionMaskInterface

from emmental.architectures import ARCHITECTURES, architecture_of, encoder_layers, encoder_room
from emmental.errors import UserError
from emmental.export.bertarize import bertarize
from emmental.export.model_folder import build_model, class_of, read_model
from emmental.export.package import Package, read_package
from emmental.export.storage import checked_config, to_model, to_package
from emmental.inference.layer_weights import LayerWeights, layer_weights
from emmental.inference.sparse_encoder import SparseEncoder
from emmental.inference.sparse_matrix import DENSE_ABOVE, stored_to_csr
from emmental.patching import masked_layers
from emmental.pretrained import making

logger = logging.getLogger(__name__)

SPARSE_TYPES = tuple(name for name, entry in ARCHITECTURES.items() if entry.sparse_runtime)
"""Model types whose encoders `SparseEncoder` computes."""
_MASK_AS_GIVEN = "emmental_mask_as_given"
_WORTH_IT = 0.9
"""The products of a sparse model must take less than this share of the dense time, or packing is not worth it."""


def load_sparse(
    path: str | Path,
    dense_above: float = DENSE_ABOVE,
    pruning_method: str | None = None,
    threshold: float | None = None,
) -> PreTrainedModel:
    """A model that runs on its non-zeros, on the CPU, in float32, in evaluation mode.

    It is of the plain Transformers class and called like it, with any batch size and length:
    `model(input_ids, attention_mask, token_type_ids).logits`. Padding is not computed: hidden states there are 0.
    `torch.set_num_threads` sets the number of threads.

    Args:
        path: a package, or the folder of a bertarized or masked model.
        dense_above: density above which a matrix is multiplied dense: a non-zero costs as much as 1 / dense_above
            weights of a dense matrix. If hardly anything is gained by that count, or `SparseEncoder` cannot compute
            the model, the dense model is returned.
        pruning_method, threshold: override what a masked model records, see `read_model`.

    Raises:
        UserError: as `read_package` and `read_model`; overrides for a package; `dense_above` is NaN.
    """
    if not Path(path).is_file():
        return sparsify(read_model(path, pruning_method, threshold), dense_above)
    if pruning_method is not None or threshold is not None:
        raise UserError(f"{path} is a package: --pruning_method and --threshold are for masked models")
    return _from_package(read_package(path), str(path), dense_above)


def sparsify(model: PreTrainedModel, dense_above: float = DENSE_ABOVE) -> PreTrainedModel:
    """The sparse form of a plain or masked model, which stays as it is; see `load_sparse`."""
    plain = bertarize(model) if masked_layers(model) else model
    return _from_package(to_package(plain), type(model).__name__, dense_above)


def _from_package(package: Package, source: str, dense_above: float) -> PreTrainedModel:
    if math.isnan(dense_above):
        raise UserError("--dense_above accepts a density, not NaN")
    config = checked_config(package, source)
    if config.model_type not in SPARSE_TYPES:
        logger.warning("%s: a %s runs dense, its sparse form is not supported", source, config.model_type)
    if config.model_type not in SPARSE_TYPES or _cost(package, dense_above) > _WORTH_IT or not _is_plain(config):
        return to_model(package, source).requires_grad_(False)
    cls = class_of(config.model_type, package.config.get("architectures"), source)
    arrays = package.arrays()
    part = _layers_path(config)
    outside = {name: torch.from_numpy(array) for name, array in arrays.items() if part not in name}
    without_encoder = copy.deepcopy(config)
    without_encoder.num_hidden_layers = 0
    model = build_model(cls, without_encoder, outside, source)
    AttentionMaskInterface.register(_MASK_AS_GIVEN, _mask_as_given)
    model.config.num_hidden_layers = config.num_hidden_layers
    model.config._attn_implementation = _MASK_AS_GIVEN
    layer = _example_layer(cls, config, source)
    eps = layer.get_submodule(architecture_of(config).attention_norm).eps
    layers = _all_layers(package, arrays, config, layer, source)
    setattr(
        model.base_model, encoder_room(config), SparseEncoder(model.config, layers, _act(config), eps, dense_above)
    )
    return model.requires_grad_(False).eval()


def _act(config: PreTrainedConfig) -> str:
    return getattr(config, architecture_of(config).activation)


def _layers_path(config: PreTrainedConfig) -> str:
    return architecture_of(config).layers.removesuffix("*")


def _is_plain(config: PreTrainedConfig) -> bool:
    """Whether every token attends to all others, and the activation has no parameters."""
    known = _act(config) in ACT2FN  # unknown ones are refused when the layers are made
    return not (getattr(config, "is_decoder", False) or (known and list(ACT2FN[_act(config)].parameters())))


def _cost(package: Package, dense_above: float) -> float:
    """Modelled time of the encoder's products, each in its faster form, as a share of the dense time."""
    if dense_above <= 0:
        return 1.0
    sizes = {name: math.prod(matrix.shape) for name, matrix in package.matrices.items()}
    cost = sum(min(len(matrix.values) / dense_above, sizes[name]) for name, matrix in package.matrices.items())
    return cost / sum(sizes.values()) if sizes else 1.0


def _mask_as_given(attention_mask: Tensor | None = None, **_: object) -> Tensor | None:
    """Replaces the masks that other kinds of attention need."""
    return attention_mask


def _all_layers(
    package: Package, arrays: dict[str, np.ndarray], config: PreTrainedConfig, layer: nn.Module, source: str
) -> Iterator[LayerWeights]:
    """The layers one by one, so only one of them is in an intermediate form at a time."""
    expected = {name: tuple(value.shape) for name, value in layer.state_dict().items()}
    part, entry = _layers_path(config), architecture_of(config)
    prefix = next(iter(package.matrices)).partition(part)[0] + part
    known = {f"{prefix}{index}.{name}" for index in range(config.num_hidden_layers) for name in expected}
    strange = {*package.matrices, *(name for name in arrays if part in name)} ^ known
    if strange:
        name = min(strange)
        raise UserError(f"{source}: {name} is {'missing' if name in known else 'not part of the model'}")

    def activation(values: np.ndarray) -> np.ndarray:
        return ACT2FN[_act(config)](torch.from_numpy(values)).numpy()

    for index in range(config.num_hidden_layers):
        found = {
            name: _checked(package, arrays, f"{prefix}{index}.{name}", expected[name], source) for name in expected
        }
        matrices = {name: array for name, array in found.items() if len(expected[name]) == 2}
        vectors = {name: array for name, array in found.items() if len(expected[name]) == 1}
        yield layer_weights(matrices, vectors, config.num_attention_heads, activation, entry)


def _example_layer(cls: type[PreTrainedModel], config: PreTrainedConfig, source: str) -> nn.Module:
    """A layer of the model whose weights have only shapes."""
    one = copy.deepcopy(config)
    one.num_hidden_layers = 1
    with making(source, "no model can be made from its configuration"), torch.device("meta"):
        return encoder_layers(cls(one))[0].module


def _checked(
    package: Package, arrays: dict[str, np.ndarray], name: str, shape: tuple[int, ...], source: str
) -> csr_array | np.ndarray:
    """A matrix (stored or dense) or a vector, after checking its shape and that its numbers are finite."""
    stored = package.matrices.get(name)
    found = arrays[name] if stored is None else stored_to_csr(stored)
    if found.shape != shape:
        raise UserError(f"{source}: {name} has shape {list(found.shape)}, not {list(shape)}")
    if len(shape) == 2:
        found = csr_array(found)
    if not np.isfinite(found.data if len(shape) == 2 else found).all():
        raise UserError(f"{source}: {name} holds NaN or infinite numbers")
    return found
