"""`emmental.prune` on every task head: small models load by their Auto class, and recover from texts."""

from __future__ import annotations

import itertools
import random
import warnings

import pytest
import tiny
import tiny_models
import torch
import transformers

import emmental
from emmental.errors import UserError
from emmental.structured.agreement import agreement, answers
from emmental.structured.gates import encoder_weights
from emmental.structured.texts import material
from emmental.task_heads import task_head


def sentences(count: int = 64) -> list[str]:
    generator = random.Random(0)
    return [tiny.sentence(generator, row % 2) for row in range(count)]


def inputs(kind: str, count: int = 64) -> list:
    """Texts of the shape that a head takes; rerankers get queries with four documents."""
    texts = sentences(count)
    if kind == "scores":
        return [(texts[row], texts[row : row + 4]) for row in range(0, count, 4)]
    return list(zip(texts, reversed(texts), strict=True)) if kind == "spans" else texts


@pytest.fixture(autouse=True)
def _no_cliffs():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


@pytest.mark.parametrize("kind", tiny_models.HEADS)
def test_every_head(kind, tmp_path):
    """Half of the encoder, saved, loaded and saved again: the same answers."""
    dense, tokenizer = tiny_models.with_head(kind), tiny_models.tokenizer("bert")
    small = emmental.prune(dense, tokenizer, inputs(kind), keep=0.5)
    assert encoder_weights(small) <= encoder_weights(dense) // 2
    small.save_pretrained(tmp_path / "small")
    auto = getattr(transformers, tiny_models.HEADS[kind][0])
    again = auto.from_pretrained(tmp_path / "small").eval()
    again.save_pretrained(tmp_path / "again")
    batch = tokenizer(sentences(4), padding=True, return_tensors="pt")
    with torch.no_grad():
        for loaded in (again, auto.from_pretrained(tmp_path / "again").eval()):
            assert torch.equal(small(**batch)[0], loaded(**batch)[0])


@pytest.mark.parametrize("kind", ["tokens", "embeddings", "several labels"])
def test_the_refit_brings_it_closer(kind):
    dense, tokenizer = tiny_models.with_head(kind), tiny_models.tokenizer("bert")
    rows = material(tokenizer, inputs(kind), head=task_head(dense))
    apart = []
    for refit in (False, True):
        small = emmental.prune(dense, tokenizer, inputs(kind), keep=0.5, refit=refit)
        both = (answers(each, rows.check) for each in (dense, small))
        apart.append(agreement(task_head(dense), *both).divergence)
    assert apart[1] < apart[0]


@pytest.mark.parametrize("kind", tiny_models.HEADS)
def test_the_recovery_brings_it_closer(kind):
    dense, tokenizer = tiny_models.with_head(kind), tiny_models.tokenizer("bert")
    head = task_head(dense)
    rows = material(tokenizer, inputs(kind), head=head)
    expected = answers(dense, rows.check)
    apart = [
        agreement(head, expected, answers(small, rows.check)).divergence
        for small in (emmental.prune(dense, tokenizer, inputs(kind), keep=0.3, updates=n) for n in (0, 60))
    ]
    assert apart[1] < 0.95 * apart[0]


def test_several_shares_and_labels():
    dense, tokenizer = tiny_models.with_head("several labels"), tiny_models.tokenizer("bert")
    labels = [[0, 2] if row % 2 else [] for row in range(64)]
    half, quarter = emmental.prune(dense, tokenizer, sentences(), labels, keep=[0.5, 0.25])
    assert encoder_weights(quarter) < encoder_weights(half)


def test_queries_are_held_out_whole():
    """16 queries of four documents: every fifth query is checked."""
    head = task_head(tiny_models.with_head("scores"))
    queries = [(f"kasa {word}", list(tiny.WORDS[:4])) for word in tiny.WORDS[4:20]]
    pairs = [(query, document) for query, documents in queries for document in documents]
    as_objects = [{"query": query, "documents": documents} for query, documents in queries]
    for texts in (queries, pairs, as_objects):
        rows = material(tiny_models.tokenizer("bert"), texts, head=head)
        assert rows.groups.unique(return_counts=True)[1].tolist() == [4, 4, 4, 4]
        assert len(rows.encodings) == 48


