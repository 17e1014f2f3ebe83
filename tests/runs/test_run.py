"""A run: its flags are its attributes, and a part of it has other flags."""

from __future__ import annotations

from pathlib import Path

import pytest

from emmental.flags import Flags, flag
from emmental.runs.run import Run

GROUPS = {"all": (flag("output_dir", "folder", "out"), flag("learning_rate", "rate", 1.0))}


def test_a_flag_is_an_attribute():
    run = Run(Flags(GROUPS, {"learning_rate": 2.0}))
    run.learning_rate *= 2
    assert run.flags.learning_rate == run.learning_rate == 4.0


@pytest.mark.parametrize("name", ["task", "output", "folder", "identity"])
def test_no_flag_hides_behind_an_attribute(name):
    with pytest.raises(AssertionError, match=f"a flag cannot be called like an attribute of a run: {name}"):
        Run(Flags({"all": (*GROUPS["all"], flag(name, "another"))}, {}))


def test_a_part_has_its_own_flags_and_shares_the_data():
    run = Run(Flags(GROUPS, {}))
    run.contents["data"] = "abc"
    part = run.part(Path("out/dense"), learning_rate=3.0)
    part.contents["teacher"] = "def"
    assert (part.folder, part.learning_rate, run.learning_rate) == (Path("out/dense"), 3.0, 1.0)
    assert part.datasets is run.datasets
    assert run.contents == {"data": "abc"}
    assert run.part(learning_rate=3.0).folder == Path("out")
