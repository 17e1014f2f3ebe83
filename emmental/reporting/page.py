"""A report's numbers as one self-contained HTML page, and as tables for a model card."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from emmental.pictures.heat import count_of, heat_table, percent
from emmental.reporting.forms import DENSE, INT8_PACKAGE, MASKED, ONNX, ONNX_INT8, SPARSE

GENERATOR = "emmental.export.report"
_LABELS = {
    MASKED: "masked, as trained",
    DENSE: "dense, PyTorch",
    SPARSE: "sparse, emmental",
    ONNX: "ONNX Runtime fp32",
    ONNX_INT8: "ONNX Runtime int8",
    INT8_PACKAGE: "int8 package, PyTorch",
}
_FILES = {
    "checkpoint": "checkpoint, with mask scores",
    "bertarized": "safetensors, dense",
    ONNX: "ONNX fp32",
    ONNX_INT8: "ONNX int8",
    "fp32 package": "package fp32, exact",
    "fp16 package": "package fp16",
    INT8_PACKAGE: "package int8",
}
_METRICS = {
    "acc": "accuracy",
    "f1": "F1",
    "acc_and_f1": "mean of accuracy and F1",
    "mcc": "Matthews correlation",
    "pearson": "Pearson",
    "spearmanr": "Spearman",
    "corr": "mean correlation",
    "mnli/acc": "accuracy, matched",
    "mnli-mm/acc": "accuracy, mismatched",
}
_STYLE = """
:root{color-scheme:light dark;--back:#f6f7f9;--card:#fff;--text:#1c2530;--soft:#5a6675;--line:#dfe4ea;--main:#0072b2;
--pale:#9ecae6;--mark:#e8f3fa;--good:#00755a}
@media(prefers-color-scheme:dark){:root{--back:#12161b;--card:#1a2027;--text:#e6eaef;--soft:#9aa7b5;--line:#2d3640;
--main:#4aa8dc;--pale:#2f5f7d;--mark:#1d3342;--good:#4cc9a4}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--text);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif}
main{max-width:1000px;margin:0 auto;padding:28px 18px 60px}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:0 0 4px}
h3{font-size:.95rem;margin:0 0 8px}
p{margin:0 0 12px}
.soft,figcaption,caption{color:var(--soft);font-size:.9rem}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(200px,1fr));gap:12px;margin:20px 0}
.cards div,section{background:var(--card);border:1px solid var(--line);border-radius:12px}
.cards div{padding:14px 16px}
.cards b{display:block;font-size:1.7rem;line-height:1.2;font-weight:650}
section{padding:18px 18px 14px;margin:0 0 16px}
.wide{overflow-x:auto;margin:0 0 12px}
table{border-collapse:collapse;width:100%;font-size:.92rem;font-variant-numeric:tabular-nums}
caption{text-align:left;padding-bottom:6px}
th,td{padding:6px 0 6px 18px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
th{font-weight:600;color:var(--soft);vertical-align:bottom;white-space:normal;line-height:1.25}
th:first-child,td:first-child{text-align:left;padding-left:0}
tr:last-child td{border-bottom:0}
tr.mark td{background:var(--mark)}
td.text{white-space:normal;text-align:left;overflow-wrap:anywhere}
.bars{display:grid;grid-template-columns:minmax(8.6em,max-content) 1fr max-content;gap:6px 12px;align-items:center;
font-size:.92rem;font-variant-numeric:tabular-nums;margin:0 0 14px}
.bars i{display:flex;height:16px;border-radius:4px;overflow:hidden}
.bars u{background:var(--main)}
.bars s{background:var(--pale)}
.bars em{font-style:normal;text-align:right}
.bars .mark{font-weight:650;color:var(--good)}
.groups{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:14px 34px}
.key{display:inline-block;width:.8em;height:.8em;border-radius:3px;margin:0 .3em 0 .9em;vertical-align:-.05em}
.key:first-child{margin-left:0}
figure{margin:0 0 12px;overflow-x:auto}
img{display:block;width:100%;min-width:640px;height:auto;background:#fff;border-radius:8px}
pre{background:var(--back);border:1px solid var(--line);border-radius:8px;padding:10px 12px;margin:0 0 12px;
white-space:pre-wrap;overflow-wrap:anywhere;font:.85rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
pre span{white-space:nowrap}
details{margin:0 0 8px}
summary{cursor:pointer;color:var(--main);margin:0 0 8px}
@media(max-width:600px){main{padding:18px 10px 40px}section{padding:14px 12px 10px}.cards{gap:8px;
grid-template-columns:1fr 1fr}.cards div{padding:10px 12px}.cards b{font-size:1.35rem}
.bars{grid-template-columns:minmax(0,9em) 1fr max-content;gap:6px 8px;font-size:.85rem}}
"""


class Html(str):
    """Text that is HTML already; everything else is escaped on its way into the page."""


def page(results: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """The report as HTML: nothing is loaded from elsewhere, and no script runs.

    Args:
        results: as `command.gather` makes them.
        pictures: PNG files: `remaining`, and `curves` where the training left a log.
    """
    sections = [
        _section("Quality", _quality(results)),
        _section("Speed", _latency(results)),
        _section("Size", _sizes(results)),
        _section("Remaining weights", _remaining(results, pictures)),
        _section("Training", _training(results, pictures)),
        _section("How this was measured", _environment(results)),
    ]
    name = escape(str(results["name"]))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="generator" content="{GENERATOR}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{name}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{name}</h1>
<p class="soft">{escape(_subtitle(results))}</p>
{_cards(results)}
{"".join(sections)}
</main>
</body>
</html>
"""


def card_tables(results: Mapping[str, Any]) -> str:
    """The same in Markdown, without pictures: forms of the model with metric and latency, files with their sizes."""
    shapes = _shapes(results)
    metric = results["primary_metric"]
    head = ["inference", f"{_metric_name(metric)}, %", *(f"{batch} x {length}, ms" for batch, length in shapes)]
    rows = []
    for row in results["quality"]:
        times = [_time_of(results, row["name"], shape) for shape in shapes]
        rows.append([_LABELS[row["name"]], _points(row["metrics"][metric]), *(time or "" for time in times)])
    files = [
        [_FILES[row["name"]], _megabytes(row["bytes"]), _megabytes(row["without_embeddings"])]
        for row in results["sizes"]
    ]
    facts = results["environment"]
    sums = results["remaining"]["sums"]["encoder matrices"]
    note = (
        f"{sums['percent']:.2f} % of the encoder's {count_of(sums['total'])} matrix weights remain. Latency: batch x "
        f"tokens, median, {facts['threads']} threads, {facts['processor']}; in brackets times as fast as dense."
    )
    parts = [note, _markdown(head, rows), _markdown(["file", "MB", "without embeddings, MB"], files)]
    return "\n\n".join(parts)


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _time_of(results: Mapping[str, Any], name: str, shape: tuple[int, int]) -> str | None:
    for row in results["latency"]:
        if (row["model"], row["batch"], row["length"]) == (name, *shape):
            return f"{_milliseconds(row['median_ms'])} ({row['speedup']:.2f})"
    return None


def _subtitle(results: Mapping[str, Any]) -> str:
    pruning = results["pruning"]
    how = "dense" if pruning is None else f"fine-pruned with {pruning['method']}"
    if pruning is not None and pruning["threshold"] is not None:
        how += f", threshold {pruning['threshold']:g}"
    if pruning is not None and pruning["global_topk"]:
        how += " over all matrices together"
    return f"{results['architecture']} on {results['task']}, {how}"


def _cards(results: Mapping[str, Any]) -> str:
    first, sums = results["quality"][0], results["remaining"]["sums"]["encoder matrices"]
    files = {row["name"]: row for row in results["sizes"]}
    smallest = min(results["sizes"], key=lambda row: row["bytes"])
    fastest = max(
        (row for row in results["latency"] if row["model"] == SPARSE), key=lambda row: row["speedup"], default=None
    )
    cards = [
        (
            f"{_points(first['metrics'][results['primary_metric']])} %",
            f"{_metric_name(results['primary_metric'])} on {first['rows']:,} dev rows",
        ),
        (f"{percent(sums['percent'] / 100)} %", f"of the encoder's {count_of(sums['total'])} matrix weights remain"),
        (
            f"{_megabytes(smallest['bytes'])} MB",
            f"{_FILES[smallest['name']]}; {_megabytes(files['bertarized']['bytes'])} MB as safetensors",
        ),
    ]
    if fastest is not None:
        shape = f"batch {fastest['batch']} x {fastest['length']} tokens"
        cards.append((f"{fastest['speedup']:.1f} ×", f"as fast as dense PyTorch at best: sparse, {shape}"))
    body = "".join(f'<div><b>{escape(big)}</b><span class="soft">{escape(small)}</span></div>' for big, small in cards)
    return f'<div class="cards">{body}</div>'


def _quality(results: Mapping[str, Any]) -> str:
    rows, metrics = results["quality"], list(results["quality"][0]["metrics"])
    primary, first = results["primary_metric"], results["quality"][0]
    head = ["form", *map(_metric_name, metrics), "change", "largest logit difference", "same class"]
    cells = []
    for row in rows:
        change = 100 * (row["metrics"][primary] - first["metrics"][primary])
        compared = row is not first
        cells.append(
            [
                _LABELS[row["name"]],
                *(f"{100 * row['metrics'][name]:.2f}" for name in metrics),
                f"{change:+.2f}" if compared else "",
                _difference(row["largest_difference"]) if compared else "",
                "" if row["agreement"] is None or not compared else f"{100 * row['agreement']:.2f} %",
            ]
        )
    note = f"In %, on {first['rows']:,} dev rows in float32; change in points against the first line."
    return f'<p class="soft">{escape(note)}</p>{_table(head, cells)}'


def _latency(results: Mapping[str, Any]) -> str:
    facts, groups = results["environment"], []
    for batch, length in _shapes(results):
        rows = [row for row in results["latency"] if (row["batch"], row["length"]) == (batch, length)]
        longest, best = max(row["median_ms"] for row in rows), min(row["median_ms"] for row in rows)
        bars = "".join(
            _bar(
                _LABELS[row["model"]],
                [row["median_ms"] / longest],
                f"{_milliseconds(row['median_ms'])} ms · {row['speedup']:.2f} ×",
                row["median_ms"] == best,
            )
            for row in rows
        )
        groups.append(f'<div><h3>batch {batch}, {length} tokens</h3><div class="bars">{bars}</div></div>')
    head = ["form", "batch", "tokens", "median ms", "quarter of the calls below", "above", "calls", "times dense"]
    cells = [
        [
            _LABELS[row["model"]],
            str(row["batch"]),
            str(row["length"]),
            *(f"{row[key]:.2f}" for key in ("median_ms", "low_ms", "high_ms")),
            str(row["calls"]),
            f"{row['speedup']:.2f}",
        ]
        for row in results["latency"]
    ]
    note = f"Median time of a batch without padding, {facts['threads']} threads, models in turns; × is against dense."
    return (
        f'<p class="soft">{escape(note)}</p><div class="groups">{"".join(groups)}</div>'
        f"<details><summary>All numbers</summary>{_table(head, cells)}</details>"
    )


def _sizes(results: Mapping[str, Any]) -> str:
    rows = results["sizes"]
    largest, smallest = (pick(row["bytes"] for row in rows) for pick in (max, min))
    bars = "".join(
        _bar(
            _FILES[row["name"]],
            [row["without_embeddings"] / largest, (row["bytes"] - row["without_embeddings"]) / largest],
            f"{_megabytes(row['bytes'])} MB",
            row["bytes"] == smallest,
        )
        for row in rows
    )
    head = ["file", "MB", "without embeddings", "pruned matrices", "entropy bound", "times the bound"]
    cells = []
    for row in rows:
        found = [row["bytes"], row["without_embeddings"], row.get("matrices"), row.get("bound")]
        ratio = f"{row['matrices'] / row['bound']:.3f}" if row.get("bound") else ""
        cells.append([_FILES[row["name"]], *("" if size is None else f"{size / 1e6:.3f}" for size in found), ratio])
    key = (
        '<p class="soft"><span class="key" style="background:var(--main)"></span>all but embeddings'
        '<span class="key" style="background:var(--pale)"></span>embeddings</p>'
    )
    note = "MB are millions of bytes. The bound is the entropy of the positions and the bits of the values left."
    table = _table(head, cells)
    return f'{key}<div class="bars">{bars}</div><details open><summary>All numbers</summary>{table}</details>' + (
        f'<p class="soft">{escape(note)}</p>'
    )


def _remaining(results: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    counts = results["remaining"]
    head = ["", "remaining", "of", "%"]
    cells = [
        [name, f"{c['remaining']:,}", f"{c['total']:,}", f"{c['percent']:.2f}"] for name, c in counts["sums"].items()
    ]
    shown = heat_table(
        {name: count["remaining"] / count["total"] for name, count in counts["matrices"].items()},
        {name: count["total"] for name, count in counts["matrices"].items()},
    )
    grid = [
        [row, *("" if cell != cell else percent(float(cell)) for cell in line)]
        for row, line in zip(shown.rows, shown.cells, strict=True)
    ]
    columns = ["%", *(column.replace("\n", " ") for column in shown.columns)]
    picture = _picture(pictures["remaining"], "Share of weights that remain, by layer and matrix")
    return (
        f"{picture}<details><summary>By layer and matrix, in %</summary>{_table(columns, grid)}</details>"
        f"{_table(head, cells)}"
    )


def _training(results: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    training, parts = results["training"], []
    if "command" in training:
        parts.append(f'<p class="soft">The command that trained it:</p>{_command(training["command"])}')
    if "curves" in pictures:
        parts.append(_picture(pictures["curves"], "Remaining weights, threshold, losses and metrics of the training"))
    summary = training.get("summary")
    if summary is not None:
        rows = [[key, Html(f"<code>{escape(str(value))}</code>")] for key, value in _flat(summary)]
        parts.append(f"<details><summary>What the trainer noted</summary>{_table([], rows, text=True)}</details>")
    return "".join(parts) or '<p class="soft">The folder holds no record of its training.</p>'


def _environment(results: Mapping[str, Any]) -> str:
    rows = [[key, str(value)] for key, value in results["environment"].items()]
    return f"{_command(results['command'])}{_table([], rows, text=True)}"


def _command(command: str) -> str:
    """A command line whose flags are not broken in two."""
    words = (escape(word) for word in command.split(" "))
    return "<pre>" + " ".join(f"<span>{word}</span>" if word.startswith("--") else word for word in words) + "</pre>"


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], text: bool = False) -> str:
    """A table that scrolls by itself on a narrow screen; `text` wraps the cells behind the first instead."""
    cell = '<td class="text">' if text else "<td>"
    lines = []
    for first, *others in rows:
        lines.append(
            f"<tr><td>{_html(first)}</td>" + "".join(f"{cell}{_html(other)}</td>" for other in others) + "</tr>"
        )
    heading = "".join(f"<th>{_html(title)}</th>" for title in head)
    heading = f"<thead><tr>{heading}</tr></thead>" if head else ""
    return f'<div class="wide"><table>{heading}<tbody>{"".join(lines)}</tbody></table></div>'


def _bar(label: str, shares: Sequence[float], value: str, best: bool) -> str:
    """A label, a bar of one or two parts whose widths are shares of the longest, and a number."""
    parts = "".join(
        f'<{tag} style="width:{100 * max(share, 0):.2f}%"></{tag}>' for tag, share in zip("us", shares, strict=False)
    )
    mark = ' class="mark"' if best else ""
    return f"<span{mark}>{escape(label)}</span><i>{parts}</i><em{mark}>{escape(value)}</em>"


def _picture(png: bytes, caption: str) -> str:
    data = base64.b64encode(png).decode("ascii")
    return f'<figure><img src="data:image/png;base64,{data}" alt="{escape(caption)}"></figure>'


def _html(cell: str) -> str:
    return cell if isinstance(cell, Html) else escape(cell)


def _shapes(results: Mapping[str, Any]) -> list[tuple[int, int]]:
    return list(dict.fromkeys((row["batch"], row["length"]) for row in results["latency"]))


def _flat(values: Mapping[str, Any], before: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}: ")
        else:
            yield f"{before}{key}", value


def _metric_name(metric: str) -> str:
    return _METRICS.get(metric, metric)


def _points(value: float) -> str:
    return f"{100 * value:.1f}"


def _difference(value: float) -> str:
    return f"{value:.2g}" if value == 0 or value >= 0.01 else f"{value:.1e}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f}" if size >= 1e6 else f"{size / 1e6:.3f}"


def _milliseconds(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
