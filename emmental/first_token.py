"""Computes the last encoder layer for the first token only, if the classifier reads no other.

The last layer still needs the keys and values of all tokens, but query, output and feed-forward of the first only.
The layer and its attention get subclasses of their own classes, so parameters, names, hooks and logits stay the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .architectures import (
    ARCHITECTURES,
    HEAD_ROLES,
    KEY,
    OUTPUT,
    POSITION_KEY,
    POSITION_QUERY,
    QKV,
    QUERY,
    VALUE,
    Architecture,
    architecture_of,
    encoder_layers,
)


class _FirstToken(NamedTuple):
    """Passed as the attention mask through a layer that gets only the first token.

    Attributes:
        mask: (B, 1 or heads, 1, T), bool (True: attend) or float (added), or None.
        all_tokens: (B, T, hidden), what the attention reads.
    """

    mask: Tensor | None
    all_tokens: Tensor


def reads_first_token(model: nn.Module) -> bool:
    """Whether a model's logits depend on the first token of its last layer only."""
    if not type(model).__name__.endswith("ForSequenceClassification") or getattr(model.config, "is_decoder", False):
        return False
    config = model.config
    if getattr(config, "classifier_pooling", "cls") != "cls" or config.chunk_size_feed_forward > 1:
        return False
    encoder = getattr(model.base_model, "encoder", None)
    return config.num_hidden_layers > 1 or getattr(encoder, "conv", None) is None


def install_first_token(model: nn.Module) -> bool:
    """Make `model` compute its last layer for the first token only, if it reads no other.

    Returns:
        Whether it does.
    """
    if is_installed(model):
        return True
    layers = encoder_layers(model) if reads_first_token(model) else []
    architecture = architecture_of(model.config) if layers else None
    attention = dict(layers[-1].module.named_modules()).get(architecture.attention) if layers else None
    if attention is None:  # all tokens are read, or another engine has replaced the layer
        return False
    layer = layers[-1].module
    if not isinstance(attention, BareAttention):
        attention.__class__ = _attention_class(type(attention), architecture.model_type)
    if architecture.shared:
        encoder = model.base_model.encoder
        encoder.__class__ = _shared_encoder_class(type(encoder), architecture.model_type)
    else:
        layer.__class__ = _layer_class(type(layer), architecture.model_type)
    return True


def is_installed(model: nn.Module) -> bool:
    """Whether `install_first_token` has changed the model."""
    return any(hasattr(module, "every_token_class") for module in model.modules())


@contextmanager
def all_tokens(model: nn.Module) -> Iterator[None]:
    """Inside the block, a model changed by `install_first_token` computes its last layer for all tokens."""
    changed = {module: type(module) for module in model.modules() if hasattr(module, "every_token_class")}
    for module, changed_class in changed.items():
        module.__class__ = changed_class.every_token_class
    try:
        yield
    finally:
        for module, changed_class in changed.items():
            module.__class__ = changed_class


@contextmanager
def first_token_only(model: nn.Module) -> Iterator[bool]:
    """Inside the block, a dense model that reads only the first token computes its last layer for that token only.

    Yields whether it does. The logits stay the same. The last layer then gives one hidden state and no attentions: if
    you need those of all tokens, run the model outside the block.
    """
    before = {module: type(module) for module in model.modules()}
    try:
        yield install_first_token(model)
    finally:
        for module, cls in before.items():
            if type(module) is not cls:
                module.__class__ = cls


def _subclass(cls: type[nn.Module], forward: Callable[..., Any]) -> type[nn.Module]:
    members = {"__module__": __name__, "forward": forward, "every_token_class": cls}
    return type(cls.__name__, (cls,), members)


@functools.cache
def _layer_class(cls: type[nn.Module], model_type: str) -> type[nn.Module]:
    architecture = ARCHITECTURES[model_type]
    norm = architecture.attention_norm if architecture.pre_norm else None

    def forward(self: nn.Module, hidden_states: Tensor, attention_mask: Any = None, *args: Any, **kwargs: Any) -> Any:
        if attention_mask is not None and attention_mask.dim() != 4:
            return cls.forward(self, hidden_states, attention_mask, *args, **kwargs)
        mask = None if attention_mask is None else attention_mask[:, :, :1]
        read = hidden_states if norm is None else self.get_submodule(norm)(hidden_states)
        return cls.forward(self, hidden_states[:, :1], _FirstToken(mask, read), *args, **kwargs)

    return _subclass(cls, forward)


