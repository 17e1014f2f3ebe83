"""Data that int8 is fitted to, and the forms of int8 among which it chooses. It needs no other package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

CALIBRATION_ROWS, CALIBRATION_TOKENS = 128, 128
"""Most rows that int8 is calibrated on, and most tokens of each."""
DYNAMIC, STATIC, MIXED = "dynamic", "static", "mixed"
FORMS = {DYNAMIC: "dynamic", STATIC: "static", MIXED: "dynamic, one layer in fp32"}
"""Form of int8 -> its name for people. Dynamic: scales are computed for each batch; static: they are fixed."""


@dataclass(frozen=True)
class Calibration:
    """Data that int8 is fitted to, and how its form is chosen.

    Attributes:
        batches: of the model's inputs, each (batch, length) int64; more take longer. Without any, int8 is dynamic.
        forms: names among `FORMS` that are tried.
        accepts: whether the model of a file is good enough; None: every one is.
    """

    batches: Sequence[Mapping[str, Tensor]] = ()
    forms: Sequence[str] = tuple(FORMS)
    accepts: Callable[[Path], bool] | None = None


NO_DATA = Calibration()
