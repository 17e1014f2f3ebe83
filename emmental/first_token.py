"""The parts of small encoders: layers that compute one token, attention with fewer heads or none.

Most classifiers read only the first token of the last layer. That layer still needs the keys and values of all tokens,
but query, output and feed-forward of the first only. Who wants that says so in the call: `first_token=True` goes from
the classifier through the base model and its encoder to the last layer. No module remembers it, so a call without it
computes all tokens. Linears are called as modules: hooks, adapters and offloading see every call.

The parts are subclasses of Transformers' own, so parameters and names stay the same. `SmallBertLayer`,
`SmallBertSelfAttention` and so on, for every type in `architectures.py`, are attributes of this module.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CONFIG_MAPPING
from transformers.initialization import no_init_weights

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
    architecture_of,
    encoder_layers,
)

_KNOWN_ATTENTION = (None, "sdpa", "eager")
"""Implementations of attention whose masks are known here. With any other, all tokens are computed."""


class FirstToken(NamedTuple):
    """Passed as the attention mask through a layer that gets only the first token.

    Attributes:
        mask: (B, 1 or heads, 1, T), bool (True: attend) or float (added), or None.
        all_tokens: (B, T, hidden), what the attention reads.
    """

    mask: Tensor | None
    all_tokens: Tensor


def reads_first_token(model: nn.Module) -> bool:
    """Whether a model's answers depend on the first token of its last layer only: decided here for every head."""
    if not type(model).__name__.endswith("ForSequenceClassification") or getattr(model.config, "is_decoder", False):
        return False
    config = model.config
    if getattr(config, "classifier_pooling", "cls") != "cls" or config.chunk_size_feed_forward > 1:
        return False
    encoder = getattr(model.base_model, "encoder", None)
    return config.num_hidden_layers > 1 or getattr(encoder, "conv", None) is None


def asks_for_first_token(model: nn.Module, given: Mapping[str, Any]) -> bool:
    """Whether a call of a small model with these arguments needs no more of the last layer than the first token."""
    config = model.config
    if not config.first_token_only or config._attn_implementation not in _KNOWN_ATTENTION:
        return False
    for name in ("output_hidden_states", "output_attentions"):
        wanted = given.get(name)
        if getattr(config, name) if wanted is None else wanted:
            return False
    return reads_first_token(model)


class _Asked:
    """Stands for a part in one call: it is called with `first_token=True`. Its attributes are the part's."""

    def __init__(self, part: nn.Module) -> None:
        self._part = part

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._part(*args, first_token=True, **kwargs)


class Asking:
    """Stands for a module in one call of its `forward`, so that it asks one of its parts for the first token.

    Args:
        module: its attributes are seen here, all but one.
        name: of the part: a module, or a list of layers whose last one is asked. A part of another class, put there
            by another library, is called as always.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        self._module, self._name = module, name

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        if name != self._name:
            return value
        if isinstance(value, nn.ModuleList):
            *below, last = value
            return [*below, _asked(last)]
        return _asked(value)


def _asked(part: nn.Module) -> Any:
    return _Asked(part) if getattr(part, "takes_first_token", False) else part


def is_watched(module: nn.Module) -> bool:
    """Whether a forward hook reads the module's output; it then gets all tokens. Transformers' own hook never reads it
    in a call for the first token.
    """
    hooks = module._forward_hooks.values()
    return any(getattr(hook, "__name__", "") != "output_capturing_hook" for hook in hooks)


class SmallPart:
    """What the parts share. Each is also a class of Transformers, `transformers_class`.

    Attributes:
        model_type: the plain type.
        takes_first_token: `forward` takes `first_token`.
    """

    transformers_class: type[nn.Module]
    model_type: str
    takes_first_token = True


class SmallStack(SmallPart):
    """A module that runs a list of layers, one after the other.

    Attributes:
        list_name: of the list.
    """

    list_name: str

    def forward(self, *args: Any, first_token: bool = False, **kwargs: Any) -> Any:
        """As in Transformers; `first_token`: the last layer computes that one only, (B, 1, hidden)."""
        asks = first_token and not is_watched(self)
        return self.transformers_class.forward(Asking(self, self.list_name) if asks else self, *args, **kwargs)


class SmallSharedEncoder(SmallPart):
    """ALBERT's encoder. It uses its groups of layers several times, and only the last use is for the first token."""

    def forward(
        self, hidden_states: Tensor, attention_mask: Any = None, *, first_token: bool = False, **kwargs: Any
    ) -> Any:
        """As in Transformers; `first_token`: the last layer computes that one only, (B, 1, hidden)."""
        if not first_token or is_watched(self):
            return super().forward(hidden_states, attention_mask, **kwargs)
        architecture = ARCHITECTURES[self.model_type]
        groups, uses = getattr(self, architecture.layers.split(".")[1]), self.config.num_hidden_layers
        hidden_states = getattr(self, architecture.into_layers)(hidden_states)
        for use in range(uses):
            group = groups[int(use / (uses / len(groups)))]
            group = _asked(group) if use == uses - 1 else group
            hidden_states = group(hidden_states, attention_mask, **kwargs)
        return (hidden_states,)


