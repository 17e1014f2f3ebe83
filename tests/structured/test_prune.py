"""Pruning a classifier in one call: a tiny BERT that learnt its task, and what cannot be pruned."""

from __future__ import annotations

import copy
import itertools
import random
import warnings

import numpy as np
import pytest
import tiny
import tiny_models
import torch

import emmental
from emmental.data.tokenization import plain_text_backend
from emmental.errors import UserError
from emmental.structured import prune as prune_module
from emmental.structured.gates import encoder_weights, sublayers
from emmental.structured.rungs import CLIFF_BEFORE_RECOVERY, Pruned, prune_carefully, prune_in_rungs
from emmental.structured.selection import weight_budget
from emmental.structured.speed import LayerTimes, SpeedTable
from emmental.structured.texts import MOST_TEXTS, material
from emmental.task_heads import Agreement


def sentences(count: int = 200) -> list[str]:
    generator = random.Random(0)
    return [tiny.sentence(generator, row % 2) for row in range(count)]


class Table:
    """What tables of pandas, polars and pyarrow have in common; a loop gives the names of the columns."""

    columns = ("text", "feature")

    def __iter__(self):
        return iter(self.columns)


class Column:
    """A column of a table: a loop gives its values; it is no `Sequence`."""

    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def __iter__(self):
        return iter(self.values)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_models.tokenizer("bert")


@pytest.fixture(scope="module")
def trained(tokenizer):
    """Two classes, learnt in 60 updates."""
    model = tiny_models.model("bert").train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    batch = tokenizer(sentences(), padding=True, return_tensors="pt")
    for _ in range(60):
        optimizer.zero_grad()
        model(**batch, labels=torch.arange(200) % 2).loss.backward()
        optimizer.step()
    return model.eval()


def predicted(model, tokenizer):
    with torch.no_grad():
        return model(**tokenizer(sentences(), padding=True, return_tensors="pt")).logits.argmax(1)


def test_a_quarter_is_enough(trained, tokenizer):
    before = {name: parameter.clone() for name, parameter in trained.named_parameters()}
    assert (predicted(trained, tokenizer) == torch.arange(200) % 2).float().mean() > 0.95
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small = emmental.prune(trained, tokenizer, iter(sentences()), keep=0.25)
    assert 1024 - 32 < encoder_weights(small) <= 1024
    assert (predicted(small, tokenizer) == predicted(trained, tokenizer)).float().mean() >= 0.95
    assert all(torch.equal(parameter, before[name]) for name, parameter in trained.named_parameters())
    assert not small.training


def test_the_same_again(trained, tokenizer):
    one, other = (emmental.prune(trained, tokenizer, sentences(), keep=0.4) for _ in range(2))
    assert [tuple(p.shape) for p in one.parameters()] == [tuple(p.shape) for p in other.parameters()]
    assert all(map(torch.equal, one.parameters(), other.parameters()))


def test_pairs_and_labels(trained, tokenizer):
    pairs = list(zip(sentences(), reversed(sentences()), strict=True))
    small = emmental.prune(trained, tokenizer, pairs, [row % 2 for row in range(200)], keep=0.5, refit=False)
    assert encoder_weights(small) <= 2048


def test_a_small_model_is_pruned_on(trained, tokenizer):
    small = emmental.prune(trained, tokenizer, sentences(), keep=0.5)
    smaller = emmental.prune(small, tokenizer, sentences(), keep=0.5)
    assert encoder_weights(smaller) <= encoder_weights(small) // 2


@pytest.mark.filterwarnings("ignore:.*of the answers")
def test_every_type(model, model_type):
    """A third of the encoder of any architecture; the small model answers."""
    tokenizer = tiny_models.tokenizer(model_type)
    small = emmental.prune(model, tokenizer, sentences(64), keep=0.34)
    assert 0 < encoder_weights(small) <= 0.34 * encoder_weights(model)
    with torch.no_grad():
        assert small(**tokenizer(sentences(4), padding=True, return_tensors="pt")).logits.isfinite().all()


