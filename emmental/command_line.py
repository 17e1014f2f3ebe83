"""Shared by all command lines: a parser, checks of numbers, and one line per mistake."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from emmental.atomic import folder_of_user
from emmental.errors import UserError
from emmental.flags import Flag, Flags

logger = logging.getLogger(__name__)


class OneLineParser(argparse.ArgumentParser):
    """A parser that answers a mistake with one line and exit status 2. It takes no abbreviated flags."""

    def __init__(self, description: str, prog: str | None = None) -> None:
        escape_what_cannot_be_printed()
        super().__init__(
            prog=prog,
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Print the mistake and exit with status 2."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As in argparse, but `~/` at the start of a value is the home folder: shells leave it in `--flag=~/x`."""
        _ensure_home(os.environ)
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args([_at_home(word) for word in words], namespace)

    def format_help(self) -> str:
        """As in argparse, without the empty defaults."""
        return re.sub(r"\s*\(default:\s+(None|False)\)", "", super().format_help())

    def declare(self, title: str, *flags: Flag, shown: Container[str] | None = None) -> None:
        """Add a group of declared flags. The parsed result holds only those that the command line gives.

        Args:
            title: heading of the group in `--help`.
            flags: those of the group.
            shown: names of the flags that `--help` shows; None shows all.
        """
        group = self.add_argument_group(title)
        for one in flags:
            how = {"type": one.type, "metavar": {int: "N", float: "X"}.get(one.type, "VALUE")}
            how = {"action": argparse.BooleanOptionalAction} if one.type is bool else how
            how |= {"nargs": "+"} if one.several else {}
            help = one.described.replace("%", "%%")
            if shown is not None and one.name not in shown:
                help = argparse.SUPPRESS
            group.add_argument(f"--{one.name}", default=argparse.SUPPRESS, help=help, **how)


def escape_what_cannot_be_printed() -> None:
    """Let standard output and error write characters that their encoding lacks as escapes, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure") and getattr(stream, "errors", "") in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")


def _ensure_home(environment: MutableMapping[str, str]) -> None:
    """Give a user without home folder (of a container, without entry in passwd) one: libraries read `~` on import."""
    with suppress(RuntimeError):
        if Path.home().is_dir():
            return
    with suppress(OSError):
        environment["HOME"] = str(folder_of_user())
        print(f"there is no home folder: {environment['HOME']} is used instead", file=sys.stderr)


def _at_home(word: str) -> str:
    name, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return f"{name}{equals}{os.path.expanduser(value)}" if value.startswith("~/") else word


def parse_flags(
    description: str,
    groups: Mapping[str, Iterable[Flag]],
    argv: Sequence[str] | None,
    everyday: str,
    complete: Callable[[Flags], None],
    problems: Callable[[Flags], Iterable[str]],
) -> Flags:
    """The flags of `argv` (None: the arguments of the process), checked together.

    If there are mistakes, print a line for each and exit with status 2.

    Args:
        description: what the program does, for `--help`.
        groups: title of a group -> its flags.
        argv: the command line.
        everyday: names of the flags that most people need, with spaces between. `--help` shows only these.
        complete: sets flags that follow from others.
        problems: finds the mistakes in the flags, a line each.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = OneLineParser(description)
    parser.usage = f"{parser.prog} [flags]"
    parser.formatter_class = partial(argparse.HelpFormatter, max_help_position=34)
    parser.add_argument("--help_all", action="help", help="show every flag and exit")
    for title, flags in groups.items():
        parser.declare(title, *flags, shown=None if "--help_all" in argv else everyday.split())
    flags = Flags(groups, vars(parser.parse_args(argv)))
    complete(flags)
    leave_if(problems(flags), parser.prog)
    return flags


def range_problems(
    args: argparse.Namespace, at_least: Mapping[str, float], above_zero: Iterable[str] = ()
) -> list[str]:
    """A line for each flag whose number is too small, not above zero, absurdly large or not finite; None passes."""
    rules = [Flag(name, "", at_least=least) for name, least in at_least.items()]
    rules += [Flag(name, "", above_zero=True) for name in above_zero]
    return [problem for rule in rules if (problem := rule.problem(getattr(args, rule.name)))]


def leave_if(problems: Iterable[str], program: str) -> None:
    """Print the mistakes, a line each, and exit with status 2. Return if there is none."""
    lines = [f"{program}: error: {problem}" for problem in problems]
    if lines:
        _say("\n".join(lines))
        sys.exit(2)


def _say(mistake: str) -> None:
    """Print what is wrong, and write it to the file that torchrun reads for its report."""
    print(mistake, file=sys.stderr)
    if report := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        Path(report).write_text(json.dumps({"message": mistake}), encoding="utf-8")


@contextmanager
def user_mistakes() -> Iterator[None]:
    """Turn a `UserError` inside the block into one line on standard error and exit status 2."""
    try:
        yield
    except UserError as error:
        logger.debug("where it happened", exc_info=True)
        started = Path(sys.argv[0])
        program = started.parent.name if started.name == "__main__.py" else started.name
        _say(f"{program}: error: {' '.join(str(error).split())}")
        raise SystemExit(2) from error