class SmallLayer(SmallPart):
    """An encoder layer."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Any = None,
        *args: Any,
        first_token: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As in Transformers, (B, T, hidden) -> (B, T, hidden), or a tuple; `first_token`: (B, 1, hidden)."""
        architecture = ARCHITECTURES[self.model_type]
        known_mask = attention_mask is None or (isinstance(attention_mask, Tensor) and attention_mask.dim() == 4)
        if first_token and known_mask and not is_watched(self):
            attention = self.get_submodule(architecture.attention)
            if isinstance(attention, SmallAttention) and not is_watched(attention):
                norm = architecture.attention_norm if architecture.pre_norm else None
                read = hidden_states if norm is None else self.get_submodule(norm)(hidden_states)
                attention_mask = FirstToken(None if attention_mask is None else attention_mask[:, :, :1], read)
                hidden_states = hidden_states[:, :1]
        return super().forward(hidden_states, attention_mask, *args, **kwargs)


class SmallAttention(SmallPart):
    """An attention module.

    Attributes:
        heads: how many it has. Without heads only the part after them is left, whose output projection is a bias.
        bias_columns: if all layers share one table of position biases: the column of each head.
        argument_names: of the arguments after the hidden states.
    """

    heads: int
    bias_columns: tuple[int, ...] | None = None
    argument_names: tuple[str, ...]
    takes_first_token = False

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As in Transformers, (B, T, hidden) -> ((B, T, heads * head size or hidden), scores). With a `FirstToken` as
        the mask, (B, 1, hidden) -> (B, 1, ...).
        """
        given = {**dict(zip(self.argument_names, args, strict=False)), **kwargs}
        if self.heads == 0:
            return _finish(self, hidden_states, hidden_states), self._no_scores(hidden_states, given)
        if self.bias_columns is not None and given.get("position_bias") is not None:
            given["position_bias"] = given["position_bias"][:, list(self.bias_columns)]
        first = given.get("attention_mask")
        if not isinstance(first, FirstToken):
            return super().forward(hidden_states, **given)
        relative = POSITION_KEY in ARCHITECTURES[self.model_type].roles
        context_of = _disentangled_context if relative else _context
        context = context_of(self, hidden_states, first, given)  # (B, heads, 1, head size)
        return _finish(self, context.transpose(1, 2).flatten(2), hidden_states), None

    def _no_scores(self, hidden_states: Tensor, given: Mapping[str, Any]) -> Tensor | None:
        """(B, 0, T, T) where an attention with heads gives its scores, so that every layer has its entry."""
        if "output_attentions" in self.argument_names:
            wanted = given.get("output_attentions")
        else:
            wanted = self.config._attn_implementation == "eager"
        rows, length = hidden_states.shape[:2]
        return hidden_states.new_zeros(rows, 0, length, length) if wanted else None

    def remove_heads(self, heads: int, columns: tuple[int, ...] | None) -> None:
        """Record what is left after the linears have been cut, and without heads drop what nothing uses."""
        self.heads, self.bias_columns = heads, columns
        if heads == 0:
            roles = ARCHITECTURES[self.model_type].roles
            unused = {path.rpartition(".")[2] for role, path in roles.items() if role in HEAD_ROLES}
            for name in unused | {"dropout", "pos_dropout", "attention_dropout"}:
                if isinstance(getattr(self, name, None), nn.Module):
                    delattr(self, name)


@functools.cache
def small_part(plain: type[nn.Module], kind: type[SmallPart]) -> type[SmallPart]:
    """The small form of a part's class: `BertLayer`, `SmallLayer` -> `SmallBertLayer`."""
    members = {"__module__": __name__, "transformers_class": plain}
    if hasattr(plain, "get_rel_embedding"):
        members["get_rel_embedding"] = _relative_embeddings
    if kind is SmallAttention:
        members["argument_names"] = tuple(inspect.signature(plain.forward).parameters)[2:]
    return type(f"Small{plain.__name__}", (kind, plain), members)


