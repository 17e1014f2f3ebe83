"""Texts from files, and answers in their order whatever the batches."""

from __future__ import annotations

import json
import math

import pytest
import tiny
import tiny_masked
import torch

from emmental.data.texts import read_texts
from emmental.export.bertarize import bertarize
from emmental.inference.prediction import Predictor, json_line


@pytest.fixture(scope="module")
def model():
    return bertarize(tiny_masked.make(id2label={0: "bad", 1: "good"}))


def predictor(model, length=32):
    return Predictor(model, tiny.tokenizer(), length, accept_unknown_tokens=True)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.txt", "\ufeffone\ttwo\r\n\nthree", ["one\ttwo", "", "three"]),
        ("a", "one\n", ["one"]),
        ("empty.txt", "", []),
        ("a.tsv", 'sentence\tlabel\nsay "it\t1\n', ['say "it']),
        ("a.tsv", "id\tsentence1\tsentence2\n4\ta\tb\n", [("a", "b")]),
        ("a.csv", 'text\n"a, b"\n', ["a, b"]),
        ("a.jsonl", '{"sentence": "a\\nb", "other": [1]}\n', ["a\nb"]),
    ],
)
def test_texts(name, text, expected, tmp_path):
    (tmp_path / name).write_bytes(text.encode())
    assert list(read_texts(str(tmp_path / name))) == expected


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"good\n\xff\n", "a.txt:2: byte 0xff is not UTF-8"),
        ("a.txt", b"good\rbad\rgood\n", "a.txt:1: a carriage return inside the line"),
        ("a.tsv", b"words\nx\n", "no column named 'sentence1'; the columns are words"),
        ("a.tsv", b"sentence\tlabel\nx\n", "a.tsv:2: 1 columns where the header has 2"),
    ],
)
def test_bad_files(name, data, message, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        list(read_texts(str(tmp_path / name)))


def test_answers_by_hand(model):
    answer = predictor(model).answer(torch.tensor([0.0, 0.0 + torch.tensor(3.0).log()]))
    assert answer["label"] == "good"
    assert answer["score"] == pytest.approx(0.75)
    assert answer["probabilities"] == {"bad": pytest.approx(0.25), "good": pytest.approx(0.75)}
    assert predictor(model).answer(torch.tensor([2.5])) == {"score": 2.5}


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_order_and_batches(model, batch_size):
    texts = ["kasa lofi mite", "nuvo", ("peda", "rizu"), "", "mi " * 50, "kasa"] * 12
    answers = list(predictor(model).predict(iter(texts), batch_size))
    assert len(answers) == 72
    tokenizer = tiny.tokenizer()
    for text, answer in list(zip(texts, answers, strict=True))[:6]:
        pair = text if isinstance(text, tuple) else (text,)
        inputs = tokenizer(*pair, return_tensors="pt", truncation=True, max_length=32, return_token_type_ids=True)
        with torch.no_grad():
            expected = model(**inputs).logits[0].softmax(0).max().item()
        assert answer["score"] == pytest.approx(expected, abs=1e-6)


def test_special_tokens_in_text_are_text(model):
    one, other = predictor(model).predict(["kasa [SEP] lote", "kasa lote"], 2)
    assert one != other
    ids = predictor(model)._backend.encode("kasa [SEP] lote").ids
    assert ids.count(tiny.tokenizer().sep_token_id) == 1


def test_what_does_not_fit(model):
    with pytest.raises(ValueError, match="--max_seq_length accepts 4 to 32 for this model, not 33"):
        predictor(model, 33)
    with pytest.raises(ValueError, match="accepts sequence classifiers only"):
        predictor(model.bert)
    with pytest.raises(ValueError, match="they do not belong together"):
        predictor(bertarize(tiny_masked.make(vocab_size=9)))


def test_json_lines():
    assert json.loads(json_line(3, {"label": "gut ü", "score": 0.5})) == {"index": 3, "label": "gut ü", "score": 0.5}
    assert "ü" in json_line(0, {"label": "ü"})
    with pytest.raises(ValueError, match="JSON"):
        json_line(0, {"score": float("nan")})


def test_texts_in_an_unknown_script_are_refused(model):
    texts = ["ስልኩ በጣም ጥሩ ነው"] * 8
    with pytest.raises(ValueError, match=r"100 % of the tokens are unknown.*--accept_unknown_tokens"):
        list(Predictor(model, tiny.tokenizer(), 32).predict(texts, 4))


def test_several_labels_at_once():
    """Each label has the sigmoid of its own logit: 3 / 4, and exactly a half, which is not given."""
    several = bertarize(tiny_masked.make(problem_type="multi_label_classification"))
    answer = predictor(several).answer(torch.tensor([math.log(3), 0.0]))
    assert answer == {"labels": ["LABEL_0"], "probabilities": {"LABEL_0": pytest.approx(0.75), "LABEL_1": 0.5}}


def test_answers_that_are_not_finite_are_refused(model):
    with pytest.raises(ValueError, match="NaN or infinite"):
        predictor(model).answer(torch.tensor([0.0, torch.nan]))
