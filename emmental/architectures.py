"""Where the encoder layers of each model type are, and which linear plays which role in them.

This is the only file that knows names such as `attention.self.query`. To add an architecture, add one entry to
`ARCHITECTURES` and one line to the list in `tests/tiny_models.py`.

It imports nothing of emmental, because the folder of a small model holds a copy of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


QKV, QUERY, KEY, VALUE = "qkv", "query", "key", "value"
POSITION_KEY, POSITION_QUERY = "position_key", "position_query"
OUTPUT, UP, DOWN = "output", "up", "down"
HEAD_ROLES = (QKV, QUERY, KEY, VALUE, POSITION_KEY, POSITION_QUERY)
"""Linears whose rows belong to attention heads. The columns of `OUTPUT` belong to them too."""


@dataclass(frozen=True)
class Architecture:
    """How the encoder of a model type is built.

    Attributes:
        model_type: as `config.json` spells it.
        layers: dotted path of the encoder layers inside the base model; `*` means every member of a list.
        roles: role -> dotted path of its linear inside a layer. `qkv` has all query rows, then all key rows, then
            all value rows. Optional roles (`position_key`, `position_query`) may be missing.
        gated: `up` has 2 * I rows: row i is neuron i's input, row i + I is its gate.
        neurons, activation: settings that hold the number of feed-forward neurons and the name of their activation.
        shared: layers are used several times in one forward pass (ALBERT).
        into_layers: of shared layers: the encoder's module that maps embeddings to their size.
        sparse_runtime: `emmental.inference.sparse_encoder` computes such layers: every token attends to all others,
            scores depend on contents alone, and the LayerNorms are after the sums.
        token_types: the model takes `token_type_ids`.
        attention: dotted path of the module that computes attention from the heads' linears.
        head_counters: attributes of `attention` that change with the heads: the first is the number of heads, the
            second (if any) the number of rows.
        broadcast_mask: with sdpa, attention takes a bool mask (B, 1, 1, T) unchanged, instead of (B, T).
        positions_after: n, or the setting that holds n: the first token has position n + 1. The first n + 1 rows of
            the position embeddings are not for tokens.
        pre_norm: the LayerNorm is before a sublayer, not after its residual sum.
        attention_norm, feed_forward_norm: dotted paths of the sublayers' LayerNorms inside a layer.
        shared_position_bias: all layers add one table of position biases to their scores, a column for each head.
        undeclared: settings that the modelling code reads but the configuration's class does not declare.
        before_down: dotted paths of the modules between the feed-forward's input and `down`; none if gated.
    """

    model_type: str
    layers: str
    roles: dict[str, str]
    attention: str
    head_counters: tuple[str, ...]
    attention_norm: str
    feed_forward_norm: str
    before_down: tuple[str, ...] = ()
    gated: bool = False
    neurons: str = "intermediate_size"
    activation: str = "hidden_act"
    shared: bool = False
    into_layers: str | None = None
    sparse_runtime: bool = False
    token_types: bool = True
    broadcast_mask: bool = True
    positions_after: int | str | None = None
    pre_norm: bool = False
    shared_position_bias: bool = False
    undeclared: tuple[str, ...] = ()


class UnknownArchitectureError(ValueError):
    """A model type that has no entry here."""


@dataclass(frozen=True)
class EncoderLayer:
    """One encoder layer of a model.

    Attributes:
        name: dotted name inside the model.
        module: the layer.
        linears: role -> dotted name inside the model, for each linear of the layer.
        uses: how often one forward pass runs the layer.
    """

    name: str
    module: nn.Module
    linears: dict[str, str]
    uses: int = 1


def _bert_like(model_type: str, roberta: bool = False) -> Architecture:
    """BERT's layers; `roberta`: without token types, and with positions that count from the padding token's id."""
    return Architecture(
        model_type=model_type,
        layers="encoder.layer.*",
        roles={
            QUERY: "attention.self.query",
            KEY: "attention.self.key",
            VALUE: "attention.self.value",
            OUTPUT: "attention.output.dense",
            UP: "intermediate.dense",
            DOWN: "output.dense",
        },
        attention="attention.self",
        head_counters=("num_attention_heads", "all_head_size"),
        attention_norm="attention.output.LayerNorm",
        feed_forward_norm="output.LayerNorm",
        before_down=("intermediate",),
        sparse_runtime=True,
        token_types=not roberta,
        positions_after="pad_token_id" if roberta else None,
    )


_ENTRIES = (
    _bert_like("bert"),
    _bert_like("roberta", roberta=True),
    _bert_like("xlm-roberta", roberta=True),
    _bert_like("camembert", roberta=True),
    _bert_like("electra"),
    Architecture(
        model_type="distilbert",
        layers="transformer.layer.*",
        roles={
            QUERY: "attention.q_lin",
            KEY: "attention.k_lin",
            VALUE: "attention.v_lin",
            OUTPUT: "attention.out_lin",
            UP: "ffn.lin1",
            DOWN: "ffn.lin2",
        },
        attention="attention",
        head_counters=("n_heads",),
        attention_norm="sa_layer_norm",
        feed_forward_norm="output_layer_norm",
        before_down=("ffn.lin1", "ffn.activation"),
        neurons="hidden_dim",
        activation="activation",
        sparse_runtime=True,
        token_types=False,
    ),
    Architecture(
        model_type="mpnet",
        layers="encoder.layer.*",
        roles={
            QUERY: "attention.attn.q",
            KEY: "attention.attn.k",
            VALUE: "attention.attn.v",
            OUTPUT: "attention.attn.o",
            UP: "intermediate.dense",
            DOWN: "output.dense",
        },
        attention="attention.attn",
        head_counters=("num_attention_heads", "all_head_size"),
        attention_norm="attention.LayerNorm",
        feed_forward_norm="output.LayerNorm",
        before_down=("intermediate",),
        shared_position_bias=True,
        token_types=False,
        broadcast_mask=False,
        positions_after=1,
    ),
    Architecture(
        model_type="albert",
        layers="encoder.albert_layer_groups.*.albert_layers.*",
        roles={
            QUERY: "attention.query",
            KEY: "attention.key",
            VALUE: "attention.value",
            OUTPUT: "attention.dense",
            UP: "ffn",
            DOWN: "ffn_output",
        },
        attention="attention",
        head_counters=("num_attention_heads", "all_head_size"),
        attention_norm="attention.LayerNorm",
        feed_forward_norm="full_layer_layer_norm",
        before_down=("ffn", "activation"),
        shared=True,
        into_layers="embedding_hidden_mapping_in",
    ),
    Architecture(
        model_type="deberta-v2",
        layers="encoder.layer.*",
        roles={
            QUERY: "attention.self.query_proj",
            KEY: "attention.self.key_proj",
            VALUE: "attention.self.value_proj",
            POSITION_KEY: "attention.self.pos_key_proj",
            POSITION_QUERY: "attention.self.pos_query_proj",
            OUTPUT: "attention.output.dense",
            UP: "intermediate.dense",
            DOWN: "output.dense",
        },
        attention="attention.self",
        head_counters=("num_attention_heads", "all_head_size"),
        attention_norm="attention.output.LayerNorm",
        feed_forward_norm="output.LayerNorm",
        before_down=("intermediate",),
        broadcast_mask=False,
        undeclared=(
            *("share_att_key", "norm_rel_ebd", "position_buckets", "attention_head_size", "embedding_size"),
            *("conv_kernel_size", "conv_groups", "conv_act", "cls_dropout"),
        ),
    ),
    Architecture(
        model_type="modernbert",
        layers="layers.*",
        roles={QKV: "attn.Wqkv", OUTPUT: "attn.Wo", UP: "mlp.Wi", DOWN: "mlp.Wo"},
        attention="attn",
        head_counters=("num_heads", "all_head_size"),
        attention_norm="attn_norm",
        feed_forward_norm="mlp_norm",
        activation="hidden_activation",
        gated=True,
        token_types=False,
        broadcast_mask=False,
        pre_norm=True,
    ),
)
ARCHITECTURES: dict[str, Architecture] = {entry.model_type: entry for entry in _ENTRIES}


def architecture_of(config: Any) -> Architecture:
    """The entry of a configuration's model type. Masked and small types share the entry of their plain type.

    Raises:
        UnknownArchitectureError: there is none. The message names the known types and this file.
    """
    known = base_model_type(config.model_type)
    if known not in ARCHITECTURES:
        raise UnknownArchitectureError(
            f"model type {config.model_type!r} is not known; known are {', '.join(ARCHITECTURES)}. "
            f"To add a type, add one entry to emmental/architectures.py"
        )
    return ARCHITECTURES[known]


def base_model_type(model_type: str) -> str:
    """`masked_bert` and `small_bert` -> `bert`; Transformers' own types stay as they are."""
    for prefix in ("masked_", "small_"):
        model_type = model_type.removeprefix(prefix)
    return model_type


