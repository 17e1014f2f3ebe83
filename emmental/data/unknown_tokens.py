"""Finds texts in a script or language that a vocabulary lacks: their words become one and the same unknown token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from emmental.errors import UserError

WARNED, REFUSED = 0.01, 0.5
"""Share of unknown tokens, or of texts that become equal, from which there is a warning; and above which a refusal."""
_FEWEST_TOKENS = 20
"""Fewer tokens are not refused."""
_SHOWN = 60
FLAG = "--accept_unknown_tokens"


@dataclass(frozen=True)
class UnknownTokens:
    """What a tokenizer does not know of some texts.

    Attributes:
        tokens: number of tokens, special ones left out.
        unknown: how many of them are the unknown token.
        texts: number of different texts.
        equal: how many of these have the same tokens as another one, unknown tokens among them.
        example: the text with the most unknown tokens, cut short.
    """

    tokens: int = 0
    unknown: int = 0
    texts: int = 0
    equal: int = 0
    example: str = ""

    @property
    def share(self) -> float:
        """Unknown tokens among all, from 0 to 1."""
        return self.unknown / max(self.tokens, 1)

    @property
    def matters(self) -> bool:
        """Whether a user should know."""
        return bool(self.unknown) and max(self.share, self.equal / max(self.texts, 1)) >= WARNED

    def __str__(self) -> str:
        equal = f"; {self.equal} of {self.texts} different texts have the same tokens as another one"
        return (
            f"{100 * self.share:.0f} % of the tokens are unknown to the tokenizer, as in {self.example!r}"
            f"{equal if self.equal else ''}. The model does not know this language or script"
        )


class UnknownCounter:
    """Counts the unknown tokens of texts, given in parts.

    Args:
        unknown_id: id of the unknown token; None if every text can be spelt, as with bytes.
        special: number of special tokens in the tokens of each text.
    """

    def __init__(self, unknown_id: int | None, special: int) -> None:
        self._unknown_id, self._special = unknown_id, special
        self._tokens = self._unknown = self._most = 0
        self._example = ""
        self._seen: set[int] = set()
        self._inputs: dict[tuple[int, ...], set[str]] = {}

    def add(self, texts: Iterable[str | Sequence[str]], ids: Iterable[list[int]]) -> UnknownCounter:
        """Add texts or pairs, and the tokens of each."""
        if self._unknown_id is None:
            return self
        for text, row in zip(texts, ids, strict=True):
            plain = (text if isinstance(text, str) else " / ".join(text)).strip()
            missed = row.count(self._unknown_id)
            self._tokens += max(len(row) - self._special, 0)
            self._unknown += missed
            self._seen.add(hash(plain))
            if missed > self._most:
                self._most, self._example = missed, plain
            if missed:
                self._inputs.setdefault(tuple(row), set()).add(plain)
        return self

    def found(self) -> UnknownTokens:
        """What was counted so far."""
        equal = sum(len(each) for each in self._inputs.values() if len(each) > 1)
        return UnknownTokens(self._tokens, self._unknown, len(self._seen), equal, _cut(self._example))


def problem(found: UnknownTokens, where: str, accepted: bool, flag: str = FLAG) -> str | None:
    """The warning about texts with many unknown tokens; None if they are few.

    Args:
        where: the texts, for messages.
        accepted: whether the user insists.
        flag: what the user gives to insist.

    Raises:
        UserError: more than half of the tokens are unknown, and the user does not insist.
    """
    if not found.matters:
        return None
    if found.share > REFUSED and found.tokens >= _FEWEST_TOKENS and not accepted:
        raise UserError(f"{where}: {found}; give a model of this language, or {flag}")
    return f"{where}: {found}"


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