def _relative_embeddings(encoder: nn.Module) -> Tensor | None:
    """DeBERTa's relative positions, (2 span, hidden). Transformers reads the weight, even if it is offloaded."""
    if not encoder.relative_attention:
        return None
    table = encoder.rel_embeddings
    device = None if table.weight.is_meta else table.weight.device  # offloaded: the call finds the place
    rows = table(torch.arange(table.num_embeddings, device=device))
    return encoder.LayerNorm(rows) if hasattr(encoder, "LayerNorm") else rows


def make_parts_small(base: nn.Module) -> None:
    """Give a newly built dense base model small parts, in place. They hold what the old ones held."""
    architecture = architecture_of(base.config)
    for name, kind in list(_parts(base)):
        old = base.get_submodule(name)
        cls = small_part(type(old), kind)
        part = cls.__new__(cls)
        part.__dict__.update(old.__dict__)
        part.model_type = architecture.model_type
        if kind is SmallStack:
            part.list_name = architecture.layers.split(".")[-2]
        base.set_submodule(name, part)


def _parts(base: nn.Module) -> Iterator[tuple[str, type[SmallPart]]]:
    """Dotted name and kind of each part of a base model, from the inside to the outside."""
    architecture = architecture_of(base.config)
    layers = [layer.name for layer in encoder_layers(base)]
    for name in layers:
        yield f"{name}.{architecture.attention}", SmallAttention
        yield name, SmallLayer
    for stack in sorted({name.rsplit(".", 2)[0] for name in layers if name.count(".") > 1}):
        yield stack, SmallStack
    if architecture.shared:
        yield architecture.layers.split(".")[0], SmallSharedEncoder


def _finish(attention: SmallAttention, context: Tensor, hidden_states: Tensor) -> Tensor:
    """The part of an attention module after its heads, (B, T, heads * head size) -> (B, T, hidden)."""
    architecture = ARCHITECTURES[attention.model_type]
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


def _split(rows: Tensor, size: int) -> Tensor:
    """(B, T, heads * size) -> (B, heads, T, size)."""
    return rows.unflatten(-1, (-1, size)).transpose(1, 2)


def _projected(attention: SmallAttention, role: str, inputs: Tensor, size: int) -> Tensor:
    """(B, T, hidden) -> (B, heads, T, size) by the linear of a role; 3 * heads by the one of query, key and value."""
    linear = attention.get_submodule(ARCHITECTURES[attention.model_type].roles[role].rpartition(".")[2])
    return _split(linear(inputs), size)


