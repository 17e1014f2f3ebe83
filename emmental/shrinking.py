"""Cuts closed heads and neurons out of a model: the same logits from smaller matrices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.initialization import no_init_weights

from emmental.architectures import (
    ARCHITECTURES,
    DOWN,
    HEAD_ROLES,
    OUTPUT,
    QKV,
    UP,
    VALUE,
    Architecture,
    EncoderLayer,
    architecture_of,
    encoder_layers,
    encoder_linears,
    encoder_room,
)
from emmental.errors import UserError
from emmental.first_token import reads_first_token
from emmental.small_models import (
    ConstantLinear,
    LayerSize,
    SmallConfig,
    neurons_name,
    plain_class,
    pooler_option,
    small_class,
    small_config_class,
)

Openings = Sequence[tuple[Sequence[int], Sequence[int]]]
"""For each distinct encoder layer, from the bottom: the heads and the feed-forward neurons that stay, numbered as
before the cut."""


def shrink(model: PreTrainedModel, openings: Openings) -> PreTrainedModel:
    """The small model without the heads and neurons that are not open; `model` stays as it is.

    Its logits are those of `model` with the outputs of closed heads and neurons multiplied by zero. Device, dtype,
    mode, and which parameters train, are as in `model`.

    Args:
        model: a plain or a small model of a known type, with any head or none.
        openings: a pair for each of `encoder_layers(model)`; each list without duplicates, in any order.

    Raises:
        UserError: see `require_plain_linears`.
        ValueError: too few or too many layers, or a list names a head or a neuron that its layer does not have.
    """
    require_plain_linears(model)
    layers, present = encoder_layers(model), layer_sizes(model)
    if len(openings) != len(layers):
        raise ValueError(f"openings has {len(openings)} layers, but the model has {len(layers)}")
    state, sizes = model.state_dict(), []
    for index, (layer, size, (heads, neurons)) in enumerate(zip(layers, present, openings, strict=True)):
        heads, neurons = _checked(heads, size.heads, index), _checked(neurons, size.neurons, index)
        _cut(state, layer, model.config, size, heads, neurons)
        columns = size.columns
        if columns is None and architecture_of(model.config).shared_position_bias:
            columns = range(size.heads)
        sizes.append(LayerSize(len(heads), len(neurons), columns and tuple(columns[head] for head in heads)))
    return _build(model, sizes, state)


@torch.no_grad()
def fold_constants(model: PreTrainedModel) -> list[tuple[list[int], list[int]]]:
    """Move constants that a model computes into its biases, in place. Its logits in evaluation stay the same.

    A head whose value rows are all zero always gives its value bias, and a neuron whose up row is zero always gives
    the same number. A head or neuron whose output columns are zero is never read.

    Returns:
        The heads and neurons of each layer that `shrink` must keep: neither constant nor unread.
    """
    openings = []
    for layer, size in zip(encoder_layers(model), layer_sizes(model), strict=True):
        linears = {role: model.get_submodule(name) for role, name in layer.linears.items()}
        heads = _fold_heads(linears, size.heads) if size.heads else []
        neurons = _fold_neurons(linears, model.config) if size.neurons else []
        openings.append((heads, neurons))
    return openings


def _fold_heads(linears: dict[str, nn.Linear], heads: int) -> list[int]:
    output, value = linears[OUTPUT], linears.get(VALUE, linears.get(QKV))
    rows = slice(-output.in_features, None)  # the last third of a matrix that holds query, key and value
    written = value.weight[rows].any(1).view(heads, -1).any(1)
    read = output.weight.any(0).view(heads, -1).any(1)
    if value.bias is not None:
        constant = (~written & read).repeat_interleave(output.in_features // heads)
        _add_constants(output, value.bias[rows] * constant)
    return torch.nonzero(written & read).flatten().tolist()


def _fold_neurons(linears: dict[str, nn.Linear], config: PreTrainedConfig) -> list[int]:
    up, down = linears[UP], linears[DOWN]
    names = ("hidden_activation", "hidden_act", "activation")
    activation = ACT2FN[next(getattr(config, name) for name in names if hasattr(config, name))]
    bias = torch.zeros_like(up.weight[:, 0]) if up.bias is None else up.bias
    written, read = up.weight.any(1), down.weight.any(0)
    if architecture_of(config).gated:
        (inputs, gates), (input_bias, gate_bias) = written.chunk(2), bias.chunk(2)
        factor = activation(input_bias)
        values = factor * gate_bias
        written = (inputs | gates) & (inputs | (factor != 0)) & (gates | (gate_bias != 0))
    else:
        values = activation(bias)
    _add_constants(down, values * ~written)
    return torch.nonzero(written & read).flatten().tolist()


def _add_constants(linear: nn.Linear, inputs: Tensor) -> None:
    """Add the outputs of constant inputs to the bias; create the bias if there is none."""
    added = (linear.weight.double() @ inputs.double()).to(linear.weight.dtype)
    if linear.bias is not None:
        linear.bias += added
    elif added.any():
        linear.bias = nn.Parameter(added)


def first_token_form(model: nn.Module) -> nn.Module:
    """The same classifier in a form that computes its last layer for the first token only: same logits, less work.

    A plain classifier of Transformers that reads no other token gives a small model with all heads and neurons. It
    shares the parameters of `model`, which stays as it is. Any other model is returned itself.
    """
    config = getattr(model, "config", None)
    known = type(model).__module__.startswith("transformers.") and config.model_type in ARCHITECTURES
    if not known or not reads_first_token(model) or _without_linears(model):
        return model
    return _build(model, layer_sizes(model), model.state_dict(keep_vars=True), share=True)


def require_plain_linears(model: PreTrainedModel) -> None:
    """Refuse a model whose encoder has other layers than those of Transformers, or whose weights are elsewhere.

    Raises:
        UserError: it says what to do with adapters, with quantised or other layers, or with offloaded weights.
    """
    found = _without_linears(model)
    if found is None:
        return
    name, layer = found
    if type(layer).__module__.startswith("peft."):
        raise UserError(
            f"model has adapters of PEFT ({name or type(layer).__name__}): merge them first, with model = "
            "model.merge_and_unload()"
        )
    if _has_made_weight(layer):
        raise UserError(
            f"model has {name} whose weight is computed from others (torch.nn.utils.prune, weight_norm): make it "
            "plain first, with torch.nn.utils.prune.remove or torch.nn.utils.parametrize.remove_parametrizations"
        )
    if isinstance(layer, nn.Linear) and layer.weight.is_meta:
        raise UserError(f"model has {name} offloaded to another device or to disk: load it without device_map")
    raise UserError(
        f"model has {name} as {type(layer).__module__}.{type(layer).__name__}; torch.nn.Linear with float "
        "weights is accepted: prune before you quantise or convert"
    )


def _without_linears(model: nn.Module) -> tuple[str, nn.Module] | None:
    """Name and module of the first place in the encoder that is not a plain linear.

    Adapters, and weights that are computed from others, count in the whole model.
    """
    for name, module in model.named_modules():
        if type(module).__module__.startswith("peft.") or _has_made_weight(module):
            return name, module
    roles, layers = architecture_of(model.config).roles, encoder_layers(model)
    if not layers:
        room = encoder_room(model.config)
        return room, model.base_model.get_submodule(room)
    for layer in layers:
        inside = dict(layer.module.named_modules())
        if not {roles[OUTPUT], roles[DOWN]} <= inside.keys():
            return layer.name, layer.module
        for path in roles.values():
            module = inside.get(path)
            if not (module is None or _is_constant(module) or _is_plain(module)):
                return f"{layer.name}.{path}", module
    return None


def _is_constant(module: nn.Module) -> bool:
    """What stands for a linear without inputs or outputs. The class may come from the modelling file of a folder."""
    return type(module).__name__ in (ConstantLinear.__name__, nn.Identity.__name__)


def _has_made_weight(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Embedding) and "weight" not in module._parameters


def _is_plain(module: nn.Module) -> bool:
    if not isinstance(module, nn.Linear) or module.weight.is_meta:
        return False
    return module.weight.is_floating_point() and type(module.weight.data) is Tensor


def as_plain(model: PreTrainedModel) -> PreTrainedModel | None:
    """The plain Transformers model of a small one, if all its layers are alike and keep every head; else None.

    The plain types compute a head's size as hidden size / heads, so they cannot have fewer heads. A layer without
    heads and neurons still has its LayerNorms, so it cannot be left out.
    """
    config, sizes = model.config, layer_sizes(model)
    whole = tuple(range(config.num_attention_heads))
    alike = {(size.heads, size.neurons) for size in sizes} == {(config.num_attention_heads, sizes[0].neurons)}
    if not alike or not sizes[0].neurons or any(size.columns not in (None, whole) for size in sizes):
        return None
    if config.refit_biases:
        return None
    gone = {*SmallConfig.__annotations__, "model_type", "per_layer_config", "auto_map", "transformers_version"}
    settings = {key: value for key, value in config.to_dict().items() if key not in gone}
    settings[neurons_name(config)] = sizes[0].neurons
    plain = CONFIG_MAPPING[architecture_of(config).model_type](**settings)
    return filled(model, plain_class(type(model)), plain, model.state_dict())


def layer_sizes(model: PreTrainedModel) -> list[LayerSize]:
    """Heads and neurons of every distinct encoder layer of a plain or small model."""
    if _is_small(model):
        return model.config.layer_sizes()
    return small_config_class(architecture_of(model.config).model_type).from_dense(model.config, []).layer_sizes()


def _is_small(model: PreTrainedModel) -> bool:
    """Whether layers have sizes of their own. The class may come from the modelling file of a folder."""
    return hasattr(model.config, "layer_sizes")


def _checked(numbers: Sequence[int], most: int, layer: int) -> list[int]:
    kept = sorted(int(number) for number in numbers)
    if len(set(kept)) != len(kept) or any(not 0 <= number < most for number in kept):
        accepted = f"different numbers from 0 to {most - 1}" if most else "empty"
        raise ValueError(f"openings of layer {layer} must be {accepted}")
    return kept


def _cut(
    state: dict[str, Tensor],
    layer: EncoderLayer,
    config: PreTrainedConfig,
    size: LayerSize,
    heads: Sequence[int],
    neurons: Sequence[int],
) -> None:
    """Cut closed heads and neurons out of the matrices in `state`."""
    head_size = config.hidden_size // config.num_attention_heads
    of_heads = torch.tensor([head * head_size + row for head in heads for row in range(head_size)], dtype=torch.long)
    of_neurons = torch.tensor(neurons, dtype=torch.long)
    rows = dict.fromkeys(HEAD_ROLES, of_heads)
    rows[QKV] = torch.cat([of_heads + block * size.heads * head_size for block in range(3)])
    gated = architecture_of(config).gated
    rows[UP] = torch.cat([of_neurons, of_neurons + size.neurons]) if gated else of_neurons
    for role, name in layer.linears.items():
        weight, bias = state.pop(f"{name}.weight"), state.get(f"{name}.bias")
        axis, kept = (0, rows[role]) if role in rows else (1, of_heads if role == OUTPUT else of_neurons)
        if axis == 0 and bias is not None:
            del state[f"{name}.bias"]
        if len(kept) == 0:
            continue
        state[f"{name}.weight"] = weight.index_select(axis, kept.to(weight.device))
        if axis == 0 and bias is not None:
            state[f"{name}.bias"] = bias.index_select(0, kept.to(bias.device))
    if architecture_of(config).pre_norm:
        _drop_unused_norms(state, layer, architecture_of(config), bool(heads), bool(neurons))


def _drop_unused_norms(
    state: dict[str, Tensor], layer: EncoderLayer, architecture: Architecture, heads: bool, neurons: bool
) -> None:
    for kept, norm in ((heads, architecture.attention_norm), (neurons, architecture.feed_forward_norm)):
        if not kept:
            for array in ("weight", "bias"):
                state.pop(f"{layer.name}.{norm}.{array}", None)


def _build(
    model: PreTrainedModel, sizes: Sequence[LayerSize], state: dict[str, Tensor], share: bool = False
) -> PreTrainedModel:
    architecture = architecture_of(model.config)
    writers = [
        f"{layer.name}.{architecture.roles[role]}.bias" for layer in encoder_layers(model) for role in (OUTPUT, DOWN)
    ]
    settings = {}
    if not _is_small(model):
        weights = {name: model.get_submodule(name).weight.numel() for name in encoder_linears(model)}
        settings["dense_encoder_weights"] = sum(weights.values())
        settings["refit_biases"] = any(name in state for name in writers) and not _has_biases(model.config)
    config = small_config_class(architecture.model_type).from_dense(model.config, sizes, **settings)
    if config.refit_biases or any(name in state for name in writers):
        some = next(iter(state.values()))
        for name in writers:
            state.setdefault(name, some.new_zeros(config.hidden_size))
    return filled(model, small_class(plain_class(type(model))), config, state, share)


def _has_biases(config: PreTrainedConfig) -> bool:
    """Whether attention output and down projection of the plain type have biases."""
    return getattr(config, "attention_bias", True) and getattr(config, "mlp_bias", True)


def filled(
    like: PreTrainedModel,
    cls: type[PreTrainedModel],
    config: PreTrainedConfig,
    state: dict[str, Tensor],
    share: bool = False,
) -> PreTrainedModel:
    """A model of `cls` that holds `state`; device, dtype, mode, and which parameters train, are as in `like`.

    `share`: it holds the very tensors of `state`, not copies.
    """
    options = pooler_option(plain_class(type(like)), like) if like.base_model is like else {}
    with no_init_weights(), torch.random.fork_rng(devices=()):
        model = cls(config, **options)
    model.set_attn_implementation(like.config._attn_implementation)
    trains = {name: parameter.requires_grad for name, parameter in like.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trains.get(name, True))
    model.to(device=like.device, dtype=like.dtype).load_state_dict(state, assign=share)
    return model.train(like.training)
