"""Pruning without training: the metric of a fine-tuned classifier afterwards, and the time it took.

python -m benchmarks.structured --model_name_or_path DIR --data_dir DIR --task_name sst-2 --keep 0.4 0.25 0.15
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.arguments import model_folder, parser
from benchmarks.measurements import report, table
from emmental.command_line import leave_if
from emmental.structured.agreement import agreement, answers
from emmental.structured.gates import HEADS, encoder_weights, sublayers
from emmental.structured.rungs import RUNGS, bf16_products, prune_in_rungs
from emmental.structured.selection import weight_budget
from emmental.structured.texts import Text, material, padded_batches
from emmental.task_heads import task_head
from emmental.tasks import Split, Task, compute_metrics, predictions_from_logits, read_split, resolve_task


def build_parser() -> argparse.ArgumentParser:
    """The flags."""
    made = parser(__doc__.splitlines()[0])
    model_folder(made, "folder of a fine-tuned classifier", required=True)
    made.add_argument("--data_dir", type=Path, required=True, help="folder of the task's files")
    made.add_argument("--task_name", required=True, help="a GLUE task; pruning uses its training texts")
    made.add_argument("--keep", type=float, nargs="+", default=[0.4, 0.25, 0.15], help="shares of the encoder to keep")
    made.add_argument("--rungs", type=int, nargs="+", default=[RUNGS], help="numbers of rungs to try")
    made.add_argument(
        "--labels", action="store_true", help="use the labels, not the model's distribution, for the information"
    )
    return made


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure as the flags say. Print a table, write JSON, return its content."""
    options = build_parser().parse_args(argv)
    sound = all(0 < keep <= 1 for keep in options.keep) and min(options.rungs) >= 1
    leave_if([] if sound else ["--keep accepts shares above 0 and up to 1, --rungs numbers from 1"], "structured.py")
    torch.set_num_threads(options.threads)
    task = resolve_task(options.task_name)
    model = AutoModelForSequenceClassification.from_pretrained(options.model)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    train, dev = (read_split(task, options.data_dir, split) for split in ("train", "dev"))
    batches, order = _in_order(tokenizer, texts_of(dev))
    with bf16_products(model.device):
        expected = answers(model, batches)
    labels = [dev.labels[row] for row in order]
    head, dense = task_head(model), metric(task, expected.values, labels)
    results = []
    for rungs in options.rungs:
        for keep in options.keep:
            begin, processor = time.perf_counter(), time.process_time()
            texts = material(tokenizer, texts_of(train), train.labels if options.labels else None)
            found = prune_in_rungs(model, texts, weight_budget(model, keep), rungs)
            seconds, processor = time.perf_counter() - begin, time.process_time() - processor
            with bf16_products(model.device):
                unseen = answers(found.model, batches)
            here, unseen = metric(task, unseen.values, labels), agreement(head, expected, unseen)
            sizes = " ".join(f"{part.count}{part.kind[0]}" for part in sublayers(found.model))
            results.append({
                "rungs": rungs, "keep": keep, "left": encoder_weights(found.model) / encoder_weights(model),
                "metric": here, "share": here / dense, "changed": unseen.changed, "divergence": unseen.divergence,
                "changed_held_out": found.agreement.changed, "seconds": seconds, "processor_seconds": processor,
                "heads": sum(part.count for part in sublayers(found.model) if part.kind == HEADS), "sizes": sizes,
            })  # fmt: skip
            print(results[-1], flush=True)
    return report(options, {"options": vars(options), "dense": dense, "results": results}, shown(dense, results))


def shown(dense: float, results: Sequence[dict[str, Any]]) -> str:
    """The table."""
    rows = [["dense", "", f"{100 * dense:.2f}", "100.0", "", "", ""]]
    for row in results:
        cells = (100 * row["metric"], 100 * row["share"], 100 * row["changed"], 100 * row["changed_held_out"])
        numbers = (f"{cells[0]:.2f}", *(f"{cell:.1f}" for cell in cells[1:]))
        rows.append([f"{100 * row['left']:.2f} %", str(row["rungs"]), *numbers, f"{row['seconds']:.0f}"])
    header = ["left", "rungs", "metric", "% of dense", "% changed, dev", "% changed, held out", "seconds"]
    return table(header, rows)


def metric(task: Task, logits: torch.Tensor, labels: Sequence[int | float]) -> float:
    """The task's own metric, from 0 to 1."""
    return compute_metrics(task, predictions_from_logits(task, logits.numpy()), labels)[task.primary_metric]


def texts_of(split: Split) -> list[Text]:
    """Sentences, or pairs of them."""
    return split.texts_a if split.texts_b is None else list(zip(split.texts_a, split.texts_b, strict=True))


def _in_order(tokenizer: Any, texts: Sequence[Text]) -> tuple[list[dict[str, torch.Tensor]], list[int]]:
    """Batches of all texts, and the row of each of their examples."""
    encodings = [
        tokenizer(*((text,) if isinstance(text, str) else text), truncation=True, max_length=128) for text in texts
    ]
    batches = padded_batches(tokenizer, encodings, range(len(texts)), 32, list(range(len(texts))))
    return batches, [int(row) for batch in batches for row in batch["labels"]]


if __name__ == "__main__":
    main()
