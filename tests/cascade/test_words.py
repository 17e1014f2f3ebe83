"""The bag of words that is served, in NumPy alone, gives the numbers of scikit-learn."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from sklearn.feature_extraction.text import TfidfVectorizer

from emmental.cascade.fitting import fit_bag_of_words
from emmental.cascade.words import PIECES, WORDS, Terms, read_bag_of_words, read_tensors, terms_of
from emmental.errors import UserError

ANY_TEXT = st.text(
    st.one_of(st.sampled_from("aAbB éßİŉΣ . ' \t\n\u00a0\u3000\u200b日本"), st.characters()), max_size=40
)
"""Letters of several alphabets, some of which change their length in lower case, and unusual spaces."""


def some_texts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    words = ["good", "bad", "Über", "naïve", "don't", "a", "…", "ab", "日本語", "x" * 20]
    return [" ".join(draw.choices(words, k=draw.randint(0, 7))) for _ in range(count)]


def test_terms_that_a_person_can_check():
    assert list(terms_of("To be OR", WORDS)) == ["to", "be", "or", "to be", "be or"]
    assert list(terms_of("Hi", PIECES)) == [" hi", "hi ", " hi "]
    assert list(terms_of("a", PIECES)) == [" a "]  # a short word counts once


@given(ANY_TEXT)
@settings(max_examples=300, deadline=None)
def test_terms_are_those_of_scikit_learn(text):
    theirs = {
        WORDS: TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\S+"),
        PIECES: TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 4)),
    }
    for kind, vectorizer in theirs.items():
        assert Counter(terms_of(text, kind)) == Counter(vectorizer.build_analyzer()(text))


def test_a_row_by_hand():
    """Counts 1 and 2, idf 1 and 2: values 1 and (1 + log 2) * 2, divided by their length."""
    places, values = Terms(WORDS, ["a", "b", "c"], np.array([1.0, 2.0, 5.0])).row("b a b")
    second = (1 + np.log(2)) * 2
    assert places.tolist() == [0, 1]
    assert values == pytest.approx([1 / np.hypot(1, second), second / np.hypot(1, second)])
    assert [part.tolist() for part in Terms(WORDS, ["a"], np.ones(1)).row("x")] == [[], []]


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("kind", ["two classes", "three classes", "several labels", "a class without rows"])
def test_logits_are_those_of_scikit_learn(pairs, kind, tmp_path):
    texts = some_texts(80, seed=1)
    others = some_texts(80, seed=2)
    given_texts = list(zip(texts, others, strict=True)) if pairs else texts
    draw = np.random.default_rng(0)
    classes = 2 if kind == "two classes" else 3
    answers = draw.integers(2 if kind == "a class without rows" else classes, size=80)
    if kind == "several labels":
        answers = np.stack([answers > 0, answers == 1, np.zeros(80, bool)], axis=1)
    fitted = fit_bag_of_words(given_texts, answers, classes)
    fitted.save(tmp_path)
    served = read_bag_of_words(tmp_path)
    new = some_texts(50, seed=3)
    new = list(zip(new, some_texts(50, seed=4), strict=True)) if pairs else new
    np.testing.assert_allclose(served.logits(new), fitted.logits(new), rtol=1e-5, atol=1e-5)
    if kind == "two classes":  # what a logistic regression of scikit-learn calls the probability
        odds = fitted.logits(new)
        assert (odds[:, 0] == 0).all()
    assert served.logits([]).shape == (0, classes)


@given(st.lists(ANY_TEXT, min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_any_text_has_the_logits_of_scikit_learn(new):
    np.testing.assert_allclose(_SERVED.logits(new), _FITTED.logits(new), rtol=1e-5, atol=1e-5)


def test_nothing_to_learn_from():
    assert fit_bag_of_words(["a", "b"], np.array([1, 1]), 2) is None
    assert fit_bag_of_words(["", " "], np.array([1, 0]), 2) is None


def test_a_damaged_file_is_named(tmp_path):
    fit_bag_of_words(["a b", "c"], np.array([0, 1]), 2).save(tmp_path)
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(UserError, match="bag of words"):
        read_bag_of_words(tmp_path)


def test_tensors_are_read_without_the_library(tmp_path):
    arrays = {"one": np.arange(6, dtype=np.float32).reshape(2, 3), "two": np.zeros(0, np.float32)}
    save_file(arrays, tmp_path / "x.safetensors", metadata={"made": "here"})
    found = read_tensors(tmp_path / "x.safetensors")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
    save_file({"one": np.arange(3)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="damaged"):
        read_tensors(tmp_path / "x.safetensors")


_FITTED = fit_bag_of_words(some_texts(60, seed=5), np.arange(60) % 3, 3)


def _served():
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        _FITTED.save(Path(folder))
        return read_bag_of_words(Path(folder))


_SERVED = _served()
