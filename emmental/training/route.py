"""Decides the route of a run: a list of phases, from the flags and the facts of data, model and machine.

Nothing that runs later asks which recipe, granularity or flag led there.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from decimal import ROUND_UP, Context, Decimal
from pathlib import Path
from typing import Any

import torch

from emmental.errors import UserError
from emmental.flags import Flags
from emmental.inference.engines import why_not_timed
from emmental.methods import RECOMMENDED, Method, method_of
from emmental.modules.binarizer import count_kept
from emmental.training.budgets import ShareTarget, SpeedTarget, Target
from emmental.training.facts import DataFacts
from emmental.training.phases import (
    CutHeadsAndNeurons,
    CutSingleWeights,
    DenseTraining,
    FewerTokens,
    FinePruning,
    MaskedRecovery,
    Phase,
    Recovery,
)
from emmental.training.phases.cut import Cut, fewest_rows
from emmental.training.phases.fewer_tokens import FEWEST_ROWS, tokens_left
from emmental.training.plan import plan_updates
from emmental.training.recipe import (
    ALL_TOKENS,
    AUTO_TOKENS,
    HARD_CUT,
    STRUCTURED,
    cut_weights_values,
    cuts_weights,
    dense_model_teaches,
    dense_values,
    recovery_rate,
    structured_values,
    trains_dense,
    unstructured_values,
)
from emmental.training.settings import TrainSettings

DENSE_FOLDER, KEEP_FOLDER = "dense", "keep-"
LOG_ENTRIES = 40


def route(flags: Flags, facts: DataFacts) -> list[Phase]:
    """The phases of a run, in order.

    Args:
        flags: of the command line.
        facts: of data, model and machine.

    Raises:
        UserError: the run cannot work.
    """
    folder = Path(flags.output_dir)
    if trains_dense(flags):
        values = dense_values(facts) if flags.recipe == "auto" else {}
        phases: list[Phase] = [DenseTraining(folder, TrainSettings.of(flags, values))]
    elif not dense_model_teaches(flags):
        saved = {} if facts.saved_method is None else {"pruning_method": facts.saved_method}
        phases = [FinePruning(folder, TrainSettings.of(flags, saved), _target_of_schedule(flags), follows_dense=False)]
    else:
        steps = [*itertools.chain(*(_steps_to(*each, flags, facts) for each in _targets(flags, folder)))]
        phases = [*_dense_first(flags, facts, folder, steps[-1].settings), *_fewer_tokens(flags, facts, steps)]
    for phase in phases:
        updates = phase.updates(facts)
        phase.settings = replace(phase.settings, logging_steps=log_interval(flags, updates))
    _refuse_impossible(phases, flags, facts)
    return phases


def without_effect(phases: list[Phase], flags: Flags) -> list[str]:
    """Flags that the user gave and that change nothing in this run, with the reason."""
    last = phases[-1]
    reasons = {
        "no teacher": (
            not last.follows_dense and flags.teacher_name_or_path is None,
            ("temperature", "alpha_ce", "alpha_distil"),
        ),
        "no --speedup": (flags.speedup is None, ("speedup_batch_size", "speedup_length", "speedup_engine")),
        "no --fp16": (not flags.fp16, ("fp16_opt_level",)),
        "on a CPU it is slower than float32": (flags.fp16 and not torch.cuda.is_available(), ("fp16",)),
        "no --push_to_hub": (not flags.push_to_hub, ("hub_model_id",)),
        **{reason: (True, names) for reason, names in last.flags_without_effect().items()},
    }
    return [
        f"--{name} ({reason})"
        for reason, (holds, names) in reasons.items()
        for name in names
        if holds and name in flags.explicit
    ]


def log_interval(flags: Flags, updates: int) -> int:
    """Updates between two log entries: `--logging_steps`, or fewer if the recipe decides."""
    if flags.recipe != "auto" or "logging_steps" in flags.explicit:
        return flags.logging_steps
    return max(1, min(flags.logging_steps, updates // LOG_ENTRIES))


def plan_lines(phases: list[Phase], flags: Flags, facts: DataFacts) -> list[str]:
    """What the run will do: what the recipe decided, a line for each phase, and schedules.

    The learning rate stands in the line of each phase.
    """
    last = phases[-1].settings
    filled = [f"--{name} {getattr(last, name)}" for name in last.by_recipe if name != "learning_rate"]
    filled = filled if flags.recipe == "auto" else []
    lines = [f"filled in by --recipe auto: {', '.join(filled)}"] if filled else []
    lines += [f"phase {number}, {phase.describe(facts)}" for number, phase in enumerate(phases, 1)]
    if phases[-1].shows_schedule:
        lines += phases[-1].plan(facts).lines()
    idle = without_effect(phases, flags)
    return [*lines, f"without effect here: {', '.join(idle)}"] if idle else lines


def _target_of_schedule(flags: Flags) -> Target | None:
    """The share at the end of a schedule; None if scores decide how much stays."""
    if flags.keep:
        return ShareTarget(flags.keep[-1])
    by_share = flags.global_topk or method_of(flags.pruning_method).by_share
    return ShareTarget(flags.final_threshold) if by_share else None


def _targets(flags: Flags, folder: Path) -> list[tuple[Target | None, Path]]:
    """The target and folder of every pruned model, the largest first. A single model is in the run's own folder."""
    if flags.speedup is not None:
        shape = flags.speedup_batch_size, flags.speedup_length
        return [(SpeedTarget(flags.speedup, flags.speedup_engine, shape), folder)]
    if len(flags.keep or ()) < 2:
        return [(_target_of_schedule(flags), folder)]
    return [(ShareTarget(share), folder / f"{KEEP_FOLDER}{share:.12g}") for share in flags.keep]


