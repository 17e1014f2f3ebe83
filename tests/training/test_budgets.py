"""The price that a budget in speed is tuned to is measured once."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import tiny_models

from emmental.runs.output_folder import OutputFolder
from emmental.runs.processes import Processes
from emmental.training.budgets import SPEED_FILE, tune_price_once, tuned_before


@pytest.fixture
def run(tmp_path):
    output = OutputFolder(tmp_path / "out")
    yield SimpleNamespace(processes=Processes(), output=output)
    output.close()


def test_a_price_istune_price_once(run):
    """The second time it is read; another start is tuned anew; the table beside them stays."""
    file, asked = run.output.path / SPEED_FILE, []
    run.output.write_json(SPEED_FILE, {"table": 1})

    def tune(candidate, price):
        asked.append(price)
        return price / 3

    def candidate(price):
        return tiny_models.model("bert")

    for price in (2.0, 2.0, 1.0):
        assert tune_price_once(run, file, tune, candidate, price) == price / 3
    assert asked == [2.0, 1.0]
    stored = json.loads(file.read_text())
    assert stored["table"] == 1
    assert sorted(stored["settled"].values()) == [1 / 3, 2 / 3]


@pytest.mark.parametrize("damage", ["fast", None, -1.0, float("nan"), [1.0]])
def test_a_damaged_price_is_measured_anew(tmp_path, damage):
    file = tmp_path / SPEED_FILE
    file.write_text(json.dumps({"settled": {"first": damage}}))
    assert tuned_before(file, "first") is None
    file.write_text(json.dumps({"settled": damage}))
    assert tuned_before(file, "first") is None
