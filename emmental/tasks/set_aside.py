"""Which rows of a training file are set aside for evaluation, if there is no validation file.

A row has a place in [0, 1), a hash of its text or pair; case and white space do not count. Rows up to a limit are set
aside. The limit depends on the file only through its size, and falls as the file grows: a row may move from evaluation
to training, never back. Rows with the same text fall on the same side, whatever their labels and their order.

A model records the limit and a sample of the texts that it was trained on, so that later runs evaluate none of these.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emmental.errors import UserError

SHARE, FEWEST, MOST = 0.1, 50, 2000
"""This share of the rows is set aside, but at least and at most so many rows."""
_LARGEST_SHARE = 0.5
_SAMPLE, _DIGITS = 64, 8
_MENTIONED_SHARE = 0.05
"""A file with fewer of a model's training texts only repeats some common texts."""
SET_ASIDE = "set_aside"
"""Key of the record in a model's `config.json` and in `training_args.json`."""


@dataclass(frozen=True)
class TrainedRows:
    """What a model records about the rows of its training file.

    Attributes:
        limit: rows up to this place were set aside; 0.0: none.
        sample: the lowest places of the texts it was trained on, each as eight hexadecimal digits.
        seed: the random choice of older versions, which had neither; None: not one of these.
        held_back_from: rows from this place on were not trained on either, see `emmental.tasks.held_back`; None: all
            rows above the limit were.
    """

    limit: float = 0.0
    sample: str = ""
    seed: int | None = None
    held_back_from: float | None = None

    def share_in(self, places: np.ndarray) -> float:
        """The share of the training texts that rows with these places have, estimated from the sample."""
        known = {self.sample[at : at + _DIGITS] for at in range(0, len(self.sample), _DIGITS)}
        return len(known.intersection(_digits(places))) / max(len(known), 1)

    def has_seen(self, places: np.ndarray) -> bool:
        """Whether the model was trained on the file that has rows with these places."""
        return self.seed is not None or self.share_in(places) >= _MENTIONED_SHARE

    def record(self) -> dict[str, Any]:
        """As `recorded_rows` reads it."""
        known = {"seed": self.seed} if self.seed is not None else {"limit": self.limit, "sample": self.sample}
        return known if self.held_back_from is None else {**known, "held_back_from": self.held_back_from}


def row_places(texts_a: Sequence[str], texts_b: Sequence[str] | None = None) -> np.ndarray:
    """(N,) float64 in [0, 1): a hash of each text or pair, without regard to case and white space."""

    def place(*texts: str) -> float:
        plain = "\0".join(" ".join(text.casefold().split()) for text in texts)
        digest = hashlib.blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return (int.from_bytes(digest, "big") >> 11) / 2**53

    columns = (texts_a,) if texts_b is None else (texts_a, texts_b)
    return np.fromiter(map(place, *columns), np.float64, len(texts_a))


def limit_for(
    places: np.ndarray, share: float = SHARE, fewest: int = FEWEST, most: int = MOST, largest: float = _LARGEST_SHARE
) -> float:
    """The place up to which rows of a file are set aside.

    It is `share`, raised until `fewest` rows are below it, but not above `largest`; lowered until `most` rows are
    below it. None of these rises when rows are added. At least one text is set aside, and one is left.

    Raises:
        UserError: all rows have the same text.
    """
    ordered = np.sort(places)
    if ordered[0] == ordered[-1]:
        raise UserError("all texts are the same, so none can be set aside; give --validation_file")
    limit = min(max(share, ordered[min(fewest, len(ordered)) - 1]), largest)
    if len(ordered) > most:
        limit = min(
            limit, ordered[max(np.searchsorted(ordered, ordered[most]) - 1, 0)]
        )  # of equal places all, or none
    limit = max(limit, ordered[0])
    return float(limit if limit < ordered[-1] else ordered[np.searchsorted(ordered, ordered[-1]) - 1])


def trained_rows(places: np.ndarray, limit: float) -> TrainedRows:
    """The record of a training on the rows with these places that lie above the limit."""
    return TrainedRows(limit, "".join(_digits(np.unique(places[places > limit])[:_SAMPLE])))