def test_it_warns_off_the_cliff(trained, tokenizer):
    with pytest.warns(UserWarning, match=r"\d+\.\d % of the answers"):
        emmental.prune(trained, tokenizer, sentences(), keep=0.01, refit=False)


def test_last_heads_go_where_the_check_agrees(trained, tokenizer):
    """Nothing hangs on the attention of a layer whose output is zero: in the second rung it may go."""
    texts = material(tokenizer, sentences())
    for layer in trained.bert.encoder.layer:
        layer.attention.output.dense.weight.data.zero_()
    found = prune_in_rungs(trained, texts, weight_budget(trained, 0.3), rungs=2, refitted=False)
    assert {part.kind for part in sublayers(found.model)} == {"neurons"}


def test_more_rungs_are_tried_beyond_the_cliff():
    """A tenth of the answers changes: too much as the end of pruning, but not before a recovery."""

    def pruned(rungs: int) -> Pruned:
        return Pruned(None, Agreement(0.1, 1 / rungs), rungs)

    assert prune_carefully(pruned).rungs == 6
    assert prune_carefully(pruned, CLIFF_BEFORE_RECOVERY).rungs == 3


def test_the_model_nearer_to_dense_is_kept():
    """Twice the rungs, twice the divergence: the first model stays."""
    assert prune_carefully(lambda rungs: Pruned(None, Agreement(0.1, float(rungs)), rungs)).rungs == 3


def test_at_most_so_many_texts_are_read(tokenizer):
    endless = (" ".join(words) for words in itertools.product(tiny.WORDS, repeat=9))
    texts = material(tokenizer, endless)
    assert sum(len(batch["input_ids"]) for batch in texts.check) == -(-MOST_TEXTS // 11)
    following = itertools.islice(itertools.product(tiny.WORDS, repeat=9), MOST_TEXTS, None)
    assert next(endless) == " ".join(next(following))


def test_texts_are_shared_out(tokenizer):
    """Each fifth text is checked; the others inform and are fitted on, with the longest first."""
    texts = material(tokenizer, sentences(50), [row % 2 for row in range(50)], batch_size=16)
    assert [sum(len(b["input_ids"]) for b in part) for part in (texts.check, texts.information, texts.refit)] == [
        10,
        40,
        40,
    ]
    assert "labels" in texts.information[0]
    assert "labels" not in texts.refit[0]
    widths = [batch["input_ids"].shape[1] for batch in texts.refit]
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep": 0.0}, "keep accepts a share of weights above 0"),
        ({"keep": 1.01}, "keep accepts"),
        ({"keep": float("nan")}, "keep accepts"),
        ({"keep": 1e-6}, r"keep 1e-06 is less than one of the [\d,]+ encoder weights"),
        ({}, "either keep or speedup"),
        ({"keep": 0.5, "speedup": 2.0}, "either keep or speedup"),
        ({"keep": 0.5, "texts": sentences(31)}, "texts needs at least 32 items, got 31"),
        ({"keep": 0.5, "texts": [*sentences(40), " "]}, "text 40 is empty"),
        ({"keep": 0.5, "texts": "kasa lote"}, "texts accepts a list or an iterator, not one str"),
        ({"keep": 0.5, "texts": [*sentences(40), None]}, "text 40 is None; a string or a pair"),
        ({"keep": 0.5, "texts": [{"text": each} for each in sentences(40)]}, "text 0 is {'text'"),
        ({"keep": 0.5, "texts": [("kasa", "lote", "mivo")] * 40}, r"text 0 is \('kasa', 'lote', 'mivo'\); a string"),
        ({"keep": 0.5, "texts": [("kasa", 3)] * 40}, r"text 0 is \('kasa', 3\)"),
        ({"keep": 0.5, "labels": [0, 1]}, r"one for each text \(200\), got 2"),
        ({"keep": 0.5, "labels": [0, 1] * 101}, r"one for each text \(200\), got more"),
        ({"keep": 0.5, "batch_size": 0}, "batch_size accepts whole numbers from 1, not 0"),
        ({"keep": 0.5, "batch_size": 1.5}, "batch_size accepts whole numbers from 1, not 1.5"),
        ({"keep": 0.5, "max_length": -1}, "max_length accepts whole numbers from 1, not -1"),
        ({"keep": 0.5, "max_length": "128"}, "max_length accepts whole numbers from 1, not '128'"),
        ({"keep": "0.3"}, "keep accepts a number, not '0.3'"),
        ({"keep": True}, "keep accepts a number, not True"),
        ({"speedup": "2"}, "speedup accepts a number, not '2'"),
        ({"speedup": float("nan")}, "speedup accepts a number, not nan"),
        ({"keep": 0.5, "texts": None}, "texts accepts a list or an iterator, not a NoneType"),
        ({"keep": 0.5, "texts": list(range(40))}, "text 0 is 0; a string or a pair"),
        ({"keep": 0.5, "texts": dict(enumerate(sentences()))}, r"not a dict; give list\(texts.values\(\)\)"),
        ({"keep": 0.5, "texts": {*sentences()}}, "not a set; give a list, whose order is fixed"),
        ({"keep": 0.5, "texts": Table()}, r'not a Table; give one of its columns, as texts\["text"\]'),
        ({"keep": 0.5, "labels": dict.fromkeys(range(200), 1)}, r"not a dict; give list\(labels.values\(\)\)"),
        ({"keep": 0.5, "labels": "01" * 100}, "labels accepts a list or an iterator, not one str"),
        ({"keep": 0.5, "texts": ["kasa lote"] * 200}, "texts needs at least 32 different texts, got 1 among 200"),
        ({"keep": 0.5, "texts": [f"{'кот ' * row} kasa" for row in range(3, 99)]}, r"\d\d % of the tokens are"),
        ({"keep": 0.5, "labels": [0, -1] * 100}, r"label 1 is -1; a number from 0 to 1, or a name"),
        ({"keep": 0.5, "labels": [0, float("nan")] * 100}, r"label 1 is nan; a number from 0 to 1, or a name"),
    ],
)
def test_what_cannot_be(trained, tokenizer, arguments, message):
    with pytest.raises(UserError, match=message):
        emmental.prune(trained, tokenizer, **{"texts": sentences(), **arguments})


