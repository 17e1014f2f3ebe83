"""Small models: Transformers' own classes, whose layers have their own numbers of heads and feed-forward neurons.

`SmallBertConfig`, `SmallBertForSequenceClassification` and so on, for every type in `architectures.py`, are attributes
of this module, made at their first use. Configurations give the sizes in Transformers' `per_layer_config`. Global
values are those of the dense original: layers without sizes of their own use them, and they give the size of a head.

The folder of a small model holds copies of this file and of those it imports, so it loads without emmental. That is
why this file imports only PyTorch, Transformers, and its neighbours by relative imports.
"""

from __future__ import annotations

import functools
import inspect
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

if tuple(int(part) for part in transformers.__version__.split(".")[:2]) < (5, 23):  # before what earlier ones lack
    raise ImportError(
        f"this small model needs Transformers 5.23 or newer, and finds {transformers.__version__}: "
        "pip install --upgrade transformers"
    )

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedConfig

from .architectures import (
    ARCHITECTURES,
    DOWN,
    HEAD_ROLES,
    OUTPUT,
    QKV,
    UP,
    Architecture,
    architecture_of,
    base_model_type,
    encoder_layers,
    encoder_room,
)
from .first_token import Asking, asks_for_first_token, is_watched, make_parts_small

FORMAT = 1
"""Version of the settings of a small configuration."""
MODELLING_FILES = ("small_models.py", "first_token.py", "architectures.py")
"""Files that let a folder load without emmental."""
_MOST_LAYERS = 1000
HEADS_KEY, COLUMNS_KEY = "num_attention_heads", "relative_attention_heads"
_AUTO_CLASSES = {
    "AutoModel": "MODEL_MAPPING",
    "AutoModelForMaskedLM": "MODEL_FOR_MASKED_LM_MAPPING",
    "AutoModelForSequenceClassification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
    "AutoModelForMultipleChoice": "MODEL_FOR_MULTIPLE_CHOICE_MAPPING",
    "AutoModelForQuestionAnswering": "MODEL_FOR_QUESTION_ANSWERING_MAPPING",
    "AutoModelForTokenClassification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING",
}
"""Auto class -> where Transformers lists the classes of its types."""


@dataclass(frozen=True)
class LayerSize:
    """Sizes of an encoder layer.

    Attributes:
        heads: attention heads, 0 for none.
        neurons: feed-forward neurons, 0 for none.
        columns: if all layers share one table of position biases: the column of each head.
    """

    heads: int
    neurons: int
    columns: tuple[int, ...] | None = None


