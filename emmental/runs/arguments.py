"""Flags that both trainers have, and their checks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType

from emmental.flags import Flag, Flags, flag, switch

EMPTY: Mapping[str, str] = MappingProxyType({})


def optimization_flags(
    accumulation: int, learning_rate: float, epsilon: float, max_grad_norm: float, by_recipe: Mapping[str, str] = EMPTY
) -> tuple[Flag, ...]:
    """Flags of the optimizer and its precision, with the defaults of a program.

    Args:
        by_recipe: name -> what the program's recipe takes, see `Flag`.
    """
    return (
        flag("max_steps", "number of updates, instead of epochs", -1),
        flag("gradient_accumulation_steps", "batches of one update", accumulation, at_least=1),
        flag(
            "learning_rate",
            "of the weights, after the warm-up",
            learning_rate,
            at_least=0,
            by_recipe=by_recipe.get("learning_rate", ""),
        ),
        flag("weight_decay", "weight decay, except on biases, LayerNorms and mask scores", 0.0, at_least=0),
        flag("adam_epsilon", "epsilon of AdamW", epsilon, above_zero=True),
        flag("max_grad_norm", "clip gradients to this norm; 0: no clipping", max_grad_norm, at_least=0),
        switch("fp16", "mixed precision in float16 with loss scaling"),
        flag(
            "fp16_opt_level",
            "O0 is float32; O1, O2 and O3 are all torch.amp",
            "O1",
            accepts=("O0", "O1", "O2", "O3"),
            changes_result=False,
        ),
        switch("bf16", "mixed precision in bfloat16", by_recipe=by_recipe.get("bf16", "")),
    )


def run_flags(seed: int, kept: int | None, what_is_kept: str) -> tuple[Flag, ...]:
    """Flags of a run as a whole, with the defaults of a program."""
    return (
        switch(
            "accept_changes",
            "resume even if flags that change the result have other values",
            changes_result=False,
        ),
        flag("save_total_limit", what_is_kept, kept, int, at_least=1, changes_result=False),
        flag("seed", "seed of everything random", seed, at_least=0),
        flag(
            "threads",
            "CPU threads; default: as many as cores, CPU quota and OMP_NUM_THREADS allow",
            type=int,
            at_least=1,
            changes_result=False,
        ),
        flag("local_rank", "set by torchrun through LOCAL_RANK", -1, changes_result=False),
    )


def distillation_flags(ce: str, by_recipe: str = "") -> tuple[Flag, ...]:
    """Flags of learning from a teacher. Of `--alpha_ce`: `ce` is the help text, `by_recipe` what the recipe takes."""
    return (
        flag("alpha_ce", ce, 0.5, at_least=0, by_recipe=by_recipe),
        flag("temperature", "temperature of the distillation", 2.0, above_zero=True),
    )


def derive(flags: Flags) -> None:
    """Set the flags whose value the environment or another flag decides."""
    given = os.environ.get("LOCAL_RANK", "")
    flags.local_rank = int(given) if given.isdecimal() else flags.local_rank
    if flags.fp16_opt_level == "O0":
        flags.fp16 = False


def common_problems(flags: Flags) -> list[str]:
    """Mistakes in single flags, and in those that both trainers have, a line each."""
    problems = list(flags.problems())
    if flags.seed >= 2**32:
        problems.append(f"--seed accepts numbers below 4294967296, not {flags.seed}")
    for name in ("output_dir", "dump_path"):
        if not _is_utf8(getattr(flags, name, None) or ""):
            problems.append(f"--{name} accepts names in UTF-8, which model cards and logs can hold; rename the folder")
    if flags.max_steps != -1 and flags.max_steps < 1:
        problems.append(f"--max_steps accepts a number of updates from 1 (or -1: by epochs), not {flags.max_steps}")
    if flags.fp16 and flags.bf16:
        problems.append("--fp16 and --bf16 exclude each other; give one")
    return problems


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # how Python shows bytes of another encoding in file names
        return False
    return True