def _digits(places: np.ndarray) -> list[str]:
    return [f"{int(place * 16**_DIGITS):0{_DIGITS}x}" for place in places]


def drawn_by_seed(labels: list[int] | list[float], seed: int) -> np.ndarray:
    """The rows that versions before the hash set aside: a tenth of each class, at random.

    Args:
        labels: (N,) class ids, or scores, which count as one class.
        seed: seed of the random choice.

    Returns:
        (N,) bool.
    """
    rows = len(labels)
    wanted = min(max(rows // 10, FEWEST), MOST, rows // 2)
    order = np.random.default_rng(seed).permutation(rows)
    classes = np.asarray(labels if labels and isinstance(labels[0], int) else [0] * rows)[order]
    # A row's rank is its place in the shuffled order of its class, as a share, so each class gives the same share.
    place = np.empty(rows)
    for each in np.unique(classes):
        members = np.flatnonzero(classes == each)
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    chosen = np.zeros(rows, bool)
    chosen[order[np.argsort(place, kind="stable")[:wanted]]] = True
    return chosen


def recorded_rows(folder: str | Path) -> TrainedRows | None:
    """What a model's folder records about its training file: in its configuration or beside it; None: nothing."""
    flags, config = (_object(Path(folder) / name) for name in ("training_args.json", "config.json"))
    found = config.get(SET_ASIDE) or flags.get(SET_ASIDE)
    if isinstance(found, dict):
        limit, sample, seed = found.get("limit"), found.get("sample"), found.get("seed")
        held_back = found.get("held_back_from")
        held_back = float(held_back) if isinstance(held_back, float | int) and 0 < held_back <= 1 else None
        if type(seed) is int and seed >= 0:
            return TrainedRows(seed=seed, held_back_from=held_back)
        if isinstance(limit, float | int) and 0 <= limit < 1 and re.fullmatch("[0-9a-f]*", str(sample)):
            return TrainedRows(float(limit), str(sample), held_back_from=held_back)
    older = flags.get("train_file") and not flags.get("validation_file") and flags.get("do_eval")
    return TrainedRows(seed=flags["seed"]) if older and type(flags.get("seed")) is int else None


def _object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}  # the loading of the model reports what is wrong
    return found if isinstance(found, dict) else {}


def warning_of_seen_rows(places: np.ndarray, earlier: TrainedRows | None, called: str) -> str | None:
    """A line for the user if a file for evaluation has rows that the model was trained on."""
    if earlier is None or earlier.share_in(places) < _MENTIONED_SHARE:
        return None
    return f"{called} was trained on rows of --validation_file: the metric is too high; give rows that it has not seen"


def choose(places: np.ndarray, earlier: TrainedRows | None, called: str) -> tuple[TrainedRows, str | None]:
    """How to split a file for a model, and a line for the user if the model's training matters.

    Args:
        places: of all rows of the file.
        earlier: what the model records; None: nothing.
        called: what the user calls the model: flag and value.

    Raises:
        UserError: all texts are the same, or the model was trained on all of them.
    """
    if earlier is not None and earlier.seed is not None:
        return earlier, (
            f"an earlier version trained {called} and set rows aside by --seed {earlier.seed}; the same rows are "
            "taken, which is right only if --train_file has not changed since"
        )
    own = limit_for(places)
    if earlier is None or not (seen := earlier.share_in(places)):
        return trained_rows(places, own), None
    if earlier.limit == 0:
        warning = (
            f"{called} was trained on all rows of --train_file: rows that it has seen are evaluated, so the metric is "
            "too high; give --validation_file"
        )
        return trained_rows(places, own), warning if seen >= _MENTIONED_SHARE else None
    if not (places <= earlier.limit).any():
        raise UserError(f"--train_file: {called} was trained on all of its texts; give --validation_file")
    if own <= earlier.limit:
        return trained_rows(places, own), None
    aside, fresh = int((places <= earlier.limit).sum()), int((places <= own).sum())
    return trained_rows(places, earlier.limit), (
        f"{aside} rows are set aside where a new model would have {fresh}: {called} was trained on the others"
    )