class SmallConfig:
    """What the configurations of all small models share; each is also the plain configuration of its type.

    Attributes:
        small_format: version of these settings.
        dense_encoder_weights: weights of the encoder's matrices before pruning; None if unknown.
        refit_biases: the attention's output and the down projection have biases although the type has none.
        first_token_only: a classifier that reads only the first token computes its last layer for that token only.
        shared_layer_config: replaces `per_layer_config` if layers are used several times (ALBERT). Its keys
            are numbers of distinct layers, since Transformers counts each use.
    """

    small_format: int
    dense_encoder_weights: int | None
    refit_biases: bool
    first_token_only: bool
    relative_attention_heads: list | None
    shared_layer_config: dict | None

    def __post_init__(self, **kwargs: Any) -> None:
        layers = self.num_hidden_layers
        if not (type(layers) is int and 0 < layers <= _MOST_LAYERS):  # Transformers counts them one by one
            raise ValueError(f"num_hidden_layers accepts 1 to {_MOST_LAYERS}, not {layers!r}")
        known = (HEADS_KEY, neurons_name(self), COLUMNS_KEY)
        tables = {"per_layer_config": kwargs.get("per_layer_config"), "shared_layer_config": self.shared_layer_config}
        for name, table in tables.items():
            if table is not None:
                _check_per_layer(table, name, known)
        super().__post_init__(**kwargs)
        if self.small_format != FORMAT:
            raise ValueError(f"small_format {self.small_format!r} is not known: this program reads {FORMAT}")
        weights = self.dense_encoder_weights
        if weights is not None and not (type(weights) is int and 0 < weights < 1 << 50):
            raise ValueError(f"dense_encoder_weights accepts a number of weights, not {weights!r}")
        self.layer_sizes()
        if self.model_type.startswith("small_"):
            _register_models(type(self))

    def __getattribute__(self, key: str) -> Any:
        if key in (HEADS_KEY, COLUMNS_KEY, "intermediate_size", "hidden_dim"):
            return self._getattr_without_heterogeneous_validation(key)
        return super().__getattribute__(key)

    def layer_sizes(self) -> list[LayerSize]:
        """The size of every distinct encoder layer, from the bottom to the top.

        Raises:
            ValueError: a size is negative, or larger than in the dense original.
        """
        if architecture_of(self).shared:
            count, said = self.num_hidden_groups * self.inner_group_num, self.shared_layer_config or {}
        else:
            count, said = self.num_hidden_layers, self.to_dict().get("per_layer_config") or {}
        if not (type(count) is int and 0 < count <= _MOST_LAYERS):
            raise ValueError(f"an encoder has 1 to {_MOST_LAYERS} different layers, not {count!r}")
        said = {int(index): sizes for index, sizes in said.items()}
        if surplus := sorted(set(said) - set(range(count))):
            raise ValueError(f"sizes are given for layer {surplus[0]}, but the encoder has layers 0 to {count - 1}")
        return [self._layer_size(index, said.get(index, {})) for index in range(count)]

    def _layer_size(self, index: int, said: Mapping[str, Any]) -> LayerSize:
        neurons_key = neurons_name(self)
        sizes = []
        for key in (HEADS_KEY, neurons_key):
            most, size = getattr(self, key), said.get(key, getattr(self, key))
            if type(most) is not int or most < 1:
                raise ValueError(f"{key} accepts numbers from 1, not {most!r}")
            if type(size) is not int or not 0 <= size <= most:
                raise ValueError(f"{key} of layer {index} accepts 0 to {most}, not {size!r}")
            sizes.append(size)
        columns = said.get(COLUMNS_KEY)
        if columns is not None:
            within = isinstance(columns, list) and all(
                type(column) is int and 0 <= column < self.num_attention_heads for column in columns
            )
            if not within or len(columns) != sizes[0]:
                raise ValueError(
                    f"{COLUMNS_KEY} of layer {index} accepts {sizes[0]} numbers below {self.num_attention_heads}"
                )
            columns = tuple(columns)
        return LayerSize(*sizes, columns)

    @classmethod
    def from_dense(cls, config: PreTrainedConfig, sizes: Sequence[LayerSize], **settings: Any) -> SmallConfig:
        """The configuration of a model with layers of these sizes; the rest is as in the dense (or small) `config`."""
        gone = ("model_type", "architectures", "per_layer_config", "shared_layer_config", "auto_map")
        inherited = {key: value for key, value in config.to_dict().items() if key not in gone}
        layers = {}
        for index, size in enumerate(sizes):
            layers[index] = {HEADS_KEY: size.heads, neurons_name(config): size.neurons}
            if size.columns is not None and size.columns != tuple(range(config.num_attention_heads)):
                layers[index][COLUMNS_KEY] = list(size.columns)
        key = "shared_layer_config" if architecture_of(config).shared else "per_layer_config"
        return cls(**{**inherited, **settings, key: layers})

    def to_diff_dict(self) -> dict[str, Any]:
        """As in Transformers, with the number of layers, which any configuration reads if sizes are given by layer."""
        return {**super().to_diff_dict(), "num_hidden_layers": self.num_hidden_layers}

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> Any:
        """As in Transformers; it also writes the modelling files, for users without emmental."""
        if not self.model_type.startswith("small_"):  # a masked small model is a checkpoint, which only emmental reads
            return super().save_pretrained(save_directory, **kwargs)
        config_class, module = type(self).__name__, Path(MODELLING_FILES[0]).stem
        self.auto_map = {"AutoConfig": f"{module}.{config_class}"}
        for auto, model_class in auto_classes(self.model_type).items():
            self.auto_map[auto] = f"{module}.{model_class.__name__}"
        written = super().save_pretrained(save_directory, **kwargs)
        for name in MODELLING_FILES:
            shutil.copyfile(Path(__file__).with_name(name), Path(save_directory) / name)
        return written


def neurons_name(config: PreTrainedConfig) -> str:
    """The setting that holds the number of feed-forward neurons in a type's configuration."""
    return architecture_of(config).neurons


def _check_per_layer(said: Any, name: str, known: Sequence[str]) -> None:
    """Check the form of a table of sizes before Transformers reads it."""
    if not isinstance(said, Mapping) or not all(isinstance(sizes, Mapping) for sizes in said.values()):
        raise ValueError(f"{name} accepts a table of sizes for each layer")
    for index, sizes in said.items():
        if not str(index).isdecimal():
            raise ValueError(f"{name} accepts numbers of layers, not {index!r}")
        if surplus := set(sizes) - set(known):
            raise ValueError(f"{name} accepts {', '.join(known)} for a layer, not {sorted(map(str, surplus))[0]!r}")


