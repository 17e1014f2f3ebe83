"""What the harness counts: how many faults of a kind were tried, and how many the program came through."""

from __future__ import annotations

import fcntl
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
RESULTS, README = HERE / "results.json", HERE / "README.md"
_START, _END = "<!-- table: written by run.py -->", "<!-- end of the table -->"


@dataclass
class Tally:
    """One line of the table.

    Attributes:
        kind: of fault, and what it was done to.
        survived: with what the program promises after such a fault.
        unit: what is counted.
        seconds: spent on it.
        note: anything a reader must know, such as what could not be tried here.
        lost: a line for each fault after which a promise did not hold.
    """

    kind: str
    survived: int = 0
    unit: str = "runs"
    seconds: float = 0.0
    note: str = ""
    lost: list[str] = field(default_factory=list)

    @property
    def tried(self) -> int:
        """All of them."""
        return self.survived + len(self.lost)

    def count(self, problem: str | None) -> None:
        """One fault more: None when every promise held, else what did not."""
        if problem is None:
            self.survived += 1
        else:
            self.lost.append(problem)


class Clock:
    """Adds the seconds inside it to a tally."""

    def __init__(self, tally: Tally) -> None:
        self._tally, self._started = tally, 0.0

    def __enter__(self) -> Tally:
        self._started = time.monotonic()
        return self._tally

    def __exit__(self, *_: object) -> None:
        self._tally.seconds += time.monotonic() - self._started


def store(part: str, tallies: list[Tally]) -> None:
    """Put the lines of one part of the long form into `results.json`, and the table of all into the README."""
    with open(README, encoding="utf-8") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # parts may run side by side
        results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
        results[part] = [{**asdict(tally), "tried": tally.tried} for tally in tallies]
        RESULTS.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n", encoding="utf-8")
        before, _, rest = README.read_text(encoding="utf-8").partition(_START)
        _, _, after = rest.partition(_END)
        README.write_text(f"{before}{_START}\n{table(results)}\n{_END}{after}", encoding="utf-8")


def table(results: dict[str, list[dict]]) -> str:
    """The results in Markdown, with sums of what the issue asks for."""
    lines = ["| part | kind of fault | tried | survived | lost | time |", "|---|---|---:|---:|---:|---:|"]
    for part, rows in results.items():
        for row in rows:
            note = f" ({row['note']})" if row["note"] else ""
            counts = f"{row['tried']:,} {row['unit']} | {row['survived']:,} | {len(row['lost'])}"
            lines.append(f"| {part} | {row['kind']}{note} | {counts} | {row['seconds']:.0f} s |")
    rows = [row for part in results.values() for row in part]
    sums = f"{sum(row['tried'] for row in rows):,} | {sum(row['survived'] for row in rows):,}"
    lost = sum(len(row["lost"]) for row in rows)
    lines.append(f"| all | | {sums} | {lost} | {sum(row['seconds'] for row in rows):.0f} s |")
    return "\n".join(lines)
