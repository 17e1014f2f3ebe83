"""What task heads say of two models' answers, in numbers that a person can check."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tiny_models
import torch
from torch import nn

from emmental.errors import UserError
from emmental.task_heads import Answers, task_head
from emmental.tasks.entities import entities, shared_entities
from emmental.tasks.metrics import mean_average_precision, ranking_figures


def given(values, sizes=None) -> Answers:
    values = torch.tensor(values)
    return Answers(values, torch.tensor(sizes or [1] * len(values)))


def figures(head, dense, pruned, groups=None):
    return {each.name: each.value for each in head.figures(dense, pruned, groups)}


def compared(kind, dense, pruned, sizes=None):
    head = task_head(tiny_models.with_head(kind))
    return head, head.agreement(head.sums(given(dense, sizes), given(pruned, sizes)))


def test_classes():
    dense = torch.tensor([[0.0, 0.0], [2.0, 0.0]]).log_softmax(1)
    _, found = compared("classes", dense.tolist(), [[-math.log(2)] * 2, dense[1].flip(0).tolist()])
    assert found.changed == 0.5
    assert found.divergence == pytest.approx((2 * dense[1].exp()[0] - 2 * dense[1].exp()[1]).item() / 2)


def test_scores():
    _, line = compared("scores", [[0.0], [2.0]], [[0.0], [1.0]])
    assert (line.changed, line.divergence) == (0.5, 0.5)


def test_several_labels():
    """One of six labels, in one of two texts. p becomes 1 - p: KL = (1 - 2 p) log((1 - p) / p), and the log is 1."""
    head, found = compared("several labels", [[1.0, -1.0, -1.0], [1.0, 1.0, 1.0]], [[1.0, 1.0, -1.0], [1.0, 1.0, 1.0]])
    assert found.changed == 0.5
    p = 1 / (1 + math.e)
    assert found.divergence == pytest.approx((1 - 2 * p) / 2)
    named = figures(head, given([[1.0, -1.0, -1.0]]), given([[1.0, 1.0, -1.0]]))
    assert named["labels that change"] == pytest.approx(1 / 3)


def test_tokens_and_their_spans():
    head = task_head(tiny_models.with_head("tokens", id2label={0: "O", 1: "B-X", 2: "I-X"}))
    tags = torch.eye(3)
    dense = Answers(tags[[0, 1, 2, 0, 1]], torch.tensor([3, 2]))
    pruned = Answers(tags[[0, 1, 0, 0, 1]], torch.tensor([3, 2]))
    named = figures(head, dense, pruned)
    assert named["tokens that change"] == pytest.approx(1 / 5)
    assert named["spans that change"] == pytest.approx(0.5)


def test_spans_of_texts():
    """Two texts of two tokens: the end of the second answer moves."""
    values = [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]
    _, found = compared("spans", values, [*values[:2], [1.0, 1.0], [0.0, 0.0]], [2, 2])
    assert found.changed == 0.5
    assert found.divergence == pytest.approx((1 / (1 + 1 / math.e) - 1 / (1 + math.e)) / 2)


def test_embeddings():
    """The third text's neighbour changes; cosines are 1, 1 and 0."""
    dense, pruned = [[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]], [[1.0, 0.0], [0.8, 0.6], [1.0, 0.0]]
    head, found = compared("embeddings", dense, pruned)
    assert found.divergence == pytest.approx(1 / 3, abs=1e-6)
    assert found.changed == pytest.approx(2 / 3)
    named = figures(head, given(dense), given(pruned))
    assert named["cosine"] == pytest.approx(2 / 3, abs=1e-6)


def test_equal_texts_are_neighbours_of_each_other():
    """Of three equal texts, any other one is the nearest."""
    head = task_head(tiny_models.with_head("embeddings"))
    same = given([[1.0, 0.0]] * 3)
    assert head.agreement(head.sums(same, same)).changed == 0


def test_sums_of_halves_are_those_of_the_whole():
    for kind in ("classes", "several labels", "scores", "tokens"):
        head = task_head(tiny_models.with_head(kind))
        one, other = torch.randn(2, 6, head.names and len(head.names), generator=torch.Generator().manual_seed(0))
        parts = [head.sums(given(one[rows].tolist()), given(other[rows].tolist())) for rows in (slice(2), slice(2, 6))]
        whole = head.sums(given(one.tolist()), given(other.tolist()))
        torch.testing.assert_close(parts[0] + parts[1], whole)


def test_rankings_by_hand():
    """Dense puts b before a; pruned the other way round. Relevances 10 and 9 at discounts 1 and 1 / log2(3)."""
    found = ranking_figures(np.array([1.0, 2.0, 5.0]), np.array([2.0, 1.0, 5.0]), np.array([0, 0, 1]))
    discount = 1 / math.log2(3)
    assert found["first place kept"] == 0
    assert found["nDCG@10"] == pytest.approx((9 + 10 * discount) / (10 + 9 * discount))
    assert found["Kendall's tau"] == -1
    assert ranking_figures(np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0])) == {
        "Kendall's tau": pytest.approx(1 / 3)
    }


def test_map_and_mrr_by_hand():
    """Right answers in places 2 and 3: (1/2 + 2/3) / 2. A query without a wrong candidate does not count."""
    assert mean_average_precision([np.array([0, 1, 1]), np.array([1])]) == (pytest.approx(7 / 12), 0.5)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O B-X I-X O", {(1, 3, "X")}),
        ("B-X B-X", {(0, 1, "X"), (1, 2, "X")}),
        ("I-X I-Y", {(0, 1, "X"), (1, 2, "Y")}),
        ("S-X B-X E-X", {(0, 1, "X"), (1, 3, "X")}),
        ("name name O name", {(0, 2, "name"), (3, 4, "name")}),
        ("O O", set()),
    ],
)
def test_entities(tags, expected):
    assert entities(tags.split()) == expected


def test_shared_entities():
    """Two of the first, one of the second, one in both: 2 x 1 / 3."""
    assert shared_entities([(["B-X", "O", "B-Y"], ["B-X", "O", "O"])]) == pytest.approx(2 / 3)
    assert shared_entities([(["O"], ["O"])]) == 1.0


def test_metrics_where_labels_are_given():
    several = task_head(tiny_models.with_head("several labels"))
    found = several.metric(given([[1.0, -1.0, 1.0], [-1.0, -1.0, -1.0]]), [[1, 0, 0], [0, 1, 0]])
    assert (found.name, found.value) == ("micro F1", 0.5)
    classes = task_head(tiny_models.with_head("classes"))
    assert classes.metric(given([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), [0, 1]).value == 0.5
    scores = task_head(tiny_models.with_head("scores"))
    assert scores.metric(given([[1.0], [2.0], [3.0]]), [2.0, 4.0, 6.0]).value == pytest.approx(1.0)


def test_distance_of_equal_answers_is_zero():
    for kind in tiny_models.HEADS:
        head = task_head(tiny_models.with_head(kind))
        values = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
        values = nn.functional.normalize(values) if kind == "embeddings" else values
        sizes = torch.tensor([2, 2]) if kind in ("tokens", "spans") else torch.ones(4, dtype=torch.int64)
        assert head.distance(values, values, sizes).item() == pytest.approx(0, abs=1e-6)
        assert head.distance(values.flip(1), values, sizes).item() > 0.01


def test_other_heads_are_refused():
    from transformers import BertForMaskedLM

    with pytest.raises(UserError, match=r"accepts .*sequence classifiers.* it is a BertForMaskedLM"):
        task_head(BertForMaskedLM(tiny_models.config("bert")))