def _dense_first(flags: Flags, facts: DataFacts, folder: Path, later: TrainSettings) -> list[Phase]:
    """The training of the dense model. Flags about its length and rate count for the pruning, not here."""
    if flags.dense_first is False:
        return []
    values: dict[str, Any] = {}
    if flags.recipe == "auto":
        decided_by_recipe = {"num_train_epochs", "max_steps", "learning_rate", "warmup_steps"}
        values = dense_values(facts) | {"warmup_steps": None, "max_steps": -1}
        values = {
            name: value for name, value in values.items() if name in decided_by_recipe or name not in flags.explicit
        }
    values |= {"model_type": facts.model_type, "alpha_ce": 0.5, "alpha_distil": 0.5}
    values["save_dtype"] = "float32"  # pruning starts from the unrounded weights
    settings = replace(later, by_recipe=(), **values)
    return [
        DenseTraining(folder / DENSE_FOLDER, settings, comes_first=True, unless_fine_tuned=flags.dense_first is None)
    ]


def _fewer_tokens(flags: Flags, facts: DataFacts, steps: list[Phase]) -> list[Phase]:
    """The phases after the dense model, with `--vocabulary` from fewer tokens. The first folder holds these."""
    if flags.vocabulary == ALL_TOKENS:
        return steps
    first, left = steps[0], tokens_left(flags.vocabulary, facts)
    steps = [FewerTokens(first.folder, first.settings, size=flags.vocabulary), *steps]
    for phase in steps:
        phase.tokens_left = left
    return steps


