"""Builds a cascade: writes the stages, calibrates them on texts that none was trained on, and keeps those that pay."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import isinf
from pathlib import Path
from typing import Any

import numpy as np

import emmental
from emmental import atomic
from emmental.cascade.answers import answers_of, differ, fit_temperature
from emmental.cascade.fitting import fit_bag_of_words
from emmental.cascade.models import AUTO, Source, WrittenStage, engines_for, read_source, write_stage
from emmental.cascade.promise import (
    DELTA,
    Calibrated,
    TradeOff,
    calibrate,
    check_promise,
    evidence_of,
    mean_milliseconds,
    split_rows,
    stage_of,
)
from emmental.cascade.rows import answers_in
from emmental.cascade.serving import CASCADE_FILE, FORMAT
from emmental.cascade.stages import FILES, WORDS_ENGINE, WordsStage
from emmental.cascade.timing import BATCH, milliseconds
from emmental.cascade.words import WEIGHTS_FILE, Text
from emmental.errors import UserError
from emmental.runs.threads import choose_threads

logger = logging.getLogger(__name__)

WORDS_NAME = "bag of words"
_ALONE, _TOGETHER = "milliseconds", f"milliseconds_in_batches_of_{BATCH}"


@dataclass(frozen=True)
class Training:
    """Texts that the bag of words learns from: labelled rows that the stages were trained on.

    Attributes:
        texts: strings or pairs.
        labels: as `answers_in` takes them; None: the last stage labels the texts.
    """

    texts: Sequence[Text]
    labels: Sequence[object] | None = None


def build_cascade(
    stages: Sequence[str | Path],
    texts: Sequence[Text],
    output: str | Path,
    *,
    labels: Sequence[object] | None = None,
    changed: float = 0.01,
    delta: float = DELTA,
    training: Training | None = None,
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
        labels: of the texts, for accuracies in the table; see `answers_in`.
        changed: share of the answers that may differ from the last stage's.
        delta: probability, over the choice of the texts, that more of them differ.
        training: with it, a bag of words is the first stage. Texts that are in it are not used to calibrate.
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
    engines, output = engines_for(engine), Path(output)
    atomic.refuse_losing({"--models": [str(folder) for folder in stages]}, [output], f"--output {output}")
    if output.exists() and not (atomic.is_ours(output, damaged_too=True) and (output / CASCADE_FILE).is_file()):
        raise UserError(f"--output {output} exists and is not a cascade; it is left alone")
    if not stages or (len(stages) < 2 and training is None):
        raise UserError("--models accepts two or more models, or one with --train_file for a bag of words before it")
    sources = [read_source(folder, max_length) for folder in stages]
    last, pairs = sources[-1], not isinstance(texts[0], str) if len(texts) else False
    rows = _usable(texts, pairs, training)
    check_promise(len(rows), changed, delta)
    texts = [texts[row] for row in rows]
    right = None
    if labels is not None:
        right = answers_in([labels[row] for row in rows], last.labels, last.several, label_separator)
    with atomic.atomic_folder(output, damaged_too=True) as target, tempfile.TemporaryDirectory() as place:
        written = _write_stages(sources, Path(place), engines, texts, split_rows(len(texts), seed)[0], threads)
        if training is not None:
            words = _write_words(Path(place) / "words", training, texts, last, written[-1], label_separator)
            written = [words, *written] if words else written
        written, times = _cheapest_first(written, texts, threads)
        found = calibrate([one.logits for one in written], times[_ALONE], changed, delta, last.several, seed)
        record = {
            **_head(last, pairs, changed, delta),
            **_measured(written, found, times, right, last.several),
            "calibration": _about(texts, found, seed, threads),
        }
        record["stages"] = _kept(written, found, record["models"], right, target)
        _write_card(target, record)
        atomic.write_json(target / CASCADE_FILE, record)
    return record


def _cheapest_first(
    written: Sequence[WrittenStage], texts: Sequence[Text], threads: int
) -> tuple[list[WrittenStage], dict[str, list[float]]]:
    """The stages by their time for one text, the last one at the end; their mean milliseconds."""
    stages = [one.stage for one in written]
    times = {name: milliseconds(stages, texts, size, threads) for name, size in ((_ALONE, 1), (_TOGETHER, BATCH))}
    order = [*np.argsort(times[_ALONE][:-1], kind="stable"), len(written) - 1]
    return [written[place] for place in order], {
        name: [values[place] for place in order] for name, values in times.items()
    }


def _head(last: Source, pairs: bool, changed: float, delta: float) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "emmental": emmental.__version__,
        "labels": list(last.labels),
        "several": last.several,
        "pairs": pairs,
        "promise": {"changed": changed, "delta": delta, "of": last.name},
    }


def _about(texts: Sequence[Text], found: Calibrated, seed: int, threads: int) -> dict[str, Any]:
    fingerprint = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    return {
        "texts": len(texts),
        "tested_on": len(found.test),
        "seed": seed,
        "threads": threads,
        "sha256": fingerprint,
    }


def _usable(texts: Sequence[Text], pairs: bool, training: Training | None) -> list[int]:
    """The texts that are all of one kind and were not trained on; remarks on those left out and those repeated."""
    for number, text in enumerate(texts):
        fits = isinstance(text, tuple | list) and len(text) == 2 if pairs else isinstance(text, str)
        if not fits:
            raise UserError(f"--texts: text {number} is {text!r:.60} among {'pairs' if pairs else 'single texts'}")
    if training is not None and len(training.texts) and isinstance(training.texts[0], str) == pairs:
        raise UserError("--train_file and --texts: one of them has pairs, the other has single texts")
    seen = {_key(text) for text in training.texts} if training is not None else set()
    rows = [row for row, text in enumerate(texts) if _key(text) not in seen]
    if len(rows) < len(texts):
        logger.warning("%d of %d --texts are in --train_file and are not used", len(texts) - len(rows), len(texts))
    distinct = len({_key(texts[row]) for row in rows})
    if distinct < 0.9 * len(rows):
        logger.warning("%d --texts, of which only %d are different: the promise counts each row", len(rows), distinct)
    return rows


def _key(text: Text) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else tuple(text)


def _write_stages(
    sources: Sequence[Source],
    place: Path,
    engines: Sequence[str],
    texts: Sequence[Text],
    design: np.ndarray,
    threads: int,
) -> list[WrittenStage]:
    written, names = [], set()
    for number, source in enumerate(sources):
        one = write_stage(source, sources[-1], place / str(number), engines, texts, design, threads)
        while one.settings["name"] in names:
            one.settings["name"] += "'"
        names.add(one.settings["name"])
        written.append(one)
        logger.info("%s: engine %s", one.settings["name"], one.settings["engine"])
    return written


def _write_words(
    folder: Path, training: Training, texts: Sequence[Text], last: Source, final: WrittenStage, separator: str
) -> WrittenStage | None:
    """The bag of words. It learns the labels, or without any the answers of the last stage."""
    if training.labels is None:
        answers = answers_of(final.stage.logits(training.texts), last.several)
    else:
        answers = answers_in(training.labels, last.labels, last.several, separator)
    fitted = fit_bag_of_words(training.texts, answers, len(last.labels))
    if fitted is None:
        logger.warning("--train_file has no words to learn from, or one answer only: no bag of words")
        return None
    fitted.save(folder)
    stage = WordsStage(folder, {})
    settings = {"name": WORDS_NAME, "engine": WORDS_ENGINE}
    return WrittenStage(folder, settings, stage, stage.logits(texts))


def _measured(
    written: Sequence[WrittenStage],
    found: Calibrated,
    times: dict[str, list[float]],
    right: np.ndarray | None,
    several: bool,
) -> dict[str, Any]:
    """Numbers of each model alone, of the chosen thresholds, and of other promises; all on the rows that tested."""
    answers = [answers_of(one.logits[found.test], several) for one in written]
    labels = None if right is None else right[found.test]
    logits = [one.logits[found.test] for one in written]
    evidence = evidence_of(logits, found.temperatures, times[_ALONE], several)

    def accuracy(given: np.ndarray) -> dict[str, float]:
        return {} if labels is None else {"accuracy": 1 - float(differ(given, labels).mean())}

    def line(one: TradeOff) -> dict[str, Any]:
        by = stage_of(one.thresholds, evidence.confidence)
        spent = {name: mean_milliseconds(one.thresholds, by, np.array(values)) for name, values in times.items()}
        return {
            "promise": one.promise,
            "changed": one.changed,
            "count": one.count,
            "rows": one.rows,
            "bound": one.bound,
            **spent,
            **accuracy(np.choose(by, answers) if not several else np.stack(answers)[by, np.arange(len(by))]),
            "thresholds": {
                each.settings["name"]: None if isinf(threshold) else threshold
                for each, threshold in zip(written, one.thresholds, strict=False)
            },
            "shares": {each.settings["name"]: share for each, share in zip(written, one.shares, strict=True)},
        }

    models = [
        {
            "name": one.settings["name"],
            "engine": one.settings["engine"],
            "changed": float(differ(answers[number], answers[-1]).mean()),
            **{name: values[number] for name, values in times.items()},
            **accuracy(answers[number]),
        }
        for number, one in enumerate(written)
    ]
    return {"measured": line(found.chosen), "table": [line(one) for one in found.table], "models": models}


def _kept(
    written: Sequence[WrittenStage],
    found: Calibrated,
    models: Sequence[dict[str, Any]],
    right: np.ndarray | None,
    target: Path,
) -> list[dict[str, Any]]:
    """Copy the stages that pay; returns their settings. Labels give the last stage its temperature."""
    last = 1.0 if right is None else fit_temperature(written[-1].logits[found.design], right[found.design])
    thresholds, temperatures = (*found.chosen.thresholds, 0.0), (*found.temperatures, last)
    kept = []
    for number, one in enumerate(written):
        if isinf(thresholds[number]):
            continue
        folder = f"{len(kept) + 1}-{''.join(c if c.isalnum() or c in '.-' else '-' for c in one.settings['name'])}"
        shutil.copytree(one.folder, target / folder)
        file = WEIGHTS_FILE if one.settings["engine"] == WORDS_ENGINE else FILES.get(one.settings["engine"])
        kept.append(
            {
                **one.settings,
                "folder": folder,
                "threshold": thresholds[number],
                "temperature": temperatures[number],
                "answered": round(found.chosen.shares[number] * found.chosen.rows),
                "milliseconds": models[number]["milliseconds"],
                "sha256": atomic.sha256_of(target / folder / (file or "model.safetensors")),
            }
        )
    return kept


def _write_card(target: Path, record: dict[str, Any]) -> None:
    from emmental import optional
    from emmental.cascade.report import card, picture

    atomic.write_text(target / "README.md", card(record))
    if optional.is_there("pictures"):
        picture(record).save(target / "cascade.png")
