"""The masked form of any encoder of Transformers: its own classes, with masked linear layers in the encoder.

`MaskedRobertaModel`, `MaskedRobertaConfig` and so on are attributes of this module, made at their first use. Importing
it registers `masked_<type>` with `AutoConfig` for every type in `emmental/architectures.py`. The model classes of a
type follow when its first configuration is made, because modelling code takes seconds to import.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import transformers
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from emmental import small_models
from emmental.architectures import ARCHITECTURES, architecture_of, base_model_type, encoder_linears
from emmental.errors import UserError
from emmental.methods import MASK_INITS, canonical_pruning_method
from emmental.modules.masked_nn import MaskedLinear, refuse_tracing
from emmental.patching import mask_linears, set_threshold
from emmental.small_models import auto_classes, pooler_option


class MaskedConfig:
    """What the configurations of all masked models share; each is also the plain configuration of its type.

    Attributes:
        pruning_method: one of `emmental.methods.PRUNING_METHODS`.
        mask_init: constant, uniform, kaiming or magnitude: how mask scores start if no checkpoint has them.
        mask_scale: scale of that start.
        threshold: the threshold the model predicts with; None keeps every weight (`l0` has no threshold).
        global_boundary: [score, ties per masked layer] of a global top-k, which then replaces `threshold`.
    """

    pruning_method: str
    mask_init: str
    mask_scale: float | int
    threshold: float | int | None
    global_boundary: list | None

    def __post_init__(self, **kwargs: object) -> None:
        super().__post_init__(**kwargs)
        self.pruning_method = canonical_pruning_method(self.pruning_method)
        if self.mask_init not in MASK_INITS:
            raise UserError(f"mask_init must be one of {', '.join(MASK_INITS)}, not {self.mask_init!r}")
        _register_models(type(self))

    @classmethod
    def from_dense(cls, config: PreTrainedConfig, **masking: object) -> MaskedConfig:
        """The masked configuration of a dense (or masked) model: its own settings, and `masking`.

        Raises:
            UserError: `config` is of another type.
        """
        known = cls.model_type.removeprefix("masked_")
        if config.model_type.removeprefix("masked_") != known:
            raise UserError(f"{cls.__name__} masks models of type {known!r}, not {config.model_type!r}")
        inherited = {k: v for k, v in config.to_dict().items() if k not in ("model_type", "architectures")}
        return cls(**{**inherited, **masking})

    def to_plain(self) -> PreTrainedConfig:
        """The configuration of the plain model: the same without the settings of masks."""
        gone = {*MaskedConfig.__annotations__, "model_type", "architectures", "transformers_version", "dtype"}
        plain = CONFIG_MAPPING[self.model_type.removeprefix("masked_")]
        return plain(**{key: value for key, value in self.to_dict().items() if key not in gone})


def masked_config(config: PreTrainedConfig, **masking: object) -> MaskedConfig:
    """The masked configuration of a dense, small or masked model of any type: see `MaskedConfig.from_dense`.

    Raises:
        UnknownArchitectureError: a type without an entry in `emmental/architectures.py`.
    """
    architecture_of(config)
    return masked_config_class(config.model_type.removeprefix("masked_")).from_dense(config, **masking)


@functools.cache
def masked_config_class(model_type: str) -> type[MaskedConfig]:
    """`bert` -> `MaskedBertConfig`: a subclass of `BertConfig` whose `model_type` is `masked_bert`.

    `small_bert` -> `MaskedSmallBertConfig`, likewise.
    """
    plain = CONFIG_MAPPING[model_type]
    settings = {
        "__module__": __name__,
        "__doc__": f"`{plain.__name__}` and how its encoder is masked: see `MaskedConfig`.",
        "__annotations__": MaskedConfig.__annotations__,
        "model_type": f"masked_{model_type}",
        "pruning_method": "topK",
        "mask_init": "constant",
        "mask_scale": 0.0,
        "threshold": None,
        "global_boundary": None,
    }
    return strict(type(f"Masked{plain.__name__}", (MaskedConfig, plain), settings))


class MaskedModel:
    """What all masked models share: mask scores, initialised if no checkpoint has them, and frozen embeddings.

    Each is also the plain class of its type, with every linear layer of the encoder masked. Pooler and head train
    unmasked. `forward` takes a `threshold` too.
    """

    _keys_to_ignore_on_load_missing = (r"mask_scores$",)

    def __init__(self, config: MaskedConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        base = self.base_model
        if base is self:
            chosen = encoder_linears(self)
            mask_linears(
                self,
                lambda name, _: name in chosen,
                pruning_method=config.pruning_method,
                mask_init=config.mask_init,
                mask_scale=config.mask_scale,
            )
            set_threshold(self, config.threshold, config.global_boundary)
        else:
            # Transformers initialises missing weights through the nearest PreTrainedModel above them. A plain base
            # there would leave the mask scores uninitialised.
            setattr(self, self.base_model_prefix, masked_class(type(base))(config, **pooler_option(type(base), base)))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MaskedLinear):
            module.reset_mask_scores()

    def initialize_weights(self) -> None:
        """As in Transformers, which calls it for new and for loaded models. This one also freezes the embeddings."""
        super().initialize_weights()
        self.base_model.embeddings.requires_grad_(False)


@functools.cache
def masked_class(plain: type[nn.Module]) -> type[MaskedModel]:
    """The masked form of a model class of Transformers, e.g. `BertModel` -> `MaskedBertModel`."""
    config_class = masked_config_class(plain.config_class.model_type)
    members = {
        "__module__": __name__,
        "__doc__": f"`{plain.__name__}` with a masked encoder: see `MaskedModel`.",
        "__annotations__": {"config": config_class},
        "config_class": config_class,
        "forward": _with_threshold(plain.forward),
    }
    return type(f"Masked{plain.__name__}", (MaskedModel, plain), members)


def unmasked_class(masked: type[nn.Module]) -> type[nn.Module]:
    """The class that a masked one was made from; any other class is returned unchanged."""
    return masked.__mro__[2] if issubclass(masked, MaskedModel) else masked


def _with_threshold(forward: Callable[..., Any]) -> Callable[..., Any]:
    """`forward` with a keyword `threshold`: when given, it becomes the model's threshold before the call."""

    @functools.wraps(forward)
    def masked_forward(self: nn.Module, *args: Any, threshold: float | None = None, **kwargs: Any) -> Any:
        refuse_tracing(self)
        if threshold is not None:
            set_threshold(self, threshold)
        return forward(self, *args, **kwargs)

    signature = inspect.signature(forward)
    keyword = inspect.Parameter("threshold", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=float | None)
    named, rest = [], []
    for parameter in signature.parameters.values():
        (rest if parameter.kind is inspect.Parameter.VAR_KEYWORD else named).append(parameter)
    masked_forward.__signature__ = signature.replace(parameters=[*named, keyword, *rest])
    return masked_forward


@functools.cache
def _register_models(config_class: type[MaskedConfig]) -> None:
    """Register the models of a masked configuration with the Auto classes."""
    for auto, unmasked in auto_classes(config_class.model_type.removeprefix("masked_")).items():
        getattr(transformers, auto).register(config_class, masked_class(unmasked), exist_ok=True)


def _register_configurations() -> None:
    for model_type in [name for known in ARCHITECTURES for name in (known, f"small_{known}")]:
        AutoConfig.register(f"masked_{model_type}", masked_config_class(model_type), exist_ok=True)


small_models.register_configurations()
_register_configurations()


def __getattr__(name: str) -> Any:
    inner = name.removeprefix("Masked")
    known = (
        getattr(small_models if inner.startswith("Small") else transformers, inner, None) if inner != name else None
    )
    config_class = known if hasattr(known, "model_type") else getattr(known, "config_class", None)
    if not isinstance(known, type) or base_model_type(getattr(config_class, "model_type", "")) not in ARCHITECTURES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return masked_config_class(known.model_type) if known is config_class else masked_class(known)