def _steps_to(target: Target | None, folder: Path, flags: Flags, facts: DataFacts) -> list[Phase]:
    """The phases from the dense model, or from the pruned one before it, to a target."""
    by_recipe = flags.recipe == "auto"
    if flags.granularity == STRUCTURED:
        return _heads_and_neurons(target, folder, flags, facts)
    if cuts_weights(flags):
        fixed = {"initial_threshold": target.share, "final_threshold": target.share}
        settings = TrainSettings.of(flags, cut_weights_values(facts, target.share), **fixed)
        settings = _with_unlabelled(settings, facts)
        cut = CutSingleWeights(folder, settings, target, recovers=settings.trains)
        return [cut, MaskedRecovery(folder, settings, target)] if settings.trains else [cut]
    if not by_recipe:
        return [FinePruning(folder, TrainSettings.of(flags), target)]
    values = unstructured_values(facts, flags.pruning_method, target.share)
    settings = TrainSettings.of(flags, values, final_threshold=target.share)
    return [FinePruning(folder, _with_unlabelled(settings, facts), target)]


def _heads_and_neurons(target: Target, folder: Path, flags: Flags, facts: DataFacts) -> list[Phase]:
    by_recipe, hard_rate = flags.recipe == "auto", None
    values = structured_values(facts, target.expected_share) if by_recipe else {}
    if flags.speedup is not None and by_recipe:
        values["learning_rate"] = recovery_rate(facts, 1.0)
        hard_rate = None if "learning_rate" in flags.explicit else recovery_rate(facts, HARD_CUT)
    settings = TrainSettings.of(flags, values, model_type=facts.model_type)
    settings = _with_unlabelled(settings, facts) if by_recipe else settings
    cut = CutHeadsAndNeurons(folder, settings, target, recovers=settings.trains)
    return [cut, Recovery(folder, settings, target, hard_rate)] if settings.trains else [cut]


def _with_unlabelled(settings: TrainSettings, facts: DataFacts) -> TrainSettings:
    """With `--unlabeled_file`, the same number of updates as without."""
    if facts.rows <= facts.examples or not settings.trains:
        return settings
    return replace(settings, max_steps=plan_updates(settings, facts.examples, facts.processes).total_updates)


def _refuse_impossible(phases: list[Phase], flags: Flags, facts: DataFacts) -> None:
    """Check what the flags alone do not show.

    Raises:
        UserError: a schedule, a share, a length, the rows or the memory do not fit.
    """
    for phase in phases:
        if phase.trains and (problem := phase.plan(facts).problem()):
            raise UserError(problem)
        if isinstance(phase, Cut) and facts.examples < fewest_rows(facts.processes):
            fewest = fewest_rows(facts.processes)
            raise UserError(
                f"--granularity {flags.granularity} needs {fewest} training rows or more, not {facts.examples}"
            )
        if isinstance(phase, FewerTokens) and phase.size == AUTO_TOKENS and facts.examples < FEWEST_ROWS:
            raise UserError(
                f"--vocabulary auto needs {FEWEST_ROWS} training rows or more, not {facts.examples}; give a number"
            )
        if isinstance(phase, CutSingleWeights):
            _refuse_too_little_memory(method_of(phase.method), facts)
    if flags.speedup is not None and (reason := why_not_timed(flags.speedup_engine)):
        raise UserError(f"--speedup_engine {flags.speedup_engine}: {reason}")
    if flags.speedup is not None and flags.speedup_length > facts.positions:
        raise UserError(
            f"--speedup_length {flags.speedup_length} is more than the {facts.positions} positions of {facts.model}"
        )
    if flags.keep and count_kept(min(flags.keep), facts.encoder_weights) < 1:
        least = Context(prec=2, rounding=ROUND_UP).divide(Decimal(1), Decimal(facts.encoder_weights))
        raise UserError(
            f"--keep {min(flags.keep):g} is less than one of the {facts.encoder_weights:,} encoder weights of "
            f"{facts.model}; give {least:g} or more"
        )


def _refuse_too_little_memory(method: Method, facts: DataFacts) -> None:
    needed, there = facts.memory_to_cut(method), facts.memory
    if needed > there:
        raise UserError(
            f"--pruning_method {method.name} needs {needed / 1e9:.0f} GB of memory for this encoder, and this machine "
            f"has {there / 1e9:.0f} GB; give --pruning_method {RECOMMENDED.name}"
        )
