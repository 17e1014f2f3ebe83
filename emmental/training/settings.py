"""What one training of a run does: typed values, each named like the flag that sets it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from emmental.flags import Flags


@dataclass(frozen=True)
class TrainSettings:
    """The settings of one training. Fields have the names, types and units of the trainer's flags.

    Attributes:
        by_recipe: names of the fields that the recipe filled in. The others are the user's, or defaults.
    """

    model_type: str
    num_train_epochs: float
    max_steps: int
    warmup_steps: int | None
    learning_rate: float
    gradient_accumulation_steps: int
    per_gpu_train_batch_size: int
    per_gpu_eval_batch_size: int
    bf16: bool
    alpha_ce: float
    alpha_distil: float
    temperature: float
    logging_steps: int
    save_dtype: str
    pruning_method: str
    mask_init: str
    mask_scale: float
    mask_scores_learning_rate: float
    initial_threshold: float
    final_threshold: float
    initial_warmup: int
    final_warmup: int
    final_lambda: float
    global_topk: bool
    global_topk_frequency_compute: int
    by_recipe: tuple[str, ...] = ()

    @classmethod
    def of(cls, flags: Flags, recipe: Mapping[str, Any] | None = None, **fixed: Any) -> TrainSettings:
        """The settings of the flags.

        Args:
            flags: of the command line.
            recipe: flag -> value, for the flags that the user did not give. `--max_steps` replaces its epochs, and
                `--fp16` its bfloat16.
            fixed: values that hold whatever the flags say.
        """
        given = set(flags.explicit)
        if "max_steps" in given:
            given.add("num_train_epochs")
        if flags.fp16:
            given.add("bf16")
        chosen = {name: value for name, value in (recipe or {}).items() if name not in given}
        values = vars(flags) | chosen | fixed
        return cls(**{name: values[name] for name in cls.names()}, by_recipe=tuple(chosen))

    @classmethod
    def names(cls) -> list[str]:
        """The names of the flags that the settings stand for."""
        return [one.name for one in fields(cls) if one.name != "by_recipe"]

    @property
    def trains(self) -> bool:
        """Whether anything is trained. `--num_train_epochs 0` only cuts."""
        return self.num_train_epochs > 0

    def as_flags(self) -> dict[str, Any]:
        """Flag -> value."""
        return {name: getattr(self, name) for name in self.names()}
