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


def model_folder(made: OneLineParser, help: str, required: bool = False) -> None:
    """Add `--model_name_or_path`, read as `model`; `--model` is its short name."""
    made.add_argument("--model_name_or_path", "--model", dest="model", type=Path, required=required, help=help)
