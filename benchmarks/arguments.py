"""Flags that all measurements share."""

from __future__ import annotations

import os
from pathlib import Path

from emmental.command_line import OneLineParser


def parser(description: str) -> OneLineParser:
    """A parser with the flags of every measurement: `--threads` and `--json`."""
    made = OneLineParser(description)
    made.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of PyTorch")
    made.add_argument("--json", type=Path, default=None, help="file to write the numbers to")
    return made
