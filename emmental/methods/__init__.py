"""Pruning methods: one class each, and the registry. It imports nothing slow, for the command lines.

To add a method, write its class in a file here and add a line to `METHODS`.
"""

from __future__ import annotations

from emmental.errors import UserError
from emmental.methods.brain_surgeon import BrainSurgeon
from emmental.methods.fisher import Fisher
from emmental.methods.l0 import L0
from emmental.methods.magnitude import Magnitude
from emmental.methods.method import (
    MASK_INITS,
    REGULARIZATIONS,
    STRUCTURED,
    UNSTRUCTURED,
    Method,
    PruningRecipe,
    RecoveryRecipe,
)
from emmental.methods.movement import Movement
from emmental.methods.soft_movement import ScoreThreshold, SoftMovement

__all__ = [
    "CUT_METHODS",
    "MASK_INITS",
    "METHODS",
    "PRUNING_METHODS",
    "RECOMMENDED",
    "RECOMMENDED_FOR_FEW",
    "REGULARIZATIONS",
    "STRUCTURED",
    "UNSTRUCTURED",
    "Method",
    "PruningRecipe",
    "RecoveryRecipe",
    "canonical_pruning_method",
    "method_of",
]

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Movement(),
        ScoreThreshold(),
        SoftMovement(),
        Magnitude(),
        L0(),
        Fisher(),
        BrainSurgeon(),
    )
}
"""Name -> method, for `--pruning_method`."""
RECOMMENDED, RECOMMENDED_FOR_FEW = METHODS[Fisher.name], METHODS[BrainSurgeon.name]
"""What `--recipe auto` takes for single weights, and where few of them stay."""
PRUNING_METHODS = tuple(name for name, method in METHODS.items() if not method.only_cuts)
"""Names of the methods that a masked model may have."""
CUT_METHODS = tuple(name for name, method in METHODS.items() if method.cuts_first)
"""Names of the methods that can prune before training."""


def method_of(name: str) -> Method:
    """The method that `name` means, in any case and any of its spellings.

    Raises:
        UserError: an unknown method.
    """
    return _found(name, tuple(METHODS))


def canonical_pruning_method(name: str) -> str:
    """The name of a masked model's method. Any case is accepted, and `sigmoid_threshold` for `sigmoied_threshold`.

    Raises:
        UserError: an unknown method, or one that only cuts.
    """
    return _found(name, PRUNING_METHODS).name


def _found(name: str, accepted: tuple[str, ...]) -> Method:
    if name in accepted:
        return METHODS[name]
    for one in accepted:
        if name.lower() in {spelling.lower() for spelling in (one, *METHODS[one].spellings)}:
            return METHODS[one]
    raise UserError(f"pruning_method must be one of {', '.join(accepted)}, not {name!r}")