def test_only_words_are_read():
    tokenizer = tiny_models.tokenizer("bert")
    rows = material(
        tokenizer, [f"{word} kasa" for word in tiny.WORDS], head=task_head(tiny_models.with_head("tokens"))
    )
    assert rows.check[0]["read"][0].tolist() == [0, 1, 1, 0]
    rows = material(
        tokenizer, [("kasa", f"{word} kasa") for word in tiny.WORDS], head=task_head(tiny_models.with_head("spans"))
    )
    assert rows.check[0]["read"][0].tolist() == [1, 0, 0, 1, 1, 0]


@pytest.mark.parametrize(
    ("kind", "texts", "message"),
    [
        ("tokens", [("kasa", "lote")] * 40, "text 0 is .*; a string is accepted"),
        ("embeddings", [("kasa", "lote")] * 40, "text 0 is .*; a string is accepted"),
        ("spans", ["kasa"] * 40, "text 0 is 'kasa'; a pair of strings is accepted"),
        ("classes", [("kasa", ["lote", "mivo"])] * 40, "a string or a pair of strings is accepted"),
        ("scores", [("kasa", [])] * 40, "a query with its list of documents is accepted"),
        ("scores", [("kasa", ["lote", 3])] * 40, "a query with its list of documents is accepted"),
    ],
)
def test_texts_of_another_shape(kind, texts, message):
    with pytest.raises(UserError, match=message):
        emmental.prune(tiny_models.with_head(kind), tiny_models.tokenizer("bert"), texts, keep=0.5)


@pytest.mark.parametrize("kind", ["tokens", "spans", "embeddings"])
def test_labels_where_none_are_taken(kind):
    with pytest.raises(UserError, match=r"labels: .* are pruned without labels"):
        emmental.prune(
            tiny_models.with_head(kind), tiny_models.tokenizer("bert"), inputs(kind), itertools.repeat(0, 64), keep=0.5
        )


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: transformers.BertForMaskedLM(tiny_models.config("bert")), "it is a BertForMaskedLM"),
        (lambda: tiny_models.with_head("tokens").train(), None),
        (lambda: transformers.BertModel(tiny_models.config("bert", is_decoder=True)), "is a decoder"),
        (
            lambda: transformers.AutoModelForTokenClassification.from_config(tiny_models.config("bert")),
            "never trained",
        ),
        (lambda: torch.nn.Linear(1, 1), "a model of Transformers, not a Linear"),
    ],
)
def test_models_that_are_refused(model, message):
    if message is None:
        assert emmental.prune(model(), tiny_models.tokenizer("bert"), sentences(), keep=0.5)
        return
    with pytest.raises(UserError, match=message):
        emmental.prune(model(), tiny_models.tokenizer("bert"), sentences(), keep=0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.half(), "is in float16, too coarse for the gradients"),
        (lambda model: setattr(model.config, "return_dict", False), "returns tuples: set return_dict=True"),
    ],
)
def test_models_that_it_cannot_read_are_refused(change, message):
    model = tiny_models.with_head("several labels")
    change(model)
    with pytest.raises(UserError, match=message):
        emmental.prune(model, tiny_models.tokenizer("bert"), sentences(), keep=0.5)


@pytest.mark.parametrize(
    ("wrap", "inside"),
    [(lambda model: torch.compile(model, backend="eager"), "._orig_mod"), (torch.nn.DataParallel, ".module")],
)
def test_a_wrapped_model_is_refused_with_the_way_to_the_model_inside(wrap, inside):
    model = wrap(tiny_models.with_head("several labels"))
    with pytest.raises(UserError, match=f"model accepts a model of Transformers, not a .*; give model{inside}$"):
        emmental.prune(model, tiny_models.tokenizer("bert"), sentences(), keep=0.5)
