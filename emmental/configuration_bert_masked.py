"""Configuration of a BERT whose encoder is masked."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import BertConfig

from emmental.errors import UserError
from emmental.modules.masked_nn import MASK_INITS, canonical_pruning_method


@strict
class MaskedBertConfig(BertConfig):
    """`BertConfig` and how its encoder is masked.

    Args:
        pruning_method: topK, threshold, sigmoied_threshold, magnitude or l0.
        mask_init: constant, uniform, kaiming or magnitude: how mask scores start that no checkpoint gives.
        mask_scale: scale of that start.
        threshold: the threshold the model predicts with; None keeps every weight (`l0` has no threshold).
        global_boundary: [score, ties per masked layer] of a global top-k, which then replaces `threshold`.

    Raises:
        UserError: an unknown method or start.
    """

    model_type = "masked_bert"

    pruning_method: str = "topK"
    mask_init: str = "constant"
    mask_scale: float | int = 0.0
    threshold: float | int | None = None
    global_boundary: list | None = None

    def __post_init__(self, **kwargs: object) -> None:
        super().__post_init__(**kwargs)
        self.pruning_method = canonical_pruning_method(self.pruning_method)
        if self.mask_init not in MASK_INITS:
            raise UserError(f"mask_init must be one of {', '.join(MASK_INITS)}, not {self.mask_init!r}")

    @classmethod
    def from_dense(cls, config: BertConfig, **masking: object) -> MaskedBertConfig:
        """The masked configuration of a dense (or masked) BERT's: everything as there, `masking` set on top.

        Raises:
            UserError: `config` is not a BERT's.
        """
        if not isinstance(config, BertConfig):
            raise UserError(f"only a BERT can be masked, and {config.model_type!r} is none")
        inherited = {k: v for k, v in config.to_dict().items() if k not in ("model_type", "architectures")}
        return cls(**{**inherited, **masking})
