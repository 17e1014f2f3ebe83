"""A report's numbers as one self-contained HTML page, and as tables for a model card."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from emmental.cascade.report import short_table, summary
from emmental.inference.comparison import DENSE, FORM_TITLES, INT8_PACKAGE, FormRow, best_engine
from emmental.inference.engines import ONNX, ONNX_INT8, TORCH, code_line
from emmental.pictures.heat import count_of, heat_table, percent
from emmental.tasks import metric_text
from emmental.tasks.metrics import ERRORS

GENERATOR = "emmental.export.report"
TEMPLATE = "page.html.jinja"
PICTURES = ("remaining", "curves", "cascade")
_METRICS = {
    "acc": "accuracy",
    "f1": "F1",
    "acc_and_f1": "mean of accuracy and F1",
    "mcc": "Matthews correlation",
    "pearson": "Pearson",
    "spearmanr": "Spearman",
    "corr": "mean correlation",
    "rmse": "RMSE, in the labels' unit",
    "mae": "MAE, in the labels' unit",
    "mnli/acc": "accuracy, matched",
    "mnli-mm/acc": "accuracy, mismatched",
    "micro_f1": "micro F1",
    "macro_f1": "macro F1",
    "average_precision": "average precision",
    "subset_accuracy": "rows with all labels right",
}
FILE_TITLES = {
    DENSE: "dense model, safetensors",
    "checkpoint": "checkpoint, with mask scores",
    "bertarized": "safetensors, plain",
    ONNX: "ONNX fp32",
    ONNX_INT8: "ONNX int8",
    "fp32 package": "package fp32, exact",
    "fp16 package": "package fp16",
    INT8_PACKAGE: "package int8",
}
_WORDS = "bag of words, measured in the training"
Results = Mapping[str, Any]


def page(results: Results, pictures: Mapping[str, bytes]) -> str:
    """The report as HTML: nothing is loaded from elsewhere, and no script runs.

    Args:
        results: as `command.gather` makes them.
        pictures: PNG files: `remaining`, `curves` if the training left a log, `cascade` if it made one.
    """
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    training = results["training"]
    return templates.get_template(TEMPLATE).render(
        generator=GENERATOR,
        name=results["name"],
        subtitle=_subtitle(results),
        headline=headline(results),
        code=best_code(results),
        cards=_cards(results),
        quality=_quality(results),
        speed=_speed(results),
        size=_sizes(results),
        remaining=_remaining(results),
        training={
            "command": training.get("command"),
            "summary": [(key, str(value)) for key, value in _flat(training.get("summary") or {})],
        },
        cascade=cascade_of(results),
        pictures={name: base64.b64encode(pictures.get(name, b"")).decode() for name in PICTURES},
        measured_by=results["command"],
        environment=[(key, str(value)) for key, value in results["environment"].items()],
    )


def headline(results: Results) -> str:
    """The best engine, its best shape, and the dense model in comparison."""
    best, baseline = best_engine(results["latency"], results["not_offered"]), _baseline(results)
    if best is None:
        return "No engine was timed."
    times = [{row["model"]: row["median_ms"] for row in _of_shape(results, shape)} for shape in _shapes(results)]
    left_out = results["not_offered"]
    fastest = sum(min(shape.keys() - left_out, key=shape.__getitem__) == best["model"] for shape in times)
    beside = best["median_ms"] * best["speedup"]
    metric = results["primary_metric"]
    metrics = {row["name"]: row["metrics"][metric] for row in results["quality"]}
    value = metrics.get(best["model"], results["quality"][0]["metrics"][metric])
    compared = "the dense model it came from" if baseline == DENSE else "the same model in plain PyTorch"
    text = (
        f"Best engine on this machine: {FORM_TITLES[best['model']]}. It is best at {best['batch']} x {best['length']} "
        f"tokens: {_milliseconds(best['median_ms'])} ms, {best['speedup']:.1f} times as fast as {compared} "
        f"({_milliseconds(beside)} ms). It is the fastest at {fastest} of {len(times)} shapes. "
        f"{_metric_name(metric)[:1].upper()}{_metric_name(metric)[1:]}: {_points(value)} %"
    )
    if DENSE in metrics:
        change = 100 * (value - metrics[DENSE])
        return f"{text}, dense {_points(metrics[DENSE])} % ({change:+.1f} points)."
    return f"{text}. The dense model is not known: give it with --dense."


def best_code(results: Results) -> str:
    """Lines of Python that load the model in its best engine."""
    best = best_engine(results["latency"], results["not_offered"])
    if best is None:
        return ""
    form = results["int8_form"] if best["model"] == ONNX_INT8 else None
    head = results["architecture"].rpartition("For")[2]
    auto = "AutoModel" if head == results["architecture"] else f"AutoModelFor{head}"
    return code_line(best["model"], results["folder"], results["model_type"], form, auto)


def card_tables(results: Results) -> str:
    """The same in Markdown, without pictures: forms of the model with metric and latency, files with their sizes."""
    shapes, metric = _shapes(results), results["primary_metric"]
    head = ["inference", f"{_metric_name(metric)}, %", *(f"{batch} x {length}, ms" for batch, length in shapes)]
    rows = [
        [
            FORM_TITLES[row["name"]],
            _points(row["metrics"][metric]),
            *(_time_of(results, row["name"], shape) for shape in shapes),
        ]
        for row in results["quality"]
    ]
    if (words := _words(results)) is not None:
        rows.append([_WORDS, _points(words), *("" for _ in shapes)])
    files = [
        [FILE_TITLES[row["name"]], _megabytes(row["bytes"]), _megabytes(row["without_embeddings"]), _embeddings(row)]
        for row in results["sizes"]
    ]
    facts, sums = results["environment"], results["remaining"]["sums"]["encoder matrices"]
    compared = "the dense model" if _baseline(results) == DENSE else "plain PyTorch"
    note = (
        f"{sums['percent']:.2f} % of the encoder's {count_of(sums['total'])} matrix weights remain. Latency: batch x "
        f"tokens, median, {facts['threads']} threads, {facts['processor']}; in brackets times as fast as {compared}."
    )
    refused = [f"{line}." for line in (results["int8"], *results["not_offered"].values())]
    parts = [headline(results), f"```python\n{best_code(results)}\n```", *refused, note, _markdown(head, rows)]
    return "\n\n".join([*parts, _markdown(["file", "MB", "without embeddings, MB", "embeddings"], files)])


def _embeddings(row: FormRow) -> str:
    """The share of a file that is embeddings, as `80 %`."""
    return f"{100 * max(0.0, 1 - row['without_embeddings'] / row['bytes']):.0f} %"


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _baseline(results: Results) -> str:
    """The model that speeds are compared with: the dense one if it is known."""
    return DENSE if any(row["model"] == DENSE for row in results["latency"]) else TORCH


def _time_of(results: Results, name: str, shape: tuple[int, int]) -> str:
    row = next((row for row in _of_shape(results, shape) if row["model"] == name), None)
    return "" if row is None else f"{_milliseconds(row['median_ms'])} ({row['speedup']:.2f})"


def _subtitle(results: Results) -> str:
    pruning = results["pruning"]
    unpruned = "heads and neurons cut out" if results["model_type"].startswith("small_") else "a plain model"
    how = unpruned if pruning is None else f"fine-pruned with {pruning['method']}"
    if pruning is not None and pruning["threshold"] is not None:
        how += f", threshold {pruning['threshold']:g}"
    if pruning is not None and pruning["global_topk"]:
        how += " over all matrices together"
    return f"{results['architecture']} on {results['task']}, {how}"


def _cards(results: Results) -> list[tuple[str, str]]:
    """(large text, small text) of the boxes under the headline."""
    first, sums = results["quality"][0], results["remaining"]["sums"]["encoder matrices"]
    metric = results["primary_metric"]
    metrics = {row["name"]: row["metrics"][metric] for row in results["quality"]}
    dense = f"; dense {_points(metrics[DENSE])} %" if DENSE in metrics else ""
    offered = (row for row in results["sizes"] if row["name"] not in results["not_offered"])
    smallest, best = (
        min(offered, key=lambda row: row["bytes"]),
        best_engine(results["latency"], results["not_offered"]),
    )
    plain = next(row for row in results["sizes"] if row["name"] in (DENSE, "bertarized"))
    cards = [
        (
            f"{_points(first['metrics'][metric])} %",
            f"{_metric_name(metric)} on {first['rows']:,} {results['judged_on']}, in float32{dense}",
        ),
        (f"{percent(sums['percent'] / 100)} %", f"of the encoder's {count_of(sums['total'])} matrix weights remain"),
        (
            f"{_megabytes(smallest['bytes'])} MB",
            f"{FILE_TITLES[smallest['name']]}; {FILE_TITLES[plain['name']]}: {_megabytes(plain['bytes'])} MB",
        ),
    ]
    if best is not None:
        shape = f"batch {best['batch']} x {best['length']} tokens"
        against = FORM_TITLES[_baseline(results)]
        cards.insert(0, (f"{best['speedup']:.1f} ×", f"{FORM_TITLES[best['model']]} against {against}, {shape}"))
    return cards


def _quality(results: Results) -> dict[str, Any]:
    metrics, primary, first = list(results["quality"][0]["metrics"]), results["primary_metric"], results["quality"][0]
    rows = []
    for row in results["quality"]:
        compared, same = row is not first, row["agreement"]
        rows.append(
            [
                FORM_TITLES[row["name"]],
                *(_value(name, row["metrics"][name]) for name in metrics),
                f"{100 * (row['metrics'][primary] - first['metrics'][primary]):+.2f}" if compared else "",
                _difference(row["largest_difference"]) if compared else "",
                f"{100 * (1 - same):.2f} %" if compared and same is not None else "",
            ]
        )
    if (words := _words(results)) is not None:
        change = f"{100 * (words - first['metrics'][primary]):+.2f}"
        rows.append([_WORDS, *(_points(words) if name == primary else "" for name in metrics), change, "", ""])
    refused = "".join(f" {line}." for line in (results["int8"], *results["not_offered"].values()))
    judged_on = f"{first['rows']:,} {results['judged_on']}"
    return {
        "note": f"In %, on {judged_on}; change in points against the first line.{refused}",
        "head": ["form", *map(_metric_name, metrics), "change", "largest logit difference", "answers that change"],
        "rows": rows,
    }


def cascade_of(results: Results) -> dict[str, Any] | None:
    """The cascade that the training made, as one row beside its models; None if it made none."""
    record = results["training"].get("cascade")
    if record is None:
        return None
    head, rows = short_table(record)
    said = summary(record)
    return {"note": f"{said[:1].upper()}{said[1:]}.", "head": head, "rows": rows}


def _words(results: Results) -> float | None:
    """Metric of the bag of words that the trainer compared the model with; None if it did not."""
    rows = (results["training"].get("summary") or {}).get("compared")
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, dict) and row.get("name") == "bag of words" and isinstance(row.get("metric"), float):
            return row["metric"]
    return None


def _speed(results: Results) -> dict[str, Any]:
    groups = []
    for batch, length in _shapes(results):
        rows = _of_shape(results, (batch, length))
        longest, best = max(row["median_ms"] for row in rows), min(row["median_ms"] for row in rows)
        bars = [
            {
                "label": FORM_TITLES[row["model"]],
                "shares": [row["median_ms"] / longest],
                "value": f"{_milliseconds(row['median_ms'])} ms · {row['speedup']:.2f} ×",
                "best": row["median_ms"] == best,
            }
            for row in rows
        ]
        groups.append({"title": f"batch {batch}, {length} tokens", "bars": bars})
    rows = [
        [
            FORM_TITLES[row["model"]],
            str(row["batch"]),
            str(row["length"]),
            *(f"{row[key]:.2f}" for key in ("median_ms", "low_ms", "high_ms")),
            str(row["calls"]),
            f"{row['speedup']:.2f}",
        ]
        for row in results["latency"]
    ]
    return {
        "note": f"Median time of a batch without padding, {results['environment']['threads']} threads, models in "
        f"turns; × is against {FORM_TITLES[_baseline(results)]}.",
        "groups": groups,
        "head": ["form", "batch", "tokens", "median ms", "quarter of the calls below", "above", "calls", "speed-up"],
        "rows": rows,
    }


def _sizes(results: Results) -> dict[str, Any]:
    rows = results["sizes"]
    largest, smallest = (pick(row["bytes"] for row in rows) for pick in (max, min))
    bars, lines = [], []
    for row in rows:
        parts = row["without_embeddings"], row["bytes"] - row["without_embeddings"]
        bars.append(
            {
                "label": FILE_TITLES[row["name"]],
                "shares": [max(part, 0) / largest for part in parts],
                "value": f"{_megabytes(row['bytes'])} MB",
                "best": row["bytes"] == smallest,
            }
        )
        parts_of_file = [row["bytes"], row["without_embeddings"], row.get("matrices"), row.get("bound")]
        ratio = f"{row['matrices'] / row['bound']:.3f}" if row.get("bound") else ""
        lines.append(
            [
                FILE_TITLES[row["name"]],
                *("" if size is None else f"{size / 1e6:.3f}" for size in parts_of_file),
                ratio,
                _embeddings(row),
            ]
        )
    head = ["file", "MB", "without embeddings", "pruned matrices", "entropy bound", "times the bound", "embeddings"]
    return {"bars": bars, "head": head, "rows": lines}


def _remaining(results: Results) -> dict[str, Any]:
    counts = results["remaining"]
    shown = heat_table(
        {name: count["remaining"] / count["total"] for name, count in counts["matrices"].items()},
        {name: count["total"] for name, count in counts["matrices"].items()},
    )
    return {
        "columns": ["%", *(column.replace("\n", " ") for column in shown.columns)],
        "grid": [
            [row, *("" if math.isnan(cell) else percent(float(cell)) for cell in line)]
            for row, line in zip(shown.rows, shown.cells, strict=True)
        ],
        "sums": [
            [name, f"{c['remaining']:,}", f"{c['total']:,}", f"{c['percent']:.2f}"]
            for name, c in counts["sums"].items()
        ],
    }


def _shapes(results: Results) -> list[tuple[int, int]]:
    return list(dict.fromkeys((row["batch"], row["length"]) for row in results["latency"]))


def _of_shape(results: Results, shape: tuple[int, int]) -> list[Mapping[str, Any]]:
    return [row for row in results["latency"] if (row["batch"], row["length"]) == shape]


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}: ")
        else:
            yield f"{before}{key}", value


def _metric_name(metric: str) -> str:
    return _METRICS.get(metric, metric)


def _value(metric: str, value: float) -> str:
    """In %, or in the unit of the labels."""
    return metric_text(metric, value) if metric in ERRORS else f"{100 * value:.2f}"


def _points(value: float) -> str:
    return f"{100 * value:.1f}"


def _difference(value: float) -> str:
    return f"{value:.2g}" if value == 0 or value >= 0.01 else f"{value:.1e}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f}" if size >= 1e6 else f"{size / 1e6:.3f}"


def _milliseconds(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