@functools.cache
def _shared_encoder_class(cls: type[nn.Module], model_type: str) -> type[nn.Module]:
    """ALBERT's encoder. It uses its last layer several times, so the encoder itself must find the last use."""
    architecture = ARCHITECTURES[model_type]
    _, of_groups, _, of_layers, _ = architecture.layers.split(".")

    def forward(self: nn.Module, hidden_states: Tensor, attention_mask: Any = None, **kwargs: Any) -> Any:
        if attention_mask is not None and attention_mask.dim() != 4:
            return cls.forward(self, hidden_states, attention_mask, **kwargs)
        groups, uses = getattr(self, of_groups), self.config.num_hidden_layers
        hidden_states = getattr(self, architecture.into_layers)(hidden_states)
        for use in range(uses - 1):
            hidden_states = groups[int(use / (uses / len(groups)))](hidden_states, attention_mask, **kwargs)
        *below, last = getattr(groups[int((uses - 1) / (uses / len(groups)))], of_layers)
        for layer in below:
            hidden_states = layer(hidden_states, attention_mask, **kwargs)
        mask = None if attention_mask is None else attention_mask[:, :, :1]
        return (last(hidden_states[:, :1], _FirstToken(mask, hidden_states), **kwargs),)

    return _subclass(cls, forward)


