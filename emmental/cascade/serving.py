"""A finished cascade: reads it from its folder and classifies texts. NumPy, tokenizers and ONNX Runtime."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emmental import atomic
from emmental.cascade.answers import answers_of, confidence_of
from emmental.cascade.stages import Stage, read_stage
from emmental.cascade.words import Text
from emmental.errors import UserError
from emmental.runs.threads import choose_threads

CASCADE_FILE, FORMAT = "cascade.json", 1
_STAGE_KEYS = ("name", "folder", "engine", "threshold", "temperature")


@dataclass(frozen=True)
class ReadyStage:
    """A stage with what decides whether it answers.

    Attributes:
        name: of the stage.
        stage: gives logits.
        threshold: it answers if its confidence is at least this. That of the last stage is 0.
        temperature: divides its logits.
    """

    name: str
    stage: Stage
    threshold: float
    temperature: float


class Cascade:
    """Classifies texts, each by the first stage that is sure enough.

    Attributes:
        labels: names of the classes.
        several: whether an answer is a set of labels.
        pairs: whether texts are pairs.
        steps: the stages, the cheapest first.
        record: what `cascade.json` holds.
    """

    def __init__(
        self, labels: Sequence[str], steps: Sequence[ReadyStage], several: bool, pairs: bool, record: dict[str, Any]
    ) -> None:
        self.labels, self.several, self.pairs = tuple(labels), several, pairs
        self.steps, self.record = tuple(steps), record

    def classify(self, texts: Iterable[Text | dict[str, str]], batch_size: int = 32) -> list[dict[str, Any]]:
        """An answer for each text, in order; each stage sees only the texts that no stage before it answered.

        Args:
            texts: strings, or pairs of strings (also as `{"text": ..., "text_pair": ...}`).
            batch_size: texts computed together.

        Returns:
            For each text `label` (of several labels at once: the list of those that hold), `score` and `stage`, the
            name of the one that answered. The score is the stage's probability that the last stage answers so; of
            the last stage itself, that it is right.

        Raises:
            UserError: what is given is no text, or no pair, as the cascade takes them.
        """
        if batch_size < 1:
            raise UserError(f"batch_size accepts numbers from 1, not {batch_size}")
        given = self.read(texts)
        found: list[dict[str, Any]] = [{}] * len(given)
        left = np.arange(len(given))
        for step in self.steps:
            if not len(left):
                break
            logits = step.stage.logits([given[row] for row in left], batch_size)
            if not np.isfinite(logits).all():
                raise UserError(f"stage {step.name} gave NaN or infinite numbers")
            answers, sure = answers_of(logits, self.several), confidence_of(logits, step.temperature, self.several)
            answered = sure >= step.threshold
            for place in np.flatnonzero(answered):
                found[left[place]] = {
                    "label": self.label_of(answers[place]),
                    "score": float(sure[place]),
                    "stage": step.name,
                }
            left = left[~answered]
        return found

    def __call__(self, texts: Any, batch_size: int = 32) -> list[dict[str, Any]]:
        """`[{"label": ..., "score": ...}]` for a text or a list of texts, as a pipeline of Transformers gives it."""
        alone = isinstance(texts, str | dict) or (
            self.pairs and isinstance(texts, tuple) and len(texts) == 2 and all(isinstance(one, str) for one in texts)
        )
        answers = self.classify([texts] if alone else texts, batch_size)
        return [{"label": one["label"], "score": one["score"]} for one in answers]

    def label_of(self, answer: Any) -> str | list[str]:
        """The name of an answer: a class id, or a row of bools for several labels."""
        if self.several:
            return [name for name, holds in zip(self.labels, answer, strict=True) if holds]
        return self.labels[int(answer)]

    def read(self, texts: Iterable[Text | dict[str, str]]) -> list[Text]:
        """The texts as strings or tuples, after checking them."""
        if isinstance(texts, str | dict):
            raise UserError("texts accepts a list of texts, not one text")
        return [self._read(number, text) for number, text in enumerate(texts)]

    def _read(self, number: int, text: Any) -> Text:
        if isinstance(text, dict) and isinstance(text.get("text"), str):
            text = (text["text"], text["text_pair"]) if "text_pair" in text else text["text"]
        if self.pairs and isinstance(text, list | tuple) and len(text) == 2:
            if all(isinstance(part, str) for part in text):
                return tuple(text)
        elif not self.pairs and isinstance(text, str):
            return text
        accepted = "a pair of strings" if self.pairs else "a string"
        raise UserError(f"text {number} is {text!r:.60}; this cascade accepts {accepted}")


def load(folder: str | Path, threads: int | None = None) -> Cascade:
    """The cascade in a folder that `python -m emmental.cascade` wrote.

    Args:
        folder: of the cascade.
        threads: of each stage's engine; default: `OMP_NUM_THREADS`, or the cores of this process.

    Raises:
        UserError: there is none, it is damaged, it is of a later version, or an engine is missing.
    """
    folder, threads = Path(folder), choose_threads(threads)
    record = read_record(folder)
    try:
        steps = [_step(folder, settings, threads) for settings in record["stages"]]
        return Cascade(record["labels"], steps, bool(record["several"]), bool(record["pairs"]), record)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{folder / CASCADE_FILE} is damaged ({type(error).__name__}: {error})") from error


def read_record(folder: Path) -> dict[str, Any]:
    """What `cascade.json` of a cascade's folder holds, after checking the folder.

    Raises:
        UserError: there is none, a file of the folder is damaged, or it is of a later version.
    """
    if not (folder / CASCADE_FILE).is_file():
        raise UserError(f"{folder} holds no {CASCADE_FILE}; give the folder of a cascade")
    atomic.verify_folder(folder)
    try:
        record = json.loads((folder / CASCADE_FILE).read_text(encoding="utf-8"))
        written_as = record["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{folder / CASCADE_FILE} is damaged ({type(error).__name__}: {error})") from error
    if written_as != FORMAT:
        raise UserError(f"{folder / CASCADE_FILE} has format {written_as}; this version reads {FORMAT}")
    return record


def _step(folder: Path, settings: dict[str, Any], threads: int) -> ReadyStage:
    name, place, _, threshold, temperature = (settings[key] for key in _STAGE_KEYS)
    if Path(place).name != place or not (folder / place).is_dir():
        raise UserError(f"{folder / CASCADE_FILE}: stage folder {place!r} is not a folder beside it")
    return ReadyStage(name, read_stage(folder / place, settings, threads), float(threshold), float(temperature))