def pooler_option(base_class: type[nn.Module], like: nn.Module) -> dict[str, bool]:
    """Options that build a base model with a pooler if `like` has one; empty if its class has no such option."""
    has_choice = "add_pooling_layer" in inspect.signature(base_class).parameters
    return {"add_pooling_layer": getattr(like, "pooler", None) is not None} if has_choice else {}


class SmallModel:
    """What all small models share; each is also the plain class of its type, with smaller matrices.

    A layer without heads has no attention, only its output's bias; one without neurons only its down bias.
    """

    def __init__(self, config: SmallConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        base = self.base_model
        if base is self:
            make_parts_small(self)
            for layer, size in zip(encoder_layers(self), config.layer_sizes(), strict=True):
                _resize(layer.module, architecture_of(config), size, config)
            return
        setattr(self, self.base_model_prefix, small_class(type(base))(config, **pooler_option(type(base), base)))
        self.post_init()

    @classmethod
    def from_pretrained(cls, source: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As in Transformers, but weights that do not fill the encoder are an error.

        Raises:
            ValueError: the sizes of the configuration do not fit the weights.
        """
        ignore = kwargs.pop("ignore_mismatched_sizes", False)
        model, info = super().from_pretrained(
            source, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
        layers = [layer.name for layer in encoder_layers(model)]
        mismatched = sorted(info.get("mismatched_keys", ()))
        names = {*info.get("missing_keys", ()), *info.get("unexpected_keys", ()), *(key for key, *_ in mismatched)}
        if wrong := sorted(key for key in names if _inside(key, layers)):
            raise ValueError(f"{source}: the sizes in config.json do not fit the weights ({wrong[0]})")
        if mismatched and not ignore:
            key, found, wanted = mismatched[0]
            raise RuntimeError(
                f"{source}: {key} is {tuple(found)} in the folder, but {tuple(wanted)} in the model that was asked "
                "for; with ignore_mismatched_sizes=True such weights start at random"
            )
        return (model, info) if output_loading_info else model


def _inside(key: str, layers: Sequence[str]) -> bool:
    return any(f"{name}." in f".{key}" for name in layers)


@functools.cache
def small_config_class(model_type: str) -> type[SmallConfig]:
    """`bert` -> `SmallBertConfig`: a subclass of `BertConfig` whose `model_type` is `small_bert`."""
    plain = CONFIG_MAPPING[model_type]
    settings = {
        "__module__": __name__,
        "__doc__": f"`{plain.__name__}` with sizes of its own for each layer: see `SmallConfig`.",
        "__annotations__": SmallConfig.__annotations__,
        "model_type": f"small_{model_type}",
        "small_format": FORMAT,
        "dense_encoder_weights": None,
        "refit_biases": False,
        "first_token_only": True,
        "relative_attention_heads": None,
        "shared_layer_config": None,
    }
    return type(f"Small{plain.__name__}", (SmallConfig, plain), settings)


@functools.cache
def small_class(plain: type[nn.Module]) -> type[SmallModel]:
    """The small form of a model class of Transformers, e.g. `BertModel` -> `SmallBertModel`."""
    if issubclass(plain, SmallModel):
        return plain
    config_class = small_config_class(base_model_type(plain.config_class.model_type))

    names = tuple(inspect.signature(plain.forward).parameters)[1:]

    @functools.wraps(plain.forward)
    def forward(self: nn.Module, *args: Any, first_token: bool = False, **kwargs: Any) -> Any:
        if self.base_model is self:
            asks, part = first_token and not is_watched(self), encoder_room(self.config)
        else:
            asks = asks_for_first_token(self, {**dict(zip(names, args, strict=False)), **kwargs})
            part = self.base_model_prefix
        return plain.forward(Asking(self, part) if asks else self, *args, **kwargs)

    members = {
        "__module__": __name__,
        "__doc__": f"`{plain.__name__}` with smaller encoder layers: see `SmallModel`.",
        "__annotations__": {"config": config_class},
        "__signature__": inspect.signature(plain),
        "config_class": config_class,
        "takes_first_token": True,
        "_no_split_modules": [name for each in plain._no_split_modules or () for name in (each, f"Small{each}")],
        "forward": forward,
    }
    return type(f"Small{plain.__name__}", (SmallModel, plain), members)


def plain_class(small: type[nn.Module]) -> type[nn.Module]:
    """The class that a small one was made from, also by the modelling file of a folder; any other is unchanged."""
    return small.__mro__[2] if small.__mro__[1].__name__ == SmallModel.__name__ else small


class ConstantLinear(nn.Module):
    """A linear layer without inputs: its bias for every token, (..., anything) -> (..., out_features)."""

    def __init__(self, out_features: int, bias: bool, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.out_features = out_features
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None

    def forward(self, hidden_states: Tensor) -> Tensor:
        shape = (*hidden_states.shape[:-1], self.out_features)
        return hidden_states.new_zeros(shape) if self.bias is None else self.bias.expand(shape)


class _BareFeedForward(nn.Module):
    """A gated feed-forward block without neurons."""

    def __init__(self, name: str, down: nn.Module) -> None:
        super().__init__()
        self.down_name = name
        self.add_module(name, down)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return getattr(self, self.down_name)(hidden_states)


def _resize(layer: nn.Module, architecture: Architecture, size: LayerSize, config: SmallConfig) -> None:
    """Resize a newly built dense layer in place."""
    rows = size.heads * (config.hidden_size // config.num_attention_heads)
    outputs = {
        QKV: 3 * rows,
        UP: size.neurons * (2 if architecture.gated else 1),
        **dict.fromkeys(HEAD_ROLES[1:], rows),
    }
    inputs = {OUTPUT: rows, DOWN: size.neurons}
    modules = dict(layer.named_modules())
    for role, path in architecture.roles.items():
        if path not in modules:
            continue
        old = modules[path]
        bias = old.bias is not None or (role in inputs and config.refit_biases)
        into, out = inputs.get(role, old.in_features), outputs.get(role, old.out_features)
        where = {"device": old.weight.device, "dtype": old.weight.dtype}
        if role in inputs and into == 0:
            layer.set_submodule(path, ConstantLinear(out, bias, **where))
        elif out and (into, out, bias) != (old.in_features, old.out_features, old.bias is not None):
            layer.set_submodule(path, nn.Linear(into, out, bias, **where))
    attention = layer.get_submodule(architecture.attention)
    for name, count in zip(architecture.head_counters, (size.heads, rows), strict=False):
        if hasattr(attention, name):
            setattr(attention, name, count)
    attention.remove_heads(size.heads, size.columns)
    if size.neurons == 0:
        _remove_neurons(layer, architecture)
    if architecture.pre_norm:
        for left, norm in ((size.heads, architecture.attention_norm), (size.neurons, architecture.feed_forward_norm)):
            if left == 0:
                layer.set_submodule(norm, nn.Identity())


def _remove_neurons(layer: nn.Module, architecture: Architecture) -> None:
    """Leave only the down projection's bias: nothing before it is computed."""
    if architecture.gated:
        block, _, name = architecture.roles[DOWN].rpartition(".")
        layer.set_submodule(block, _BareFeedForward(name, layer.get_submodule(f"{block}.{name}")))
    for path in architecture.before_down:
        layer.set_submodule(path, nn.Identity())


@functools.cache
def auto_classes(model_type: str) -> dict[str, type[nn.Module]]:
    """Auto class -> model class of a plain or small type, for the tasks that the type has."""
    base = base_model_type(model_type)
    found = {
        auto: getattr(transformers, mapping).get(CONFIG_MAPPING[base], None) for auto, mapping in _AUTO_CLASSES.items()
    }
    return {
        auto: plain if base == model_type else small_class(plain) for auto, plain in found.items() if plain is not None
    }


@functools.cache
def _register_models(config_class: type[SmallConfig]) -> None:
    """Tell the Auto classes which models a small configuration has."""
    for auto, model_class in auto_classes(config_class.model_type).items():
        getattr(transformers, auto).register(config_class, model_class, exist_ok=True)


def register_configurations() -> None:
    """Register `small_<type>` with `AutoConfig` for every type. Models follow when the first configuration is made."""
    for model_type in ARCHITECTURES:
        transformers.AutoConfig.register(f"small_{model_type}", small_config_class(model_type), exist_ok=True)


def __getattr__(name: str) -> Any:
    plain = getattr(transformers, name.removeprefix("Small"), None) if name.startswith("Small") else None
    if isinstance(plain, type) and getattr(plain, "model_type", None) in ARCHITECTURES:
        return small_config_class(plain.model_type)
    if isinstance(plain, type) and getattr(getattr(plain, "config_class", None), "model_type", None) in ARCHITECTURES:
        return small_class(plain)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