@functools.cache
def _attention_class(cls: type[nn.Module], model_type: str) -> type[nn.Module]:
    architecture = ARCHITECTURES[model_type]
    context_of = _disentangled_context if POSITION_KEY in architecture.roles else _context

    def forward(self: nn.Module, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        first = next((each for each in (*args, *kwargs.values()) if isinstance(each, _FirstToken)), None)
        if first is None:
            return cls.forward(self, hidden_states, *args, **kwargs)
        if len(args) > 1 and isinstance(args[1], Tensor):
            kwargs["position_bias"] = args[1]
        context = context_of(self, architecture, hidden_states, first, kwargs)  # (B, heads, 1, head size)
        return _finish(self, architecture, context.transpose(1, 2).flatten(2), hidden_states), None

    return _subclass(cls, forward)


def _finish(attention: nn.Module, architecture: Architecture, context: Tensor, hidden_states: Tensor) -> Tensor:
    """The part of an attention module after its heads, (B, T, heads * head size) -> (B, T, hidden)."""
    prefix, output, norm = f"{architecture.attention}.", architecture.roles[OUTPUT], architecture.attention_norm
    if not output.startswith(prefix):
        return context
    result = attention.get_submodule(output.removeprefix(prefix))(context)
    for dropout in ("out_drop", "output_dropout"):
        if hasattr(attention, dropout):
            result = getattr(attention, dropout)(result)
    if norm.startswith(prefix):
        result = attention.get_submodule(norm.removeprefix(prefix))(hidden_states + result)
    return result


class BareAttention(nn.Module):
    """An attention module without heads. It keeps the part after the heads, whose output projection is only a bias."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.model_type = architecture.model_type

    @classmethod
    def of(cls, attention: nn.Module, architecture: Architecture) -> BareAttention:
        """`attention` without its heads. Its other modules move here under the same names."""
        bare = cls(architecture)
        heads = {path.rpartition(".")[2] for role, path in architecture.roles.items() if role in HEAD_ROLES}
        unused = {"dropout", "pos_dropout", "attention_dropout"}
        for name, module in attention.named_children():
            if name not in heads | unused:
                bare.add_module(name, module)
        return bare

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        """(B, T, hidden) -> ((B, T, hidden), None)."""
        return _finish(self, ARCHITECTURES[self.model_type], hidden_states, hidden_states), None


def _split(rows: Tensor, size: int) -> Tensor:
    """(B, T, heads * size) -> (B, heads, T, size)."""
    return rows.view(*rows.shape[:-1], -1, size).transpose(1, 2)


def _projection(attention: nn.Module, architecture: Architecture, role: str) -> nn.Module:
    return attention.get_submodule(architecture.roles[role].removeprefix(f"{architecture.attention}."))


def _context(
    attention: nn.Module, architecture: Architecture, hidden_states: Tensor, first: _FirstToken, kwargs: dict[str, Any]
) -> Tensor:
    """(B, heads, 1, head size): the context of the first token."""
    if QKV in architecture.roles:
        size = attention.head_dim
        query, key, value = _fused(_projection(attention, architecture, QKV), hidden_states, first.all_tokens, size)
        cosine, sine = (each.unsqueeze(1) for each in kwargs["position_embeddings"])  # (B, 1, T, head size)
        query, key = _turn(query, cosine[:, :, :1], sine[:, :, :1]), _turn(key, cosine, sine)
        probability = attention.attention_dropout
    else:
        size = attention.attention_head_size
        inputs = {QUERY: hidden_states, KEY: first.all_tokens, VALUE: first.all_tokens}
        query, key, value = (_split(_projection(attention, architecture, r)(x), size) for r, x in inputs.items())
        dropout = attention.attention_dropout if hasattr(attention, "attention_dropout") else attention.dropout
        probability = dropout.p
    mask, bias = first.mask, kwargs.get("position_bias")
    if bias is not None:
        bias = bias[:, list(columns)] if (columns := getattr(attention, "bias_columns", None)) is not None else bias
        mask = bias[:, :, :1] if mask is None else bias[:, :, :1] + mask
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(query.dtype)
    return F.scaled_dot_product_attention(query, key, value, mask, probability if attention.training else 0.0)


def _fused(linear: nn.Module, first: Tensor, every: Tensor, size: int) -> tuple[Tensor, ...]:
    """Query of the first token, keys and values of all tokens, from one linear that has the rows of all three."""
    if type(linear) is nn.Linear and not linear._forward_hooks and not linear._forward_pre_hooks:
        rows = linear.out_features // 3
        bias = (None, None) if linear.bias is None else (linear.bias[:rows], linear.bias[rows:])
        query = F.linear(first, linear.weight[:rows], bias[0])
        key, value = F.linear(every, linear.weight[rows:], bias[1]).chunk(2, -1)
    else:
        query, key, value = linear(every).chunk(3, -1)
        query = query[:, :1]
    return tuple(_split(each, size) for each in (query, key, value))


def _turn(rows: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions (Su 2021): the two halves of each head are rotated by the angle of their position."""
    low, high = rows.float().chunk(2, -1)
    return (rows.float() * cosine + torch.cat((-high, low), -1) * sine).to(rows.dtype)


def _disentangled_context(
    attention: nn.Module, architecture: Architecture, hidden_states: Tensor, first: _FirstToken, kwargs: dict[str, Any]
) -> Tensor:
    """(B, heads, 1, head size) of DeBERTa's attention (He 2021), which scores content and position separately."""
    size, kinds = attention.attention_head_size, attention.pos_att_type
    query = _split(_projection(attention, architecture, QUERY)(hidden_states), size)
    key = _split(_projection(attention, architecture, KEY)(first.all_tokens), size)
    value = _split(_projection(attention, architecture, VALUE)(first.all_tokens), size)
    scores = query @ key.transpose(-1, -2)  # (B, heads, 1, T)
    if attention.relative_attention:
        span = attention.pos_ebd_size
        table = attention.pos_dropout(kwargs["rel_embeddings"])[: 2 * span].unsqueeze(0)
        far = kwargs["relative_pos"].flatten(0, -3)[0]  # (T, T)
        roles = (KEY, QUERY) if attention.share_att_key else (POSITION_KEY, POSITION_QUERY)
        if "c2p" in kinds:
            places = _split(_projection(attention, architecture, roles[0])(table), size)  # (1, heads, 2 span, size)
            rows = (far[0] + span).clamp(0, 2 * span - 1)
            scores = scores + query @ places[:, :, rows].transpose(-1, -2)
        if "p2c" in kinds:
            places = _split(_projection(attention, architecture, roles[1])(table), size)
            rows = (span - far[:, 0]).clamp(0, 2 * span - 1)
            scores = scores + (key * places[:, :, rows]).sum(-1).unsqueeze(-2)
    parts = 1 + ("c2p" in kinds) + ("p2c" in kinds)
    scores = scores / (size * parts) ** 0.5
    scores = scores.masked_fill(~first.mask.bool(), torch.finfo(scores.dtype).min)
    return attention.dropout(scores.softmax(-1)) @ value
