"""The information of every task head: the second derivative of its divergence, and exact over all random signs."""

from __future__ import annotations

import itertools

import pytest
import tiny
import tiny_models
import torch

from emmental.structured.gates import all_open, gated
from emmental.structured.information import fisher_information
from emmental.structured.stepping import inputs_on_device
from emmental.structured.texts import material
from emmental.task_heads import READ, random_signs, task_head

STEP = 0.1


def one_text(kind: str, model_type: str = "bert"):
    """Model, head and a batch of one short text; the passes are enough for the exact information."""
    model = tiny_models.with_head(kind, model_type)
    head = task_head(model, passes=64)
    tokenizer = tiny_models.tokenizer(model_type)
    words = [(a, b) for a in tiny.WORDS[:8] for b in tiny.WORDS[:8]]
    texts = [(f"{a} {b}", f"{b} {a}") if kind in ("spans", "scores") else f"{a} {b}" for a, b in words]
    rows = material(tokenizer, texts, head=head)
    return model, head, {name: value[:1] for name, value in rows.information[0].items()}


def distance_at(model, head, batch, gates):
    """The divergence of the answers from those with open gates, summed over answers."""
    with torch.no_grad():
        dense = head.answers(model(**inputs_on_device(batch, model)), batch)
        with gated(model, gates):
            other = head.answers(model(**inputs_on_device(batch, model)), batch)
    return head.divergences(dense.values.double(), other.values.double(), dense.sizes).sum().item()


@pytest.mark.parametrize("kind", tiny_models.HEADS)
def test_the_information_is_the_second_derivative_of_the_divergence(kind):
    """KL and 1 - cosine are F / 2 h^2 for a gate of 1 + h; a squared difference is F h^2. Odd powers cancel."""
    model, head, batch = one_text(kind)
    found = fisher_information(model, [batch], head=head)
    factor = 0.5 if kind == "scores" else 1.0
    for part, place in [(0, 0), (0, 1), (1, 3), (1, 7), (2, 1), (3, 5)]:
        both = 0.0
        for sign in (1, -1):
            gates = all_open(model)
            gates[part][place] += sign * STEP
            both += distance_at(model, head, batch, gates)
        assert found[part][place].item() == pytest.approx(factor * both / STEP**2, rel=0.03, abs=2e-5), (part, place)


@pytest.mark.parametrize("kind", ["several labels", "tokens", "spans", "embeddings"])
def test_random_signs_are_exact_in_expectation(kind):
    """Over all signs of the places, the mean of u u^T is the exact information of the values."""
    model, head, batch = one_text(kind)
    with torch.no_grad():
        values = head.values(model(**inputs_on_device(batch, model)), batch)[:, :3].double()
    values = values[:2] if kind == "tokens" else values
    batch = {**batch, "attention_mask": torch.ones(1, 3, dtype=torch.int64)} if kind == "spans" else batch
    if kind == "spans":
        batch = {**batch, READ: torch.ones(1, 3, dtype=torch.int64)}
        values = values[:3]
    places = values.numel()
    total = torch.zeros(places, places, dtype=torch.float64)
    for signs in itertools.product((-1.0, 1.0), repeat=places):
        drawn = head.score_factors(values, torch.tensor(signs, dtype=torch.float64).view_as(values), batch).flatten()
        total += torch.outer(drawn, drawn) / 2**places
    torch.testing.assert_close(total, exact(kind, values), rtol=0, atol=1e-12)


def exact(kind: str, values: torch.Tensor) -> torch.Tensor:
    """The information of the flattened values, from its definition."""
    if kind == "embeddings":
        return torch.eye(values.numel(), dtype=torch.float64)
    if kind == "several labels":
        p = values.sigmoid().flatten()
        return torch.diag(p * (1 - p))
    total = torch.zeros(values.numel(), values.numel(), dtype=torch.float64)
    numbers = torch.arange(values.numel()).view_as(values)
    rows = list(zip(values, numbers, strict=True)) if kind == "tokens" else list(zip(values.T, numbers.T, strict=True))
    for logits, places in rows:
        p = logits.softmax(0)
        total[places[:, None], places] = torch.diag(p) - torch.outer(p, p)
    return total


def test_signs_by_hand():
    """Four passes: the rows of the Hadamard matrix of order 4 are orthogonal; places at a distance of 4 are alike."""
    signs = random_signs((2, 3), 3, seed=0).flatten(1)
    assert signs.shape == (4, 6)
    assert signs.abs().eq(1).all()
    products = signs.T @ signs / 4
    assert products[:4, :4].equal(torch.eye(4))
    assert products[0, 4].abs() == 1


def test_few_passes_come_close():
    """With 8 passes, the sums over many texts are within some 20 % of the exact ones."""
    model, tokenizer = tiny_models.with_head("tokens"), tiny_models.tokenizer("bert")
    texts = [" ".join(words) for words in itertools.permutations(tiny.WORDS[:5], 4)]
    estimated, whole = (
        torch.cat(fisher_information(model, material(tokenizer, texts, head=head).information, head=head))
        for head in (task_head(model, passes=8), task_head(model, passes=64))
    )
    assert ((estimated - whole).abs() / whole).median() < 0.2


@pytest.mark.parametrize("kind", tiny_models.HEADS)
def test_every_type_has_every_head(kind, subtests):
    for model_type in tiny_models.MODEL_TYPES:
        with subtests.test(model_type):
            model, head, batch = one_text(kind, model_type)
            assert all(each.isfinite().all() for each in fisher_information(model, [batch], head=head))
