"""How much of the encoder stays: a share of its weights, or as many as a speed allows, which is measured once."""

from __future__ import annotations

import logging
import math
import platform
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedModel

from emmental import atomic
from emmental.inference.engines import measure_together
from emmental.latency import seconds_of_each
from emmental.runs.run import Run
from emmental.shrinking import layer_sizes
from emmental.structured.gates import encoder_weights
from emmental.structured.selection import Budget, MakeCandidate, Tune, weight_budget
from emmental.structured.speed import SpeedTable, measure_speed, speed_budget, tuned_price

logger = logging.getLogger(__name__)

SPEED_FILE = "speed.json"


class Target(ABC):
    """How much of the encoder a phase leaves.

    Attributes:
        name: of the model, in tables.
        text: how much stays, for the plan.
        expected_share: about this share of the encoder stays.
        most_left: at most this share stays.
        milder: what prunes less, for advice.
    """

    name: str
    text: str
    expected_share: float
    most_left: float
    milder: ClassVar[str]

    @abstractmethod
    def budget(self, part: Run, model: PreTrainedModel, dense: PreTrainedModel) -> tuple[Budget, str]:
        """The budget of `model`, and its name.

        Args:
            part: the run of the phase.
            model: the one to cut.
            dense: the one that it is compared with.
        """

    def prepare(self, part: Run, model: PreTrainedModel) -> None:  # noqa: B027 - a share needs nothing
        """Measure what must be known before anything is trained.

        Raises:
            UserError: the target is out of reach.
        """


@dataclass(frozen=True)
class ShareTarget(Target):
    """A share of the dense encoder's matrix weights."""

    share: float
    milder: ClassVar[str] = "a larger --keep"

    @property
    def name(self) -> str:
        """As `25.0% kept`."""
        return f"{self.share:.1%} kept"

    @property
    def text(self) -> str:
        """As `25.0% of the encoder stays`."""
        return f"{self.share:.1%} of the encoder stays"

    @property
    def expected_share(self) -> float:
        """The share."""
        return self.share

    most_left = expected_share

    def budget(self, part: Run, model: PreTrainedModel, dense: PreTrainedModel) -> tuple[Budget, str]:
        """A number of weights."""
        share = min(1.0, self.share * encoder_weights(dense) / encoder_weights(model))
        return weight_budget(model, share), f"keep {self.share:g}"


@dataclass(frozen=True)
class SpeedTarget(Target):
    """How many times as fast as dense the model must be, on this machine.

    Attributes:
        speedup: times as fast.
        engine: its name, see `emmental.inference.engines`.
        shape: rows, and tokens of each.
    """

    speedup: float
    engine: str
    shape: tuple[int, int]
    most_left = 1.0
    milder: ClassVar[str] = "a smaller --speedup"

    @property
    def name(self) -> str:
        """As `3 times as fast`."""
        return f"{self.speedup:g} times as fast"

    @property
    def text(self) -> str:
        """As `until it is 3 times as fast`."""
        return f"until it is {self.speedup:g} times as fast"

    @property
    def expected_share(self) -> float:
        """The share of an encoder that takes all the time."""
        return 1 / self.speedup

    def prepare(self, part: Run, model: PreTrainedModel) -> None:
        """Measure the table of milliseconds; it does not depend on the weights."""
        self._budget(part, model)

    def budget(self, part: Run, model: PreTrainedModel, dense: PreTrainedModel) -> tuple[Budget, str]:
        """A number of milliseconds. The last cut tunes its price by timing candidates."""
        budget, file = self._budget(part, model), part.folder / SPEED_FILE
        tune = partial(tuned_price, budget, model, self.speedup, shape=self.shape, timed=self._times)
        name = f"speedup {self.speedup:g} in {self.engine} at {self.shape[0]} x {self.shape[1]}"
        return replace(budget, tune=partial(tune_price_once, part, file, tune)), name

    def _times(self, models: Sequence[PreTrainedModel], batch: int, length: int) -> list[float]:
        """Median milliseconds of each model in the engine; the models take turns."""
        seconds = seconds_of_each(len(models))
        return [*measure_together(dict(enumerate(models)), batch, length, self.engine, seconds=seconds).values()]

    def _budget(self, part: Run, model: PreTrainedModel) -> Budget:
        """Rank 0 measures the table once and writes it to the output folder. A resumed run reads it."""
        file, here = part.folder / SPEED_FILE, platform.node()
        sizes = _sizes(model)
        key = {
            "type": model.config.model_type,
            "width": model.config.hidden_size,
            "sizes": sizes,
            "shape": list(self.shape),
            "engine": self.engine,
        }
        with part.processes.main_first():
            if part.processes.is_main and measured_speed(file, key, len(sizes)) is None:
                table = measure_speed(model, *self.shape, self._times)
                part.output.write_json(SPEED_FILE, {"machine": here, "of": key, "table": asdict(table)})
                for line in table.lines():
                    logger.info("%s", line)
            elif part.processes.is_main and (elsewhere := atomic.read_object(file).get("machine", here)) != here:
                logger.warning(
                    "%s was measured on another machine (%r); --overwrite_output_dir measures again", file, elsewhere
                )
        return speed_budget(measured_speed(file, key, len(sizes)), model, self.speedup, "--speedup")


def tune_price_once(part: Run, file: Path, tune: Tune, candidate: MakeCandidate, price: float) -> float:
    """The price that rank 0 found, kept in `speed.json`: a resumed run and the other ranks read it there."""
    first = f"{_sizes(candidate(price))} for {price!r} ms"
    with part.processes.main_first():
        if part.processes.is_main and tuned_before(file, first) is None:
            tuned = tune(candidate, price)
            stored = atomic.read_object(file)
            known = stored.get("settled") if isinstance(stored.get("settled"), dict) else {}
            part.output.write_json(SPEED_FILE, stored | {"settled": known | {first: tuned}})
    tuned = tuned_before(file, first)
    assert tuned is not None
    return tuned


def tuned_before(file: Path, first: str) -> float | None:
    """The price that was found for a first candidate; None if it is missing or damaged."""
    try:
        price = float(atomic.read_object(file)["settled"][first])
    except (LookupError, TypeError, ValueError, OverflowError):
        return None
    return price if math.isfinite(price) and price >= 0 else None


def _sizes(model: PreTrainedModel) -> list[list[int]]:
    return [[size.heads, size.neurons] for size in layer_sizes(model)]


def measured_speed(file: Path, key: dict[str, Any], layers: int) -> SpeedTable | None:
    """The table that was measured for `key`; None if it is missing or damaged.

    Args:
        layers: how many the model has.
    """
    stored = atomic.read_object(file)
    try:
        return SpeedTable.of(stored.get("table"), layers) if stored.get("of") == key else None
    except ValueError:
        return None
