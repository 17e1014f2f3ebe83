"""What every command line of this project shares: a parser, switches, checks of numbers, and one line per mistake."""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from safetensors import SafetensorError

from emmental.errors import UserError

logger = logging.getLogger(__name__)


class OneLineParser(argparse.ArgumentParser):
    """A parser that answers a mistake with one line, exit status 2, and takes no abbreviated flags."""

    def __init__(self, description: str, prog: str | None = None) -> None:
        super().__init__(
            prog=prog,
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Print the mistake and leave with status 2."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def switch(group: argparse._ActionsContainer, flag: str, help: str, default: bool | None = False) -> None:
    """Add a boolean flag with its `--no-` form."""
    group.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=help)


MOST = 10**15
"""No whole number that a flag takes is larger: computing with it stays within 64 bits."""


def explicit_flags(build_parser: Callable[[], argparse.ArgumentParser], argv: Sequence[str] | None) -> frozenset[str]:
    """Names of the flags that the command line gives, whatever their value."""
    parser = build_parser()
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    return frozenset(vars(parser.parse_args(argv)))


def range_problems(
    args: argparse.Namespace, at_least: Mapping[str, float], above_zero: Iterable[str] = ()
) -> list[str]:
    """A line for each flag whose number is too small, not above zero, absurdly large or not finite; None passes."""
    problems = []
    for flag, least in at_least.items():
        value = getattr(args, flag)
        if isinstance(value, int) and abs(value) > MOST:
            problems.append(f"--{flag} accepts numbers up to {MOST}, not one of {len(str(abs(value)))} digits")
        elif value is not None and not (math.isfinite(value) and value >= least):
            problems.append(f"--{flag} accepts numbers from {least}, not {value}")
    for flag in above_zero:
        if not (math.isfinite(getattr(args, flag)) and getattr(args, flag) > 0):
            problems.append(f"--{flag} accepts numbers above 0, not {getattr(args, flag)}")
    return problems


def leave_if(problems: Iterable[str], program: str) -> None:
    """Print the mistakes, a line each, and end the program with status 2; return when there is none."""
    problems = list(problems)
    for problem in problems:
        print(f"{program}: error: {problem}", file=sys.stderr)
    if problems:
        sys.exit(2)


@contextmanager
def user_mistakes() -> Iterator[None]:
    """Turn what the user got wrong inside the block into one line on standard error and exit status 2."""
    try:
        yield
    except (UserError, OSError, SafetensorError) as error:
        logger.debug("where it happened", exc_info=True)
        message = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, SafetensorError):
            message = f"a .safetensors file is damaged: {message}"
        print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
        raise SystemExit(2) from error
