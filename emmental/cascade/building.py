"""Builds a cascade: writes the stages, calibrates them on texts that none was trained on, and keeps those that pay."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from math import isinf
from pathlib import Path
from typing import Any

import numpy as np

import emmental
from emmental import atomic
from emmental.cascade.answers import fit_temperature
from emmental.cascade.measuring import Labelled, measure
from emmental.cascade.models import (
    AUTO,
    Source,
    WrittenStage,
    read_source,
    stage_engines,
    write_bag_of_words,
    write_stages,
)
from emmental.cascade.promise import DELTA, Calibrated, calibrate, check_promise, split_rows
from emmental.cascade.rows import Rows, answers_in
from emmental.cascade.serving import CASCADE_FILE, FORMAT
from emmental.cascade.stages import FILES, TORCH_FILE, WORDS_ENGINE
from emmental.cascade.timing import BATCH, MS_ALONE, MS_BATCHED, milliseconds
from emmental.cascade.words import WEIGHTS_FILE, Text
from emmental.errors import UserError
from emmental.runs.threads import choose_threads

logger = logging.getLogger(__name__)

_MOSTLY_DIFFERENT = 0.9
"""If fewer of the texts than this share are different, a remark says so."""


def build_cascade(
    stages: Sequence[str | Path],
    texts: Sequence[Text],
    output: str | Path,
    *,
    labels: Sequence[object] | None = None,
    changed: float = 0.01,
    delta: float = DELTA,
    training: Rows | None = None,
    validation: Rows | None = None,
    engine: str = AUTO,
    max_length: int | None = None,
    threads: int | None = None,
    seed: int = 0,
    label_separator: str = ";",
) -> dict[str, Any]:
    """Write a cascade to a folder: at most `changed` of its answers differ from the last stage's.

    Args:
        stages: folders of classifiers, the cheapest first; the last one always answers.
        texts: strings or pairs that no stage was trained on.
        output: a new folder, or one that this function made. It appears whole or not at all.
        labels: of the texts; see `answers_in`. They give the last stage its temperature, and accuracies.
        changed: share of the answers that may differ from the last stage's.
        delta: probability, over the choice of the texts, that more of them differ.
        training: rows that the stages were trained on. A bag of words that learns from them is the first stage.
            Texts that are among them are not used to calibrate.
        validation: labelled rows that accuracies are counted on; default: the texts that test the thresholds.
        engine: of every model; `auto`: the fastest of this machine that loses nothing and needs no PyTorch.
        max_length: texts are cut to this many tokens; default: as in each model's training.
        threads: of the engines; default: `OMP_NUM_THREADS`, or the cores of this process.
        seed: of the choice of texts that find the thresholds; the others test them.
        label_separator: between the labels of a text, for several labels at once.

    Returns:
        What `cascade.json` holds.

    Raises:
        UserError: no stage besides the last one, models that cannot be stages, too few texts, or another folder.
    """
    threads = choose_threads(threads)
    engines, output = stage_engines(engine), Path(output)
    _check_output(stages, output)
    _check_stages(stages, training)
    sources = [read_source(folder, max_length) for folder in stages]
    last, pairs = sources[-1], bool(len(texts)) and not isinstance(texts[0], str)
    _check_kinds(pairs, {"--texts": Rows(texts, labels), "--train_file": training, "--validation_file": validation})
    rows = _unseen(texts, training)
    check_promise(len(rows), changed, delta)
    texts = [tuple(texts[row]) if pairs else texts[row] for row in rows]
    known = None if labels is None else [labels[row] for row in rows]
    right = None if known is None else answers_in(known, last.labels, last.several, label_separator)
    with atomic.atomic_folder(output, damaged_too=True) as target, tempfile.TemporaryDirectory() as place:
        written = write_stages(sources, Path(place), engines, texts, split_rows(len(texts), seed)[0], threads)
        if training is not None:
            words = Path(place) / "words"
            first = write_bag_of_words(words, training, texts, last, written[-1].stage, label_separator)
            written = written if first is None else [first, *written]
        written, times = cheapest_first(written, texts, threads)
        calibrated = calibrate([one.logits for one in written], times[MS_ALONE], changed, delta, last.several, seed)
        judged = _judged(written, last, calibrated, right, validation, label_separator)
        record = {
            **_interface(last, pairs, {"changed": changed, "delta": delta, "of": last.name}),
            **measure(written, calibrated, times, last.several, judged),
            "calibration": _fingerprint_of(texts, calibrated, seed, threads),
        }
        record["stages"] = _copy_kept(written, calibrated, record["models"], right, target)
        _write_card(target, record)
        atomic.write_json(target / CASCADE_FILE, record)
    return record


def _check_output(stages: Sequence[str | Path], output: Path) -> None:
    """Refuse an output folder that would lose something."""
    atomic.refuse_losing({"--models": [str(folder) for folder in stages]}, [output], f"--output {output}")
    if output.exists() and not (atomic.is_ours(output, damaged_too=True) and (output / CASCADE_FILE).is_file()):
        raise UserError(f"--output {output} exists and is not a cascade; it is left alone")


def _check_stages(stages: Sequence[str | Path], training: Rows | None) -> None:
    """Refuse a cascade of one stage, and a folder that is given twice."""
    if not stages or (len(stages) < 2 and training is None):
        raise UserError("--models accepts two or more models, or one with --train_file for a bag of words before it")
    places = [Path(folder).resolve() for folder in stages]
    twice = next((folder for place, folder in zip(places, stages, strict=True) if places.count(place) > 1), None)
    if twice is not None:
        raise UserError(f"--models names {twice} twice")


def _check_kinds(pairs: bool, given: Mapping[str, Rows | None]) -> None:
    """Refuse single texts among pairs, or the other way, and labels that are not one for each text."""
    kind = "pairs" if pairs else "single texts"
    for flag, rows in given.items():
        for number, text in enumerate(() if rows is None else rows.texts):
            fits = isinstance(text, tuple | list) and len(text) == 2 if pairs else isinstance(text, str)
            if not fits:
                raise UserError(f"{flag}: text {number} is {text!r:.60}, where --texts has {kind}")
        if rows is not None and rows.labels is not None and len(rows.labels) != len(rows.texts):
            raise UserError(f"{flag}: {len(rows.labels)} labels for {len(rows.texts)} texts")


def _unseen(texts: Sequence[Text], training: Rows | None) -> list[int]:
    """The texts that were not trained on; warns of those repeated."""
    seen = {_key(text) for text in training.texts} if training is not None else set()
    rows = [row for row, text in enumerate(texts) if _key(text) not in seen]
    if len(rows) < len(texts):
        logger.warning("%d of %d --texts are in --train_file and are not used", len(texts) - len(rows), len(texts))
    distinct = len({_key(texts[row]) for row in rows})
    if distinct < _MOSTLY_DIFFERENT * len(rows):
        logger.warning("%d --texts, of which only %d are different: the promise counts each row", len(rows), distinct)
    return rows


def _key(text: Text) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else tuple(text)


def cheapest_first(
    written: Sequence[WrittenStage], texts: Sequence[Text], threads: int
) -> tuple[list[WrittenStage], dict[str, list[float]]]:
    """The stages by their time for one text, the last one at the end; their mean milliseconds."""
    stages = [one.stage for one in written]
    times = {name: milliseconds(stages, texts, size, threads) for name, size in ((MS_ALONE, 1), (MS_BATCHED, BATCH))}
    order = [*np.argsort(times[MS_ALONE][:-1], kind="stable"), len(written) - 1]
    return [written[place] for place in order], {
        name: [values[place] for place in order] for name, values in times.items()
    }


def _judged(
    written: Sequence[WrittenStage],
    last: Source,
    calibrated: Calibrated,
    right: np.ndarray | None,
    validation: Rows | None,
    separator: str,
) -> Labelled | None:
    """The rows that give the accuracies: `validation`, or the texts that tested the thresholds; None: no labels."""
    if validation is not None and validation.labels is not None:
        wanted = answers_in(validation.labels, last.labels, last.several, separator)
        return Labelled([one.stage.logits(validation.texts) for one in written], wanted)
    if right is None:
        return None
    return Labelled([one.logits[calibrated.test] for one in written], right[calibrated.test])


def _interface(last: Source, pairs: bool, promise: dict[str, Any]) -> dict[str, Any]:
    """The beginning of `cascade.json`: what texts a cascade takes, what it answers, and what it promises."""
    return {
        "format": FORMAT,
        "emmental": emmental.__version__,
        "labels": list(last.labels),
        "several": last.several,
        "pairs": pairs,
        "promise": promise,
    }


def _fingerprint_of(texts: Sequence[Text], calibrated: Calibrated, seed: int, threads: int) -> dict[str, Any]:
    """What the calibration depended on."""
    return {
        "texts": len(texts),
        "tested_on": len(calibrated.test),
        "seed": seed,
        "threads": threads,
        "sha256": hashlib.sha256(json.dumps(texts).encode()).hexdigest(),
    }


def _copy_kept(
    written: Sequence[WrittenStage],
    calibrated: Calibrated,
    models: Sequence[dict[str, Any]],
    right: np.ndarray | None,
    target: Path,
) -> list[dict[str, Any]]:
    """Copy the stages that pay; returns their settings. Labels give the last stage its temperature."""
    design = calibrated.design
    last = 1.0 if right is None else fit_temperature(written[-1].logits[design], right[design])
    thresholds, temperatures = (*calibrated.chosen.thresholds, 0.0), (*calibrated.temperatures, last)
    kept = []
    for number, one in enumerate(written):
        if isinf(thresholds[number]):
            continue
        folder = f"{len(kept) + 1}-{''.join(c if c.isalnum() or c in '.-' else '-' for c in one.settings['name'])}"
        shutil.copytree(one.folder, target / folder)
        kept.append(
            {
                **one.settings,
                "folder": folder,
                "threshold": thresholds[number],
                "temperature": temperatures[number],
                "answered": round(calibrated.chosen.shares[number] * calibrated.chosen.rows),
                "milliseconds": models[number]["milliseconds"],
                "sha256": atomic.sha256_of(target / folder / _file_of_weights(one.settings["engine"])),
            }
        )
    return kept


def _file_of_weights(engine: str) -> str:
    if engine == WORDS_ENGINE:
        return WEIGHTS_FILE
    return FILES.get(engine, (TORCH_FILE,))[-1]


def _write_card(target: Path, record: dict[str, Any]) -> None:
    from emmental import optional
    from emmental.cascade.report import PICTURE, card, picture

    atomic.write_text(target / "README.md", card(record))
    if optional.is_there("pictures"):
        picture(record).save(target / PICTURE)
