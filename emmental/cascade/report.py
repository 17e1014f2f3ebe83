"""What a cascade does, for people: a table, a card and a picture, from the record in `cascade.json`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from emmental.cascade.timing import BATCH, MS_ALONE, MS_BATCHED

if TYPE_CHECKING:
    from emmental.pictures.canvas import Chart

PICTURE = "cascade.png"


def table(record: dict[str, Any]) -> str:
    """Markdown: a line for each model, and for each promise; times in milliseconds and times the last stage."""
    last = record["models"][-1]
    names = [one["name"] for one in record["models"]]
    head, rows = short_table(record)
    rows = [[*cells, ""] for cells in rows[:-1]]
    for one in record["table"]:
        shares = " / ".join(f"{100 * share:.0f}" for share in one["shares"].values())
        chosen = " (served)" if one["promise"] == record["promise"]["changed"] else ""
        name = f"cascade, {100 * one['promise']:g} % may change{chosen}"
        rows.append([*_line(name, one, last), f"{shares} %"])
    return _markdown([*head, f"answered by {' / '.join(names)}"], rows)


def compared(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows for the summary of a run, ready for JSON: each model alone, then the cascade as it is served.

    Each has `name`, `engine` (models only), `accuracy` if there are labels, `changed` (the share of the answers that
    differ from the last stage's), and mean milliseconds of single texts and of batches.
    """
    keys = ("engine", "accuracy", "changed", MS_ALONE, MS_BATCHED)
    named = [*((one["name"], one) for one in record["models"]), (_served(record), record["measured"])]
    return [{"name": name, **{key: one[key] for key in keys if key in one}} for name, one in named]


def short_table(record: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Heading and cells: each model alone, and the cascade as it is served as one row."""
    last = record["models"][-1]
    rows = [_line(f"{one['name']}, {one['engine']}", one, last) for one in record["models"]]
    return _heading(record), [*rows, _line(_served(record), record["measured"], last)]


def result_lines(record: dict[str, Any]) -> list[str]:
    """The result of a build for people: table, promise, what was left out."""
    out = left_out(record)
    return [
        *table(record).splitlines(),
        "",
        summary(record),
        *([f"left out, because they do not pay: {', '.join(out)}"] if out else []),
    ]


def section(record: dict[str, Any], folder: str, has_picture: bool) -> str:
    """The cascade in the card of the run that made it, in Markdown.

    Args:
        record: what `cascade.json` holds.
        folder: of the cascade, relative to the card.
        has_picture: whether the folder has a picture.
    """
    picture = f"![answers changed and accuracy over milliseconds]({folder}/{PICTURE})\n\n" if has_picture else ""
    return f"""
## Cascade

`{folder}` serves these models together: a cheap stage answers what it is sure of, a dearer one the rest.

{_markdown(*short_table(record))}

{summary(record)[:1].upper()}{summary(record)[1:]}.

{picture}```python
from emmental.cascade import load

load("{folder}")(["a text"])
```
"""


def _served(record: dict[str, Any]) -> str:
    return f"cascade, {100 * record['promise']['changed']:g} % may change"


def _heading(record: dict[str, Any]) -> list[str]:
    accuracy = ["accuracy"] if "accuracy" in record["models"][-1] else []
    return ["", *accuracy, "answers changed", "at most", "ms, single texts", f"ms, batches of {BATCH}"]


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def _line(name: str, one: dict[str, Any], last: dict[str, Any]) -> list[str]:
    accuracy = [f"{100 * one['accuracy']:.1f} %"] if "accuracy" in one else []
    bound = f"{100 * one['bound']:.2f} %" if "bound" in one else ""
    times = [f"{one[key]:.2f} ({last[key] / one[key]:.1f} x)" for key in (MS_ALONE, MS_BATCHED)]
    return [name, *accuracy, f"{100 * one['changed']:.2f} %", bound, *times]


def summary(record: dict[str, Any]) -> str:
    """The promise, what was measured, and the bound, in one line."""
    promise, measured = record["promise"], record["measured"]
    sure = 100 * (1 - promise["delta"])
    if len(record["stages"]) == 1:
        return (
            f"no stage before {promise['of']} pays under this promise ({100 * promise['changed']:g} % may change): "
            "the cascade is this model alone; more texts, or a larger --changed, allow more"
        )
    return (
        f"promised: at most {100 * promise['changed']:g} % of the answers differ from {promise['of']}'s; measured: "
        f"{measured['count']} of {measured['rows']} ({100 * measured['changed']:.2f} %), at most "
        f"{100 * measured['bound']:.2f} % with {sure:g} % confidence; "
        f"{record['models'][-1]['milliseconds'] / measured['milliseconds']:.1f} times as fast"
    )


def left_out(record: dict[str, Any]) -> list[str]:
    """Names of the stages that do not pay."""
    kept = {one["name"] for one in record["stages"]}
    return [one["name"] for one in record["models"] if one["name"] not in kept]


def card(record: dict[str, Any]) -> str:
    """The README.md of the folder."""
    stages = "\n".join(
        f"{number}. {one['name']} ({one['engine']})" + (f", if its confidence is at least {one['threshold']:.4f}")
        for number, one in enumerate(record["stages"][:-1], start=1)
    )
    last = record["stages"][-1]
    stages += f"\n{len(record['stages'])}. {last['name']} ({last['engine']}) answers what is left."
    out = f"Left out, because they do not pay: {', '.join(left_out(record))}.\n" if left_out(record) else ""
    rows, judged = record["calibration"], record.get("judged_on")
    accuracy = f" Accuracies: on {judged} labelled rows." if judged else ""
    return f"""# A cascade

{stages.strip()}

{summary(record)}.
{out}
Counted on {rows["tested_on"]} texts that did not choose the thresholds, of {rows["texts"]}.{accuracy}
`cascade.json` has the numbers.

{table(record)}

```python
from emmental.cascade import load

classify = load(".")
classify(["a text"])  # label and score; classify.classify also says which stage answered
```
"""


def picture(record: dict[str, Any]) -> Chart:
    """Answers changed, and accuracy if there are labels, over milliseconds: models alone, and the cascade."""
    from emmental.pictures.cascade import cascade_picture

    keys = [("answers changed (%)", "changed"), ("accuracy (%)", "accuracy")]
    panels = {
        title: (
            [100 * one[key] for one in record["models"]],
            [100 * one[key] for one in record["table"]],
        )
        for title, key in keys
        if key in record["models"][-1]
    }
    return cascade_picture(
        [one["name"] for one in record["models"]],
        [one["milliseconds"] for one in record["models"]],
        [f"{100 * one['promise']:g} %" for one in record["table"]],
        [one["milliseconds"] for one in record["table"]],
        panels,
        title="A cascade beside its models",
    )
