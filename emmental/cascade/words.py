"""A bag of words as it is served: read from JSON and safetensors, computed with NumPy alone.

It gives the numbers of scikit-learn's `TfidfVectorizer` and linear models, which `emmental.tasks.bag_of_words` fits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from emmental.errors import UserError

WORDS_FILE, WEIGHTS_FILE = "words.json", "weights.safetensors"
WORDS, PIECES = "words", "pieces"
"""Kinds of terms: words and pairs of neighbours; runs of three and four characters inside a word and its edges."""
_WORD, _SPACES = re.compile(r"(?u)\S+"), re.compile(r"\s\s+")
_SHORTEST, _LONGEST = 3, 4
_REMEMBERED = 50_000
"""Most words whose pieces are remembered."""

Text = str | tuple[str, str]


def terms_of(text: str, kind: str) -> Iterator[str]:
    """The terms of a text, each as often as it occurs."""
    text = text.lower()
    if kind == WORDS:
        words = _WORD.findall(text)
        yield from words
        yield from (f"{one} {other}" for one, other in pairwise(words))
        return
    for word in _SPACES.sub(" ", text).split():
        yield from pieces_of(word)


def pieces_of(word: str) -> Iterator[str]:
    """Runs of three and four characters of a word with a space on both sides; a short word counts once."""
    padded = f" {word} "
    for length in range(_SHORTEST, _LONGEST + 1):
        yield padded[:length]
        yield from (padded[start : start + length] for start in range(1, len(padded) - length + 1))
        if len(padded) <= length:
            break


class Terms:
    """TF-IDF of the terms of one kind: tf is 1 + log(count), and rows have length 1."""

    def __init__(self, kind: str, terms: Sequence[str], idf: np.ndarray) -> None:
        self.kind = kind
        self.idf = idf.astype(np.float64)
        self._places = {term: place for place, term in enumerate(terms)}
        self._of_word: dict[str, list[int]] = {}

    def row(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Places, rising, and values of the terms that are known."""
        places, counts = np.unique(np.array(self._found(text), np.int64), return_counts=True)
        values = (1 + np.log(counts)) * self.idf[places]
        return places, values / max(float(np.sqrt(values @ values)), 1e-300)

    def _found(self, text: str) -> list[int]:
        """The place of each known term. The pieces of a word are looked up once."""
        if self.kind == WORDS:
            return self._known(terms_of(text, WORDS))
        found: list[int] = []
        for word in _SPACES.sub(" ", text.lower()).split():
            if word not in self._of_word:
                if len(self._of_word) >= _REMEMBERED:
                    self._of_word.clear()
                self._of_word[word] = self._known(pieces_of(word))
            found += self._of_word[word]
        return found

    def _known(self, terms: Iterable[str]) -> list[int]:
        return [place for place in map(self._places.get, terms) if place is not None]


class BagOfWords:
    """A linear classifier of TF-IDF terms.

    The features of a pair are, for each kind of term: products of both rows, absolute differences, sum of products.
    """

    def __init__(self, kinds: Sequence[Terms], weight: np.ndarray, bias: np.ndarray, pairs: bool) -> None:
        """Args:
        kinds: in the order of the features.
        weight: (features, classes).
        bias: (classes,).
        pairs: whether texts are pairs.
        """
        self._kinds, self._weight, self._bias, self._pairs = kinds, weight, bias.astype(np.float64), pairs

    def logits(self, texts: Sequence[Text]) -> np.ndarray:
        """(N, classes) float64: log odds of the classes, up to a constant for each text."""
        return np.array([self._logits(text) for text in texts]).reshape(len(texts), len(self._bias))

    def _logits(self, text: Text) -> np.ndarray:
        found, start = self._bias, 0
        for kind in self._kinds:
            size = len(kind.idf)
            if not self._pairs:
                places, values = kind.row(text)
                found = found + values @ self._weight[start + places]
                start += size
                continue
            both, apart = _compared(*(kind.row(part) for part in text))
            found = found + both[1] @ self._weight[start + both[0]]
            found = found + apart[1] @ self._weight[start + size + apart[0]]
            found = found + both[1].sum() * self._weight[start + 2 * size]
            start += 2 * size + 1
        return found


Row = tuple[np.ndarray, np.ndarray]
"""Places and values."""


def _compared(first: Row, second: Row) -> tuple[Row, Row]:
    """Products of two rows where both have a value, and absolute differences where one has."""
    both, in_first, in_second = np.intersect1d(first[0], second[0], assume_unique=True, return_indices=True)
    places = np.concatenate([first[0], np.delete(second[0], in_second)])
    values = np.concatenate([first[1], np.delete(second[1], in_second)])
    values[in_first] -= second[1][in_second]
    return (both, first[1][in_first] * second[1][in_second]), (places, np.abs(values))


def read_bag_of_words(folder: Path) -> BagOfWords:
    """The bag of words in a folder.

    Raises:
        UserError: a file is missing or damaged.
    """
    try:
        settings = json.loads((folder / WORDS_FILE).read_text(encoding="utf-8"))
        tensors = read_tensors(folder / WEIGHTS_FILE)
        kinds = [Terms(one["kind"], one["terms"], tensors[f"idf.{one['kind']}"]) for one in settings["kinds"]]
        weight, bias, pairs = tensors["weight"], tensors["bias"], bool(settings["pairs"])
        features = sum(2 * len(kind.idf) + 1 if pairs else len(kind.idf) for kind in kinds)
        fits = all(len(one["terms"]) == len(kind.idf) for one, kind in zip(settings["kinds"], kinds, strict=True))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{folder} holds no readable bag of words ({type(error).__name__}: {error})") from error
    if not fits or weight.shape != (features, *bias.shape):
        raise UserError(f"{folder}: words and weights do not belong together")
    return BagOfWords(kinds, weight, bias, pairs)


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Name -> float32 array of a safetensors file, which begins with the length of a JSON header, then the header.

    Raises:
        ValueError: it is damaged, or holds other numbers.
    """
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 + size:
        raise ValueError("the file is cut off")
    found, body = {}, memoryview(data)[8 + size :]
    for name, entry in json.loads(data[8 : 8 + size]).items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        if entry["dtype"] != "F32" or not 0 <= begin <= end <= len(body):
            raise ValueError(f"{name} is damaged")
        found[name] = np.frombuffer(body[begin:end], "<f4").reshape(entry["shape"])
    return found
