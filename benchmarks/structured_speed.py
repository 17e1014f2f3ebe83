"""Speed of a BERT whose layers all keep the same few heads and neurons, against the dense one, in turns.

python -m benchmarks.structured_speed --keep 0.1
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedModel

from benchmarks.arguments import parser
from benchmarks.inference import random_model
from benchmarks.measurements import report, table
from emmental.command_line import leave_if, range_problems, user_mistakes
from emmental.inference.engines import ENGINES, ONNX, ONNX_INT8, OPENVINO_BF16, TORCH, TORCH_BF16, prepare, why_not
from emmental.latency import Latency, Runner, measure
from emmental.shrinking import shrink
from emmental.structured.gates import encoder_weights, sublayers

_HEAD_SIZE = 64
DENSE, DENSE_INT8 = f"dense, {ENGINES[TORCH].title}", f"dense, {ENGINES[ONNX_INT8].title}"


def build_parser() -> argparse.ArgumentParser:
    """The flags."""
    made = parser(__doc__.splitlines()[0])
    made.add_argument("--keep", type=float, default=0.1, help="share of the encoder to keep")
    made.add_argument("--layers", type=int, default=12, help="layers of a BERT of random weights")
    made.add_argument("--hidden", type=int, default=768, help=f"its hidden size, a multiple of {_HEAD_SIZE}")
    made.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="sequences")
    made.add_argument("--length", type=int, nargs="+", default=[128], help="tokens of each")
    usual = [TORCH, TORCH_BF16, ONNX, ONNX_INT8, OPENVINO_BF16]
    made.add_argument("--engines", nargs="+", default=usual, choices=list(ENGINES), help="of the small model")
    made.add_argument("--seconds", type=float, default=5.0, help="time for each model and shape")
    return made


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure as the flags say. Print a table, write JSON, return its content."""
    options = build_parser().parse_args(argv)
    leave_if(problems(options), Path(sys.argv[0]).name)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    with user_mistakes():
        dense = random_model(options.layers, options.hidden, 1.0, max(options.length))
        small = evenly(dense, options.keep)
        runners = ready(options, dense, small)
        rows = [
            row
            for batch in options.batch
            for length in options.length
            for row in compared(
                measure(runners, batch, length, options.threads, dense.config.vocab_size, options.seconds)
            )
        ]
    heads, neurons = (part.count for part in sublayers(small)[:2])
    about = {"heads": heads, "neurons": neurons, "left": encoder_weights(small) / encoder_weights(dense)}
    given = {name: value for name, value in vars(options).items() if name != "json"}
    title = f"{heads} heads and {neurons} neurons in each layer: {about['left']:.1%} of the encoder"
    return report(options, {"options": given, "small": about, "rows": rows}, title, shown(rows))


def problems(options: argparse.Namespace) -> list[str]:
    """Mistakes in the flags, a line each."""
    found = range_problems(options, {"layers": 1, "hidden": _HEAD_SIZE, "threads": 1}, above_zero=["seconds"])
    if not 0 < options.keep <= 1:
        found.append(f"--keep accepts a share above 0 and up to 1, not {options.keep}")
    if options.hidden % _HEAD_SIZE:
        found.append(f"--hidden accepts multiples of {_HEAD_SIZE}, not {options.hidden}")
    return found


def evenly(dense: PreTrainedModel, keep: float) -> PreTrainedModel:
    """The model with the same number of heads and neurons in every layer.

    The heads are their share, rounded, at least one. The neurons use the rest of the budget.
    """
    attention, feed_forward = sublayers(dense)[:2]
    heads = max(1, round(keep * attention.count))
    budget = keep * (attention.count * attention.cost + feed_forward.count * feed_forward.cost)
    neurons = min(feed_forward.count, max(1, int((budget - heads * attention.cost) / feed_forward.cost)))
    return shrink(dense, [(range(heads), range(neurons))] * dense.config.num_hidden_layers).eval()


def ready(options: argparse.Namespace, dense: PreTrainedModel, small: PreTrainedModel) -> dict[str, Runner]:
    """Name -> model in an engine: dense in PyTorch and, if available, in ONNX Runtime int8; small in all engines."""
    wanted = [("dense", TORCH), ("dense", ONNX_INT8), *(("small", engine) for engine in options.engines)]
    made: dict[str, Runner] = {}
    for size, engine in wanted:
        name = f"{size}, {ENGINES[engine].title}"
        if reason := why_not(engine):
            print(f"{name} is left out: {reason}", file=sys.stderr)
        else:
            made[name] = prepare(dense if size == "dense" else small, engine, options.threads)
    return made


def compared(rows: Sequence[Latency]) -> list[dict[str, Any]]:
    """The fields of `Latency`, and the speed against the dense model in PyTorch and in int8 (None if absent)."""
    times = {row.model: row.median_ms for row in rows}
    return [
        asdict(row)
        | {
            "times_dense": times[DENSE] / row.median_ms,
            "times_dense_int8": times[DENSE_INT8] / row.median_ms if DENSE_INT8 in times else None,
        }
        for row in rows
    ]


def shown(rows: Sequence[dict[str, Any]]) -> str:
    """The table."""
    header = ["batch x length", "model", "ms (quartiles)", f"times {DENSE}", f"times {DENSE_INT8}"]
    return table(
        header,
        [
            [
                f"{row['batch']} x {row['length']}",
                row["model"],
                f"{row['median_ms']:.1f} ({row['low_ms']:.1f}-{row['high_ms']:.1f})",
                f"{row['times_dense']:.2f}",
                "-" if row["times_dense_int8"] is None else f"{row['times_dense_int8']:.2f}",
            ]
            for row in rows
        ],
    )


if __name__ == "__main__":
    main()