@pytest.mark.parametrize("given", [None, "bert", object()])
def test_no_tokenizer(trained, given):
    with pytest.raises(UserError, match="tokenizer accepts the model's tokenizer"):
        emmental.prune(trained, given, sentences(), keep=0.5)


def test_a_tokenizer_of_another_model(trained, tokenizer):
    with pytest.raises(UserError, match=r"the tokenizer has the id 40 .*, model has 20 tokens"):
        emmental.prune(tiny_models.model("bert", vocab_size=20, seed=1).apply(moved), tokenizer, sentences(), keep=0.5)


def moved(module):
    """Gives a classifier a bias, as training does."""
    if getattr(module, "out_features", 0) == 2:
        torch.nn.init.ones_(module.bias)


def test_poor_texts_are_said(trained, tokenizer):
    with pytest.warns(UserWarning, match="only 40 of 200 differ"):
        emmental.prune(trained, tokenizer, [*sentences(40), *sentences(40)[:1] * 160], keep=0.5)
    with pytest.warns(UserWarning, match=r"1\d % of the tokens are unknown to the tokenizer, as in 'кот"):
        emmental.prune(trained, tokenizer, [f"кот {text}" for text in sentences()], keep=0.5)


@pytest.mark.parametrize("wrap", [lambda texts: np.array(texts), lambda texts: iter(texts), tuple, Column])
def test_other_rows_of_texts(trained, tokenizer, wrap):
    """Arrays, iterators and columns of a table are read as lists are."""
    one, other = (emmental.prune(trained, tokenizer, texts, keep=0.4) for texts in (sentences(), wrap(sentences())))
    assert all(map(torch.equal, one.parameters(), other.parameters()))


