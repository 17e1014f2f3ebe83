"""What a cascade does, for people: a table, a card and a picture, from the record in `cascade.json`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from emmental.cascade.timing import BATCH

if TYPE_CHECKING:
    from emmental.pictures.canvas import Chart

_TOGETHER = f"milliseconds_in_batches_of_{BATCH}"


def table(record: dict[str, Any]) -> str:
    """Markdown: a line for each model, and for each promise; times in milliseconds and times the last stage."""
    last = record["models"][-1]
    labelled = "accuracy" in last
    names = [one["name"] for one in record["models"]]
    head = [
        "",
        *(["accuracy"] if labelled else []),
        "answers changed",
        "at most",
        "ms, single texts",
        f"ms, batches of {BATCH}",
    ]
    lines = [[*head, f"answered by {' / '.join(names)}"]]
    lines += [_line(one["name"] + f", {one['engine']}", one, last, "") for one in record["models"]]
    for one in record["table"]:
        shares = " / ".join(f"{100 * share:.0f}" for share in one["shares"].values())
        chosen = " (served)" if one["promise"] == record["promise"]["changed"] else ""
        lines.append(_line(f"cascade, {100 * one['promise']:g} % may change{chosen}", one, last, f"{shares} %"))
    rule = ["---", *["--:"] * (len(lines[0]) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (lines[0], rule, *lines[1:]))


def _line(name: str, one: dict[str, Any], last: dict[str, Any], shares: str) -> list[str]:
    accuracy = [f"{100 * one['accuracy']:.1f} %"] if "accuracy" in one else []
    bound = f"{100 * one['bound']:.2f} %" if "bound" in one else ""
    times = [f"{one[key]:.2f} ({last[key] / one[key]:.1f} x)" for key in ("milliseconds", _TOGETHER)]
    return [name, *accuracy, f"{100 * one['changed']:.2f} %", bound, *times, shares]


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
    rows = record["calibration"]
    return f"""# A cascade

{stages.strip()}

{summary(record)}.
{out}
Counted on {rows["tested_on"]} texts that did not choose the thresholds, of {rows["texts"]}.
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
