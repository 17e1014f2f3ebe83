"""The stages of a task's cascade, from the folder of a finished training: `rows` and `models`.

Every model runs in ONNX Runtime fp32 with one thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emmental.cascade.building import cheapest_first
from emmental.cascade.models import Source, WrittenStage, read_source, write_bag_of_words, write_stages
from emmental.cascade.promise import split_rows
from emmental.cascade.rows import Rows, read_rows
from emmental.errors import UserError

ENGINE, THREADS, SEED = "onnx", 1, 0


@dataclass(frozen=True)
class TaskStages:
    """What a cascade of a task is made of.

    Attributes:
        calibrate, dev: rows that nothing was trained on.
        stages: a bag of words and the run's models, the cheapest first; with the logits of the rows to calibrate.
        milliseconds: name of a time, see `emmental.cascade.measuring` -> of each stage.
        peers: other models, each alone.
        last: the last stage's model.
    """

    calibrate: Rows
    dev: Rows
    stages: list[WrittenStage]
    milliseconds: dict[str, list[float]]
    peers: list[WrittenStage]
    last: Source


def task_stages(folder: Path, place: Path, peers: Sequence[Path] = ()) -> TaskStages:
    """Write the stages into `place`, an empty folder, and ask them.

    Args:
        folder: with `rows` (`experiments.cascade.rows`) and `models` (the trainer).
        peers: folders of other models of the same classes.

    Raises:
        UserError: the training is not finished, or a peer has other classes.
    """
    models = folder / "models"
    if not (models / "summary.json").is_file():
        raise UserError(f"{models} holds no finished training; run.sh trains")
    train, calibrate, dev = (read_rows(folder / "rows" / f"{name}.csv", "") for name in ("train", "calibrate", "dev"))
    pruned = sorted(models.glob("keep-*")) or [models]
    sources = [read_source(one) for one in (*pruned, models / "dense")]
    others = [read_source(one) for one in peers]
    design, _ = split_rows(len(calibrate.texts), SEED)
    given = ([ENGINE], calibrate.texts, design, THREADS)
    for name in ("stages", "peers"):
        (place / name).mkdir()
    written = write_stages(sources, place / "stages", *given)
    words = write_bag_of_words(place / "words", train, calibrate.texts, sources[-1], written[-1].stage, ";")
    written, times = cheapest_first([*([] if words is None else [words]), *written], calibrate.texts, THREADS)
    alone = write_stages([*others, sources[-1]], place / "peers", *given)[:-1] if others else []
    return TaskStages(calibrate, dev, written, times, alone, sources[-1])