def _context(attention: SmallAttention, hidden_states: Tensor, first: FirstToken, given: Mapping[str, Any]) -> Tensor:
    """(B, heads, 1, head size): the context of the first token."""
    if QKV in ARCHITECTURES[attention.model_type].roles:
        query, key, value = _projected(attention, QKV, first.all_tokens, attention.head_dim).chunk(3, 1)
        cosine, sine = (each.unsqueeze(1) for each in given["position_embeddings"])  # (B, 1, T, head size)
        query, key = _turn(query[:, :, :1], cosine[:, :, :1], sine[:, :, :1]), _turn(key, cosine, sine)
        probability = attention.attention_dropout
    else:
        size = attention.attention_head_size
        query = _projected(attention, QUERY, hidden_states, size)
        key, value = (_projected(attention, role, first.all_tokens, size) for role in (KEY, VALUE))
        dropout = attention.attention_dropout if hasattr(attention, "attention_dropout") else attention.dropout
        probability = dropout.p
    mask, bias = first.mask, given.get("position_bias")
    if bias is not None:
        mask = bias[:, :, :1] if mask is None else bias[:, :, :1] + mask
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(query.dtype)
    return F.scaled_dot_product_attention(query, key, value, mask, probability if attention.training else 0.0)


def _turn(rows: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions (Su 2021): the two halves of each head are rotated by the angle of their position."""
    low, high = rows.float().chunk(2, -1)
    return (rows.float() * cosine + torch.cat((-high, low), -1) * sine).to(rows.dtype)


def _disentangled_context(
    attention: SmallAttention, hidden_states: Tensor, first: FirstToken, given: Mapping[str, Any]
) -> Tensor:
    """(B, heads, 1, head size) of DeBERTa's attention (He 2021), which scores content and position separately."""
    size, kinds = attention.attention_head_size, attention.pos_att_type
    query = _projected(attention, QUERY, hidden_states, size)
    key, value = (_projected(attention, role, first.all_tokens, size) for role in (KEY, VALUE))
    scores = query @ key.transpose(-1, -2)  # (B, heads, 1, T)
    if attention.relative_attention:
        span = attention.pos_ebd_size
        table = attention.pos_dropout(given["rel_embeddings"])[: 2 * span].unsqueeze(0)
        far = given["relative_pos"].flatten(0, -3)[0]  # (T, T)
        roles = (KEY, QUERY) if attention.share_att_key else (POSITION_KEY, POSITION_QUERY)
        if "c2p" in kinds:
            places = _projected(attention, roles[0], table, size)  # (1, heads, 2 span, size)
            rows = (far[0] + span).clamp(0, 2 * span - 1)
            scores = scores + query @ places[:, :, rows].transpose(-1, -2)
        if "p2c" in kinds:
            places = _projected(attention, roles[1], table, size)
            rows = (span - far[:, 0]).clamp(0, 2 * span - 1)
            scores = scores + (key * places[:, :, rows]).sum(-1).unsqueeze(-2)
    parts = 1 + ("c2p" in kinds) + ("p2c" in kinds)
    scores = scores / (size * parts) ** 0.5
    scores = scores.masked_fill(~first.mask.bool(), torch.finfo(scores.dtype).min)
    return attention.dropout(scores.softmax(-1)) @ value


@functools.cache
def _small_parts_of(model_type: str) -> dict[str, type[SmallPart]]:
    """Name -> class of the small parts of a type."""
    config = CONFIG_MAPPING[model_type](num_hidden_layers=1)
    with torch.device("meta"), no_init_weights():
        base = transformers.MODEL_MAPPING[type(config)](config)
    made = [small_part(type(base.get_submodule(name)), kind) for name, kind in _parts(base)]
    return {cls.__name__: cls for cls in made}


def _is_imported(model_type: str) -> bool:
    return CONFIG_MAPPING[model_type].__module__.replace(".configuration_", ".modeling_") in sys.modules


def __getattr__(name: str) -> Any:
    if name.startswith("Small"):  # a pickle names its parts after the model itself, whose code is then imported
        for model_type in sorted(ARCHITECTURES, key=_is_imported, reverse=True):
            if name in (parts := _small_parts_of(model_type)):
                return parts[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
