"""A pruned model for CPU inference that computes with its non-zeros only.

    python -m emmental.export.sparse --model model.emmental --input sentences.txt --output predictions.jsonl

`load_sparse` gives a Transformers model whose encoder is a `SparseEncoder`: it is called, and used in pipelines, like
any other.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import BertConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.masking_utils import AttentionMaskInterface
from transformers.models.bert.modeling_bert import BertLayer

from emmental.export.bertarize import bertarize
from emmental.export.layer_weights import LayerWeights, layer_weights
from emmental.export.model_folder import PLAIN_CLASSES, build_model, plain_class_name, read_model
from emmental.export.package import Package, read_package
from emmental.export.sparse_encoder import SparseEncoder
from emmental.export.sparse_matrix import DENSE_ABOVE, stored_to_csr
from emmental.export.storage import checked_config, to_package
from emmental.patching import masked_layers

_LAYERS = "encoder.layer."
_MASK_AS_GIVEN = "emmental_mask_as_given"


def load_sparse(
    path: str | Path,
    dense_above: float = DENSE_ABOVE,
    pruning_method: str | None = None,
    threshold: float | None = None,
) -> PreTrainedModel:
    """A model that runs on its non-zeros, on the CPU, in float32, in evaluation mode.

    It is of the plain Transformers class and called like it, with any batch size and length:
    `model(input_ids, attention_mask, token_type_ids).logits`. Padding is not computed: hidden states there are 0.
    `torch.set_num_threads` decides on how many threads.

    Args:
        path: a package, or the folder of a bertarized or masked model.
        dense_above: density from which a matrix is multiplied dense; 0 and less: all of them, 1: none.
        pruning_method, threshold: override what a masked model records, see `read_model`.

    Raises:
        ValueError: as `read_package` and `read_model`; overrides for a package; no number for `dense_above`.
    """
    if not Path(path).is_file():
        return sparsify(read_model(path, pruning_method, threshold), dense_above)
    if pruning_method is not None or threshold is not None:
        raise ValueError(f"{path} is a package: --pruning_method and --threshold are for masked models")
    return _from_package(read_package(path), str(path), dense_above)


def sparsify(model: PreTrainedModel, dense_above: float = DENSE_ABOVE) -> PreTrainedModel:
    """The sparse form of a plain or masked model, which stays as it is; see `load_sparse`."""
    plain = bertarize(model) if masked_layers(model) else model
    return _from_package(to_package(plain), type(model).__name__, dense_above)


def _from_package(package: Package, source: str, dense_above: float) -> PreTrainedModel:
    if not dense_above == dense_above:
        raise ValueError("--dense_above accepts a density, not NaN")
    config = checked_config(package, source)
    cls = PLAIN_CLASSES[plain_class_name(package.config.get("architectures"), source)]
    arrays = package.arrays()
    outside = {name: torch.from_numpy(array) for name, array in arrays.items() if _LAYERS not in name}
    without_encoder = copy.deepcopy(config)
    without_encoder.num_hidden_layers = 0
    model = build_model(cls, without_encoder, outside, source)
    AttentionMaskInterface.register(_MASK_AS_GIVEN, _mask_as_given)
    model.config.num_hidden_layers = config.num_hidden_layers
    model.config._attn_implementation = _MASK_AS_GIVEN
    model.base_model.encoder = SparseEncoder(config, _all_layers(package, arrays, config, source), dense_above)
    return model.requires_grad_(False).eval()


def _mask_as_given(attention_mask: Tensor | None = None, **_: object) -> Tensor | None:
    """In the place of the masks of scores that other kinds of attention need."""
    return attention_mask


def _all_layers(
    package: Package, arrays: dict[str, np.ndarray], config: BertConfig, source: str
) -> Iterator[LayerWeights]:
    """The layers one by one, so that intermediate forms of one at a time are held."""
    with torch.device("meta"):
        expected = {name: tuple(value.shape) for name, value in BertLayer(config).state_dict().items()}

    def activation(values: np.ndarray) -> np.ndarray:
        return ACT2FN[config.hidden_act](torch.from_numpy(values)).numpy()

    prefix = next(iter(package.matrices)).partition(_LAYERS)[0] + _LAYERS
    known = {f"{prefix}{index}.{name}" for index in range(config.num_hidden_layers) for name in expected}
    strange = {*package.matrices, *(name for name in arrays if _LAYERS in name)} ^ known
    if strange:
        name = min(strange)
        raise ValueError(f"{source}: {name} is {'missing' if name in known else 'no part of the model'}")
    for index in range(config.num_hidden_layers):
        matrices, vectors = {}, {}
        for name, shape in expected.items():
            key = f"{prefix}{index}.{name}"
            found = package.matrices.get(key, arrays.get(key))
            if found.shape != shape:
                raise ValueError(f"{source}: {key} has shape {list(found.shape)}, not {list(shape)}")
            if key in package.matrices:
                matrices[name] = stored_to_csr(found)
            else:
                vectors[name] = found
            if not np.isfinite(matrices[name].data if name in matrices else found).all():
                raise ValueError(f"{source}: {key} holds NaN or infinite numbers")
        yield layer_weights(matrices, vectors, config.num_attention_heads, activation)
