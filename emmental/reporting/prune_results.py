"""What `emmental-prune` shows: a table of dense and small models, the engines of this machine, and a card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

import emmental
from emmental.export.load_for_pruning import LoadedModel
from emmental.export.shrink import summary
from emmental.inference.comparison import FORM_TITLES, in_engines, latencies
from emmental.inference.engines import engines_for, measure_together
from emmental.reporting.before_after import aligned, nonzero_encoder_weights
from emmental.runs.evaluation import model_inputs
from emmental.structured.agreement import answers
from emmental.structured.texts import Batch, Material
from emmental.structured.vocabulary import embedding_weights
from emmental.task_heads import Answers, TaskHead, joined
from emmental.training.prune_model import Start


@dataclass(frozen=True)
class Row:
    """One model of the table.

    Attributes:
        name: dense, or what was asked for.
        weights: of the encoder's matrices.
        megabytes: of all weights in float32.
        embeddings: megabytes of these that are embeddings of tokens.
        milliseconds: for one text in PyTorch fp32; None if it was not timed.
        length: tokens of that text.
        figures: name -> value as text: agreement with the dense model on held-out texts; the metric.
    """

    name: str
    weights: int
    megabytes: float
    embeddings: float
    milliseconds: float | None
    length: int
    figures: dict[str, str] = field(default_factory=dict)


def measured(
    loaded: LoadedModel, models: Mapping[str, PreTrainedModel], start: Start, length: int, timed: bool
) -> list[Row]:
    """Size, time and agreement of each model; the first one is the dense model."""
    rows = start.rows
    checks = {name: start.taught.check if model is loaded.model else rows.check for name, model in models.items()}
    of_models = {name: answers(model, checks[name], loaded.head) for name, model in models.items()}
    dense = next(iter(of_models.values()))
    times = measure_together(models, 1, length) if timed else {}
    results = []
    for name, model in models.items():
        figures = {} if model is loaded.model else _figures(loaded, dense, of_models[name], rows)
        if rows.labels is not None:
            metric = loaded.head.metric(of_models[name], rows.labels)
            figures = {metric.name: metric.text, **figures}
        size = sum(parameter.numel() for parameter in model.parameters()) * 4e-6
        tokens = embedding_weights(model) * 4e-6
        results.append(Row(name, nonzero_encoder_weights(model), size, tokens, times.get(name), length, figures))
    return results


def table(results: Sequence[Row]) -> list[str]:
    """The table as lines of text."""
    names = list(dict.fromkeys(name for row in results for name in row.figures))
    head = ("", *names, "encoder weights", "MB (embeddings)", f"ms (1 x {results[0].length})")
    cells = [head, *(_cells(row, results[0], names) for row in results)]
    return aligned(cells)


def times_in_engines(loaded: LoadedModel, small: PreTrainedModel, start: Start, length: int) -> list[str]:
    """A line for each engine of this machine: time of the small model, and its agreement with the dense one."""
    threads, rows = torch.get_num_threads(), start.rows
    dense = answers(loaded.model, start.taught.check, loaded.head)
    with in_engines(small, engines_for(small, calibrated=False), threads) as (models, _):
        times = latencies(models, [(1, length)], threads, small.config.vocab_size)
        agreements = [
            loaded.head.figures(dense, answers_in_engine(engine, loaded.head, rows.check), rows.groups)[0]
            for engine in models.values()
        ]
    lines = [
        f"{FORM_TITLES[row['model']]}: {row['median_ms']:.2f} ms, {figure}"
        for row, figure in zip(times, agreements, strict=True)
    ]
    return ["", f"The small model on this machine, 1 x {length} tokens:", *lines]


def card(loaded: LoadedModel, small: PreTrainedModel, name: str, results: Sequence[Row]) -> str:
    """README.md of a small model."""
    title, plain = Path(loaded.name).name, type(small).__name__.removeprefix("Small")
    auto = f"AutoModelFor{plain.partition('For')[2]}" if "For" in plain else "AutoModel"
    front = f"---\nlibrary_name: {loaded.library}\npipeline_tag: {loaded.pipeline}\ntags:\n- pruning\n- emmental\n---"
    shown, left = "\n".join(table(results)), "\n".join(f"- {line}" for line in summary(loaded.model, small))
    load = f"from transformers import {auto}\n\nmodel = {auto}.from_pretrained(folder)"
    if loaded.library == "sentence-transformers":
        cls = "CrossEncoder" if loaded.around.cross_encoder else "SentenceTransformer"
        load = f"from sentence_transformers import {cls}\n\nmodel = {cls}(folder)"
    return f"""{front}
# {title}, {name}

Attention heads and feed-forward neurons were cut out of `{title}` without labels. `{type(small).__name__}`, made with
emmental {emmental.__version__}. Agreement is with the dense model, on held-out texts:

```
{shown}
```

{left}

```python
import emmental  # or give trust_remote_code=True: the folder holds its modelling files
{load}
```
"""


def _figures(loaded: LoadedModel, dense: Answers, pruned: Answers, rows: Material) -> dict[str, str]:
    return {each.name: each.text for each in loaded.head.figures(dense, pruned, rows.groups)}


def answers_in_engine(engine: nn.Module, head: TaskHead, batches: Sequence[Batch]) -> Answers:
    """The answers of a model in an engine to batches of texts."""
    parts = []
    with torch.inference_mode():
        for batch in batches:
            given = {"token_type_ids": torch.zeros_like(batch["input_ids"]), **batch}
            outputs = engine(**model_inputs(given, torch.device("cpu"), engine))
            parts.append(head.answers(outputs, batch))
    return joined(parts)


def _cells(row: Row, first: Row, names: Sequence[str]) -> tuple[str, ...]:
    weights = f"{row.weights / 1e6:.2f} M" + ("" if row is first else f" ({100 * row.weights / first.weights:.1f} %)")
    size = f"{row.megabytes:.1f} ({100 * row.embeddings / row.megabytes:.0f} %)"
    times = "-" if row.milliseconds is None else f"{row.milliseconds:.1f}"
    if row is not first and row.milliseconds and first.milliseconds:
        times += f" ({first.milliseconds / row.milliseconds:.1f} x)"
    return (row.name, *(row.figures.get(name, "-") for name in names), weights, size, times)
