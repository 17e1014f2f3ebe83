"""What a run will need: disk space before it starts, and time once it knows its pace."""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path

from emmental.training.facts import DataFacts
from emmental.training.phases import DenseTraining, Phase

logger = logging.getLogger(__name__)


def disk_forecast(
    phases: Sequence[Phase], facts: DataFacts, folder: Path, save_steps: int | None, kept: int | None
) -> str:
    """A line about the disk space that the run needs. Warns if the disk is too small.

    Args:
        phases: of the run.
        facts: of data, model and machine.
        folder: of the whole run.
        save_steps: updates between two checkpoints; None: an epoch.
        kept: most checkpoints that are kept, with the one being written; None: all.
    """
    needed, checkpoint = disk_needed(phases, facts, save_steps, kept)
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    if (free := shutil.disk_usage(place).free) < needed:
        logger.warning(
            "the run writes about %.0f MB to %s, where %.0f MB are free: give another --output_dir, or a smaller "
            "--save_total_limit",
            needed / 1e6, folder, free / 1e6,
        )  # fmt: skip
    return f"disk: about {needed / 1e6:.0f} MB in {folder}, of which {checkpoint / 1e6:.0f} MB a checkpoint"


def disk_needed(
    phases: Sequence[Phase], facts: DataFacts, save_steps: int | None, kept: int | None
) -> tuple[int, int]:
    """(most bytes that the run has on the disk at one time, bytes of its largest checkpoint), to a few per cent."""
    total = 0
    for phase in phases:
        if phase.trains:
            plan = phase.plan(facts)
            written = -(-plan.total_updates // (save_steps or plan.updates_per_epoch))
            total += min(written, written if kept is None else kept) * phase.checkpoint_bytes(facts)
        else:
            total += phase.model_bytes(facts)  # the result of a cut
    for _, steps in itertools.groupby(phases, key=attrgetter("folder")):
        total += [*steps][-1].model_bytes(facts)
    return total, max(phase.checkpoint_bytes(facts) for phase in phases)


def work_after(phases: Sequence[Phase], facts: DataFacts) -> list[float]:
    """For each phase: what the run does after it, in updates of this phase. It is rough.

    A cut that needs more rungs takes longer than this says.
    """
    after, found = 0.0, []
    for phase in reversed(phases):
        if isinstance(phase, DenseTraining):
            after += _teacher(phases, facts)
        found.append(after / phase.update_cost())
        after += phase.cost(facts)
    return found[::-1]


def _teacher(phases: Sequence[Phase], facts: DataFacts) -> float:
    """The dense model's answers, which are computed once; a forward pass is a third of an update."""
    taught = next((phase for phase in phases if phase.follows_dense and phase.trains), None)
    return 0.0 if taught is None else min(taught.updates(facts), facts.rows / taught.rows_of_update(facts)) / 3
