"""What the short fault tests share: one world, and the runs that nothing disturbed."""

from __future__ import annotations

import pytest
from faults.kills import Uninterrupted
from faults.runs import World


@pytest.fixture(scope="package")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="package")
def known(tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    return Uninterrupted(tmp_path_factory.mktemp("uninterrupted"))
