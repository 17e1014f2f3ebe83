"""Flags of a command line. Each is declared once: help, default, accepted values, whether it changes the result."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

MOST = 10**15
"""The largest whole number that a flag takes, so that computing with it stays within 64 bits."""
Value = str | int | float | bool | None


@dataclass(frozen=True)
class Flag:
    """One flag.

    Attributes:
        name: without the leading `--`.
        help: a line for `--help`.
        default: None also if something else decides, such as the task or the number of examples.
        type: converts the text on the command line; `bool` is a switch, with a `--no-` form.
        changes_result: whether another value gives other weights. A resumed run must have the same values of these.
            The name of a switch: only where that one is on.
        at_least: the smallest number accepted.
        above_zero: whether only numbers above 0 are accepted.
        accepts: the values accepted; None: all.
        several: whether it takes a list of one or more values.
        by_recipe: what `--recipe auto` takes if the flag is not given, in words for `--help`; empty: the default.
        earlier: the value for recorded runs that are older than the flag; None: the default.
    """

    name: str
    help: str
    default: Any = None
    type: Callable[[str], Any] = str
    changes_result: bool | str = True
    at_least: float | None = None
    above_zero: bool = False
    accepts: tuple[Value, ...] | None = None
    several: bool = False
    by_recipe: str = ""
    earlier: Any = None

    @property
    def described(self) -> str:
        """The line for `--help`, with what counts if the flag is not given."""
        if self.by_recipe:
            return f"{self.help} (default: {self.by_recipe}; paper: {self.default})"
        return self.help if self.default in (None, "", False) else f"{self.help} (default: {self.default})"

    def problem(self, value: Any) -> str | None:
        """Why the flag does not accept a value, in one line; None if it does."""
        if self.several:
            single = replace(self, several=False)
            return next((problem for one in value or () if (problem := single.problem(one))), None)
        if self.accepts is not None and value not in self.accepts:
            accepted = ", ".join("none" if one is None else str(one) for one in self.accepts)
            return f"--{self.name} accepts {accepted}, not {value!r}"
        if value is None or (self.at_least is None and not self.above_zero):
            return None
        if isinstance(value, int) and abs(value) > MOST:
            return f"--{self.name} accepts numbers up to {MOST}, not one of {len(str(abs(value)))} digits"
        if self.above_zero and not (math.isfinite(value) and value > 0):
            return f"--{self.name} accepts numbers above 0, not {value}"
        if self.at_least is not None and not (math.isfinite(value) and value >= self.at_least):
            return f"--{self.name} accepts numbers from {self.at_least}, not {value}"
        return None


def flag(name: str, help: str, default: Any = None, type: Callable[[str], Any] | None = None, **rules: Any) -> Flag:
    """Declare a flag that takes a value, of the type of its default or of `type`; `rules`: see `Flag`."""
    return Flag(name, help, default, type or (str if default is None else default.__class__), **rules)


def switch(name: str, help: str, default: bool | None = False, **rules: Any) -> Flag:
    """Declare a flag that is on or off; `rules`: see `Flag`."""
    return Flag(name, help, default, bool, **rules)


class Flags(argparse.Namespace):
    """The values of a program's flags, each an attribute.

    Args:
        groups: title in `--help` -> the program's flags under it.
        given: name -> value of the flags that the user gave; the others have their defaults.

    Attributes:
        declared: the program's flags.
        explicit: names of the flags that the user gave, with any value.
    """

    __slots__ = ("declared", "explicit")

    def __init__(self, groups: Mapping[str, Iterable[Flag]], given: Mapping[str, Any]) -> None:
        self.declared = tuple(one for flags in groups.values() for one in flags)
        self.explicit = frozenset(given)
        super().__init__(**{one.name: one.default for one in self.declared} | dict(given))

    def problems(self) -> Iterator[str]:
        """A line for each flag whose value is not accepted."""
        return (problem for one in self.declared if (problem := one.problem(getattr(self, one.name))))

    def all(self) -> dict[str, Value]:
        """Name -> value of every flag, for the record beside the results."""
        return {one.name: getattr(self, one.name) for one in self.declared}

    def of_result(self) -> dict[str, Value]:
        """Name -> value of the flags that change the resulting weights."""
        return {one.name: getattr(self, one.name) for one in self.declared if self._changes_result(one)}

    def _changes_result(self, one: Flag) -> bool:
        return getattr(self, one.changes_result) if isinstance(one.changes_result, str) else one.changes_result
