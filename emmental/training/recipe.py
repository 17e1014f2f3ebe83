"""`--recipe auto`: the values of flags that the user did not give.

docs/methods.md has the rule as a table.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

from emmental.flags import Flags
from emmental.methods import CUT_METHODS, RECOMMENDED, RECOMMENDED_FOR_FEW, STRUCTURED, UNSTRUCTURED, method_of

if TYPE_CHECKING:
    from emmental.training.facts import DataFacts

MOST_UPDATES, MOST_EPOCHS = 3000, 20.0
DENSE_UPDATES, RECOVERY_UPDATES = 600, 600
HARD_CUT, HARD_CUT_OF_WEIGHTS = 0.15, 0.05
KEEP = {STRUCTURED: 0.25, UNSTRUCTURED: 0.15}
ALL_TOKENS, AUTO_TOKENS = "all", "auto"
"""Values of `--vocabulary` besides a number."""


_FLAGS_OF_ORIGINAL_SCRIPTS = (
    "initial_threshold",
    "final_threshold",
    "final_lambda",
    "initial_warmup",
    "final_warmup",
    "mask_init",
    "mask_scale",
    "regularization",
    "global_topk",
)
"""Flags of the original scripts. A command with one of them and without `--recipe` does what those scripts did."""


def fill_in_recipe(flags: Flags) -> None:
    """Decide recipe, granularity and share from the flags that the user gave."""
    given = flags.explicit
    if "recipe" not in given and any(name in given for name in _FLAGS_OF_ORIGINAL_SCRIPTS):
        flags.recipe = "paper"
    if flags.granularity is None:
        single_weights = flags.recipe == "paper" or "pruning_method" in given or trains_dense(flags)
        flags.granularity = UNSTRUCTURED if single_weights else STRUCTURED
    if flags.keep is None and (flags.recipe != "paper" or flags.granularity != UNSTRUCTURED):
        flags.keep = [KEEP.get(flags.granularity, KEEP[STRUCTURED])]
    prunes = flags.granularity == UNSTRUCTURED and not trains_dense(flags)
    if prunes and flags.recipe == "auto" and "pruning_method" not in given:
        flags.pruning_method = RECOMMENDED.name
    method = method_of(flags.pruning_method)
    if flags.keep and prunes:
        flags.final_threshold = flags.keep[-1]
        # If the threshold is not a share, one threshold for the scores of all matrices decides what stays.
        flags.global_topk = flags.global_topk or not method.by_share
    if method.always_global_topk and flags.granularity == UNSTRUCTURED:
        flags.global_topk = True
        if method.updates_between_rankings and "global_topk_frequency_compute" not in given:
            flags.global_topk_frequency_compute = method.updates_between_rankings


def trains_dense(flags: Flags) -> bool:
    """Whether `--model_type` names a plain type, so that nothing is pruned."""
    return "model_type" in flags.explicit and not flags.model_type.startswith("masked_")


def cuts_weights(flags: Flags) -> bool:
    """Whether a method that `cuts_first` prunes single weights before training: unless the user gives a schedule."""
    schedule = {"initial_threshold", "mask_init", "initial_warmup"} & set(flags.explicit)
    by_information = flags.granularity == UNSTRUCTURED and method_of(flags.pruning_method).cuts_first and not schedule
    return by_information and flags.recipe == "auto" and not trains_dense(flags)


def dense_model_teaches(flags: Flags) -> bool:
    """Whether a dense model, trained first or given, teaches the pruned one."""
    if trains_dense(flags):
        return False
    return flags.recipe == "auto" or flags.granularity == STRUCTURED or bool(flags.dense_first)


def recipe_problems(flags: Flags) -> list[str]:
    """Contradictions among the flags of recipe and budget, a line each."""
    given = flags.explicit
    problems = [*_of_original_scripts(flags), *_untrained_problems(flags), *_vocabulary_problems(flags)]
    if "speedup" in given and "keep" in given:
        problems.append("--speedup replaces --keep; give one of them")
    if flags.keep and any(not 0 < share <= 1 for share in flags.keep):
        shown = " ".join(f"{share:g}" for share in flags.keep)
        problems.append(f"--keep is the share of weights that stays, above 0 and up to 1 (25 % is 0.25), not {shown}")
    elif flags.keep and any(later >= earlier for earlier, later in itertools.pairwise(flags.keep)):
        problems.append(f"--keep accepts falling shares, such as 0.5 0.25 0.1, not {flags.keep}")
    if flags.granularity == UNSTRUCTURED and "speedup" in given and not trains_dense(flags):
        problems.append("--speedup needs --granularity structured: ordinary engines gain no speed from single weights")
    ranks_gates = STRUCTURED in method_of(flags.pruning_method).granularities
    if flags.granularity == STRUCTURED and "pruning_method" in given and not ranks_gates:
        problems.append(
            f"--granularity structured chooses heads and neurons by their Fisher information; omit --pruning_method "
            f"{flags.pruning_method}"
        )
    if trains_dense(flags):
        wrong = [f"--{name}" for name in ("keep", "speedup") if name in given]
        wrong += ["--granularity structured"] if flags.granularity == STRUCTURED else []
        problems += [f"--model_type {flags.model_type} trains dense and contradicts {each}" for each in wrong]
    if len(flags.keep or ()) > 1 and flags.recipe == "paper":
        problems.append("--keep with several shares needs --recipe auto")
    return problems


def _of_original_scripts(flags: Flags) -> list[str]:
    """Flags of the original scripts that say how much stays in a run where `--keep` says it, a line each."""
    names = ("final_threshold", "final_lambda", "regularization")
    wrong = [name for name in names if flags.keep and name in flags.explicit and getattr(flags, name)]
    if "keep" in flags.explicit:
        return [f"--keep replaces --{name}; give one of them" for name in wrong]
    return [f"--{name} is for single weights with --recipe paper; give --keep instead" for name in wrong]


def _untrained_problems(flags: Flags) -> list[str]:
    """What contradicts pruning without training, or before it, a line each."""
    problems, cuts = [], flags.granularity == STRUCTURED or cuts_weights(flags)
    if flags.num_train_epochs == 0 and not cuts:
        problems.append(
            "--num_train_epochs accepts numbers above 0 here; 0 is for heads and neurons, and for single weights by "
            f"--pruning_method {' or '.join(CUT_METHODS)} with --recipe auto"
        )
    elif flags.num_train_epochs == 0 and flags.max_steps > 0:
        problems.append(f"--num_train_epochs 0 trains nothing and contradicts --max_steps {flags.max_steps}; omit one")
    if flags.recipe == "paper" and flags.dense_first and flags.num_train_epochs == 0:
        problems.append("--num_train_epochs 0 with --recipe paper leaves --dense_first nothing to train; omit one")
    if method_of(flags.pruning_method).only_cuts and not (cuts or trains_dense(flags)):
        problems.append(
            f"--pruning_method {flags.pruning_method} prunes before training: give --keep, and omit "
            "--initial_threshold, --mask_init, --initial_warmup and --recipe paper"
        )
    return problems


def _vocabulary_problems(flags: Flags) -> list[str]:
    """Why `--vocabulary` cannot be, a line each."""
    value = flags.vocabulary
    if value == ALL_TOKENS:
        return []
    if value != AUTO_TOKENS and not (value.isdecimal() and int(value) > 0):
        return [f"--vocabulary accepts {AUTO_TOKENS}, {ALL_TOKENS}, or a number of tokens that stay, not {value!r}"]
    problems = []
    if trains_dense(flags):
        problems.append(f"--vocabulary is for pruned models; --model_type {flags.model_type} trains dense: omit one")
    elif not dense_model_teaches(flags):
        problems.append("--vocabulary takes tokens from a dense model; give --dense_first, or omit --recipe paper")
    if flags.alpha_hidden_cos > 0 or flags.alpha_hidden_mse > 0:
        problems.append(
            "--vocabulary changes the tokens of the rows, so hidden states of student and teacher do not match; omit "
            "--alpha_hidden_cos and --alpha_hidden_mse"
        )
    return problems


def dense_rate(facts: DataFacts) -> float:
    """Learning rate of the dense phase."""
    return 1e-4 if facts.hidden_size <= 512 else 3e-5 if facts.hidden_size <= 768 else 2e-5


def recovery_rate(facts: DataFacts, share: float) -> float:
    """Learning rate of the recovery after a cut of heads and neurons that leaves a share of the encoder."""
    return dense_rate(facts) * (2.0 if share <= HARD_CUT else 0.5)


def dense_values(facts: DataFacts) -> dict[str, Any]:
    """Flag -> value of the dense phase."""
    return _common(facts) | {
        "num_train_epochs": _epochs(facts, max(DENSE_UPDATES, facts.updates_per_epoch)),
        "learning_rate": dense_rate(facts),
    }


def structured_values(facts: DataFacts, keep: float) -> dict[str, Any]:
    """Flag -> value of the recovery after heads and neurons are cut down to the share `keep`."""
    dense_updates = math.ceil(dense_values(facts)["num_train_epochs"] * facts.updates_per_epoch)
    return (
        _common(facts)
        | _teaching()
        | {
            "num_train_epochs": _epochs(facts, min(dense_updates / 2, RECOVERY_UPDATES)),
            "learning_rate": recovery_rate(facts, keep),
        }
    )


def unstructured_values(facts: DataFacts, method: str, keep: float) -> dict[str, Any]:
    """Flag -> value of the pruning of single weights by a method, down to the share `keep`."""
    recipe = method_of(method).pruning
    return (
        _common(facts)
        | _teaching()
        | {
            "num_train_epochs": _epochs(facts, recipe.updates if keep >= 0.1 else recipe.updates_below_a_tenth),
            "learning_rate": recipe.rate * dense_rate(facts),
            "mask_init": recipe.mask_init,
            "mask_scale": recipe.mask_scale,
            "mask_scores_learning_rate": recipe.mask_scores_learning_rate,
            "initial_threshold": 1.0,
            "final_threshold": keep,
            "global_topk": recipe.global_topk,
            "final_warmup": recipe.final_warmup,
        }
    )


def cut_weights_values(facts: DataFacts, keep: float) -> dict[str, Any]:
    """Flag -> value of the cut of single weights to the share `keep`, and of the recovery; what is zero stays zero."""
    hard = keep <= HARD_CUT_OF_WEIGHTS
    method = RECOMMENDED_FOR_FEW if hard and facts.memory_for_few else RECOMMENDED
    recipe = method.recovery
    return (
        _common(facts)
        | _teaching()
        | ({} if method is RECOMMENDED else {"pruning_method": method.name})
        | {
            "num_train_epochs": _epochs(facts, recipe.updates if keep >= 0.1 else recipe.updates_below_a_tenth),
            "learning_rate": dense_rate(facts) * (recipe.rate_of_hard_cut if hard else recipe.rate),
            "mask_init": recipe.mask_init,
            "mask_scale": recipe.mask_scale,
            "initial_threshold": keep,
            "final_threshold": keep,
        }
    )


def _common(facts: DataFacts) -> dict[str, Any]:
    return {"per_gpu_train_batch_size": facts.batch_size, "per_gpu_eval_batch_size": 32, "bf16": facts.has_bf16}


def _teaching() -> dict[str, Any]:
    return {"alpha_ce": 0.1, "alpha_distil": 0.9, "temperature": 2.0}


def _epochs(facts: DataFacts, updates: float) -> float:
    """Epochs for about this many updates: whole ones from three up, quarters below."""
    epochs = min(updates, MOST_UPDATES) / facts.updates_per_epoch
    step = 1.0 if epochs >= 3 else 0.25
    return float(min(max(math.ceil(round(epochs / step, 6)) * step, 0.25), MOST_EPOCHS))
