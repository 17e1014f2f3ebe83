"""The experiment with cascades: its tickets, and its table."""

from __future__ import annotations

import random

import pytest

from emmental.cascade.rows import Rows
from emmental.cascade.serving import Cascade, Step
from experiments.cascade.table import measured, table
from experiments.cascade.tickets import TOPICS, tickets


def test_tickets_are_made_from_a_seed():
    rows = tickets(500, random.Random(1))
    assert rows == tickets(500, random.Random(1))
    assert len({text for text, _ in rows}) == 500
    assert {label for _, label in rows} == {*TOPICS}
    assert all("{" not in text for text, _ in rows)


class Known:
    """A stage whose logits are the number in each text, less this."""

    def __init__(self, less: float) -> None:
        self.less = less

    def logits(self, texts, batch_size=32):
        import numpy as np

        values = np.array([float(text) - self.less for text in texts])
        return np.stack([-values, values], axis=1)


def test_the_table_counts_on_the_dev_rows():
    """The early stage answers texts beyond 1, and calls 1.5 bad, which the last one calls good."""
    early, last = Step("early", Known(1.6), 0.0, 1.0), Step("dense", Known(0.0), 0.0, 1.0)
    cascade = Cascade(["bad", "good"], [early, last], False, False, {})
    dev = Rows(["-2", "1.5", "3", "-1"], ["bad", "good", "good", "good"])
    alone, joined = measured({0.3: cascade}, dev)
    assert (alone["accuracy"], alone["changed"]) == (0.75, 0)
    assert (joined["accuracy"], joined["changed"]) == (0.5, 0.25)
    assert joined["answered"] == {"early": 4, "dense": 0}
    assert joined["standard_error"] == pytest.approx(0.25)
    assert len(table([alone, joined]).splitlines()) == 4