def test_a_series_and_a_table_of_pandas(trained, tokenizer):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"text": sentences(), "label": [row % 2 for row in range(200)]})
    one = emmental.prune(trained, tokenizer, sentences(), list(table["label"]), keep=0.4)
    other = emmental.prune(trained, tokenizer, table["text"], table["label"], keep=0.4)
    assert all(map(torch.equal, one.parameters(), other.parameters()))
    with pytest.raises(UserError, match="not a DataFrame; give one of its columns"):
        emmental.prune(trained, tokenizer, table, keep=0.4)


def test_a_long_column_is_read_evenly(tokenizer):
    """A file sorted by its first word: the texts of its end are read too."""
    texts = [f"{a} {b} {c}" for a in tiny.WORDS for b in tiny.WORDS for c in tiny.WORDS][: 2 * MOST_TEXTS]
    checks = [material(tokenizer, given).check for given in (texts, Column(texts))]
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(*checks, strict=True))


@pytest.mark.parametrize("model_type", tiny_models.MODEL_TYPES)
def test_a_special_token_in_a_text_is_text(model_type):
    """As in training: the name of a token that a user writes is not the token."""
    tokenizer = tiny_models.tokenizer(model_type)
    texts = [f"{text} {tokenizer.sep_token} kasa" for text in sentences(64)]
    backend = plain_text_backend(tokenizer)
    wanted = sorted(tuple(backend.encode(text).ids) for text in texts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = material(tokenizer, texts)
    rows = [
        tuple(row[mask.bool()].tolist())
        for batch in (*found.check, *found.refit)
        for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert sorted(rows) == wanted


def test_long_texts_are_cut_to_the_positions_of_the_model(trained, tokenizer):
    """40 words and 32 positions."""
    assert emmental.prune(trained, tokenizer, [f"{word} " * 40 for word in tiny.WORDS], keep=0.5, max_length=64)


def test_a_classifier_that_was_never_trained(tokenizer):
    with pytest.raises(UserError, match="never trained"):
        emmental.prune(tiny_models.model("bert"), tokenizer, sentences(), keep=0.5)


@pytest.mark.parametrize(("less", "neurons_left"), [(0.0, 31), (10.0, 21)])
def test_a_speed_is_bought(trained, tokenizer, monkeypatch, less, neurons_left):
    """Where a neuron costs a millisecond and a head nothing, half the time is half the neurons.

    Where timing then asks for 10 ms less, 10 more neurons go, after the last rung's information, not before.
    """
    neurons = {count: float(count) for count in range(33)}
    table = SpeedTable(64.0, 0.5, [LayerTimes({0: 0.0, 2: 0.0}, neurons)] * 2)
    monkeypatch.setattr(prune_module, "measure_speed", lambda *_, **__: table)
    asked = []
    monkeypatch.setattr(prune_module, "tuned_price", lambda *given, **_: asked.append(given[-1]) or given[-1] - less)
    small = emmental.prune(trained, tokenizer, sentences(), speedup=2.0, refit=False)
    assert asked == [31.5]  # of 32 ms, 0.5 are the rest
    assert sum(part.count for part in sublayers(small) if part.kind == "neurons") == neurons_left
    assert sum(part.count for part in sublayers(small) if part.kind == "heads") == 4


def test_damaged_models_and_other_tokenizers_are_refused(trained, tokenizer):
    damaged = copy.deepcopy(trained)
    with torch.no_grad():
        next(damaged.parameters())[0, 0] = torch.inf
    with pytest.raises(UserError, match=r"model: .* holds NaN or infinite numbers"):
        emmental.prune(damaged, tokenizer, sentences(), keep=0.5)
    more = copy.deepcopy(tokenizer)
    more.add_tokens([f"new{number}" for number in range(trained.config.vocab_size)])
    with pytest.raises(UserError, match=r"tokenizer: the tokenizer has the id .*, model has"):
        emmental.prune(trained, more, sentences(), keep=0.5)