def takes_token_types(config: Any) -> bool:
    """Whether the model reads `token_type_ids`: its type has them, and its configuration too. Any type is accepted."""
    entry = ARCHITECTURES.get(base_model_type(config.model_type))
    return (entry is None or entry.token_types) and getattr(config, "type_vocab_size", 0) > 1


def takes_broadcast_mask(config: Any) -> bool:
    """Whether the model takes a bool attention mask (B, 1, 1, T) unchanged, without reading its values."""
    entry = ARCHITECTURES.get(base_model_type(config.model_type))
    return entry is not None and entry.broadcast_mask and getattr(config, "_attn_implementation", None) == "sdpa"


def longest_input(config: Any) -> int:
    """Most tokens of a text, special ones included: the positions that the model (of any type) has."""
    entry = ARCHITECTURES.get(base_model_type(config.model_type))
    after = None if entry is None else entry.positions_after
    if isinstance(after, str):
        after = getattr(config, after)
    return config.max_position_embeddings - (0 if after is None else after + 1)


def encoder_room(config: Any) -> str:
    """Name of the part of the base model that holds the layers: `encoder`, `transformer` or `layers`."""
    return architecture_of(config).layers.partition(".")[0]


def encoder_layers(model: nn.Module) -> list[EncoderLayer]:
    """The distinct encoder layers of a Transformers model (with or without a head), from the bottom to the top."""
    base = getattr(model, "base_model", model)
    prefix = next((f"{name}." for name, module in model.named_modules() if module is base and name), "")
    architecture = architecture_of(model.config)
    found = list(_matching(base, architecture.layers))
    uses = model.config.num_hidden_layers // len(found) if architecture.shared and found else 1
    return [
        EncoderLayer(prefix + name, layer, _linears(layer, prefix + name, architecture), uses) for name, layer in found
    ]


def encoder_linears(model: nn.Module) -> dict[str, tuple[int, str]]:
    """Dotted name -> (number of the layer, role) of every linear of the encoder: the matrices that are pruned.

    Matrices that several layers share are named once.
    """
    return {
        name: (index, role)
        for index, layer in enumerate(encoder_layers(model))
        for role, name in layer.linears.items()
    }


def _matching(root: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """(dotted name, module) of what a path with `*` names, in order."""
    found = [("", root)]
    for part in path.split("."):
        found = [
            (f"{name}.{child_name}".lstrip("."), child)
            for name, module in found
            for child_name, child in module.named_children()
            if part in ("*", child_name)
        ]
    return iter(found)


def _linears(layer: nn.Module, layer_name: str, architecture: Architecture) -> dict[str, str]:
    from torch import nn  # here, because importing PyTorch takes seconds and the tables do not need it

    inside = dict(layer.named_modules())
    return {
        role: f"{layer_name}.{path}"
        for role, path in architecture.roles.items()
        if isinstance(inside.get(path), nn.Linear)
    }
