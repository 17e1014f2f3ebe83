"""Names of pruning methods, starts of mask scores, and penalties. It imports nothing slow, for the command lines."""

from __future__ import annotations

from emmental.errors import UserError

PRUNING_METHODS = ("topK", "threshold", "sigmoied_threshold", "magnitude", "l0", "fisher")
MASK_INITS = ("constant", "uniform", "kaiming", "magnitude")
FRACTION_METHODS = ("topK", "magnitude", "fisher")
"""Methods whose threshold is the fraction of weights that stay."""
BRAIN_SURGEON = "brain_surgeon"
CUT_METHODS = ("fisher", BRAIN_SURGEON)
"""Methods that can prune single weights before training. What the brain surgeon keeps is trained as with `fisher`."""
UNLEARNED_METHODS = ("magnitude", *CUT_METHODS)
"""Methods without scores that an optimizer learns."""
SCORE_METHODS = ("threshold", "sigmoied_threshold", "l0")
"""Methods whose scores decide how many weights stay, unless the user asks for a share."""
GLOBAL_TOPK_METHODS = ("topK", "threshold", "fisher")
REGULARIZATIONS = ("l1", "l0")


def mask_method(name: str) -> str:
    """The method of the masked model that `--pruning_method` trains."""
    return "fisher" if name == BRAIN_SURGEON else name


def canonical_pruning_method(name: str) -> str:
    """The method's usual spelling. Any case is accepted, and `sigmoid_threshold` for `sigmoied_threshold`.

    Raises:
        UserError: an unknown method.
    """
    spellings = {method.lower(): method for method in PRUNING_METHODS} | {"sigmoid_threshold": "sigmoied_threshold"}
    if name.lower() not in spellings:
        raise UserError(f"pruning_method must be one of {', '.join(PRUNING_METHODS)}, not {name!r}")
    return spellings[name.lower()]
