"""Time of one forward pass: dense, sparse, and ONNX Runtime if installed, in turns on the same tokens.

python -m benchmarks.inference --model_name_or_path outputs/mrpc --json results.json
python -m benchmarks.inference --hidden 768 --layers 12 --density 0.03 0.1 --batch 1 8 --length 32 128
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from benchmarks.arguments import model_folder, parser
from benchmarks.measurements import report, table
from emmental.command_line import leave_if, range_problems, user_mistakes
from emmental.errors import UserError
from emmental.export.bertarize import bertarize
from emmental.export.counts_parameters import count_parameters, read_any
from emmental.inference.engines import ENGINES, ONNX, ONNX_INT8, SPARSE, TORCH_BF16, prepare, why_not
from emmental.latency import Latency, Runner, measure, random_batch, speedups
from emmental.patching import masked_layers

_HEAD_SIZE = 64


def build_parser() -> argparse.ArgumentParser:
    """The flags. Without `--model`, a random BERT is made for each density."""
    made = parser(__doc__.splitlines()[0])
    model_folder(made, "folder of a masked or bertarized model, or a package")
    made.add_argument("--layers", type=int, default=12, help="without --model: layers of a random BERT")
    made.add_argument("--hidden", type=int, default=768, help="without --model: its hidden size, a multiple of 64")
    made.add_argument(
        "--density", type=float, nargs="+", default=[0.03, 0.1], help="without --model: weights that stay"
    )
    made.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="sequences in a batch")
    made.add_argument("--length", type=int, nargs="+", default=[32, 128], help="tokens of each")
    usual = ["dense", TORCH_BF16, SPARSE, ONNX, ONNX_INT8]
    made.add_argument("--engines", nargs="+", default=usual, help=f"dense, and any of {', '.join(ENGINES)}")
    made.add_argument("--seconds", type=float, default=3.0, help="time for each engine and shape")
    return made


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure as the flags say. Print a table, write JSON, return its content."""
    options = build_parser().parse_args(argv)
    leave_if(problems(options), Path(sys.argv[0]).name)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    with user_mistakes():
        rows = [row for model, name in subjects(options) for row in measure_model(options, model, name)]
    given = {name: value for name, value in vars(options).items() if name != "json"}
    return report(options, {"options": given, "rows": rows}, latency_table(rows))


def problems(options: argparse.Namespace) -> list[str]:
    """Mistakes in the flags, a line each."""
    found = range_problems(options, {"layers": 1, "hidden": _HEAD_SIZE, "threads": 1}, above_zero=["seconds"])
    found += [
        f"--{flag} accepts numbers from 1, not {number}"
        for flag in ("batch", "length")
        for number in getattr(options, flag)
        if number < 1
    ]
    found += [f"--density accepts shares from 0 to 1, not {share}" for share in options.density if not 0 <= share <= 1]
    known = ("dense", *ENGINES)
    found += [f"--engines accepts {', '.join(known)}, not {name}" for name in options.engines if name not in known]
    if options.hidden % _HEAD_SIZE:
        found.append(f"--hidden accepts multiples of {_HEAD_SIZE}, not {options.hidden}")
    if "dense" not in options.engines:
        found.append("--engines must include dense, because the others are compared with it")
    return found


def subjects(options: argparse.Namespace) -> Iterator[tuple[PreTrainedModel, str]]:
    """Plain models, one at a time, and their names."""
    if options.model is not None:
        model = read_any(options.model)
        yield (bertarize(model) if masked_layers(model) else model), options.model.resolve().name
        return
    for share in options.density:
        yield random_model(options.layers, options.hidden, share, max(options.length)), "random"


@torch.no_grad()
def random_model(layers: int, hidden: int, density: float, length: int) -> PreTrainedModel:
    """A BERT of random weights. In each encoder matrix a random share is not zero."""
    torch.manual_seed(0)
    config = BertConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=hidden // _HEAD_SIZE,
        intermediate_size=4 * hidden,
        max_position_embeddings=max(512, length),
    )
    model = BertForSequenceClassification(config).eval()
    for module in model.bert.encoder.modules():
        if isinstance(module, nn.Linear):
            module.weight *= torch.rand_like(module.weight) < density
    return model


def measure_model(options: argparse.Namespace, model: PreTrainedModel, name: str) -> list[dict[str, Any]]:
    """One row for each engine and shape: the fields of `Latency`, name and density of the model, speed over dense."""
    longest, vocab_size = model.config.max_position_embeddings, model.config.vocab_size
    if max(options.length) > longest:
        raise UserError(f"--length accepts at most {longest} for this model, not {max(options.length)}")
    about = {"name": name, "density": count_parameters(model).encoder_matrices.percent / 100}
    rows: list[Latency] = []
    runners = engines(options, model)
    differences = largest_differences(runners, vocab_size, min(options.length))
    for batch in options.batch:
        for length in options.length:
            rows += measure(runners, batch, length, options.threads, vocab_size, options.seconds)
    ratios = speedups(rows)
    return [
        {
            **about,
            **asdict(row),
            "speedup": ratios[row.model, row.batch, row.length, row.threads],
            "difference": differences[row.model],
        }
        for row in rows
    ]


def engines(options: argparse.Namespace, model: PreTrainedModel) -> dict[str, Runner]:
    """Name -> model, for the requested engines that this machine has; `dense` is Transformers' own."""
    made: dict[str, Runner] = {"dense": model}
    for name in (name for name in options.engines if name != "dense"):
        reason = why_not(name)
        if reason is None:
            made[name] = prepare(model, name, options.threads)
        else:
            print(f"{name} is left out: {reason}", file=sys.stderr)
    return made


@torch.inference_mode()
def largest_differences(runners: dict[str, Runner], vocab_size: int, length: int) -> dict[str, float]:
    """Distance of the first output of each engine from that of the dense model, on a batch of two."""
    inputs = random_batch(2, length, vocab_size)
    outputs = {name: next(iter(runner(*inputs).values())) for name, runner in runners.items()}
    found = {name: (output - outputs["dense"]).abs().max().item() for name, output in outputs.items()}
    strange = [name for name, value in found.items() if not math.isfinite(value)]
    if strange:
        raise UserError(f"{strange[0]} gives NaN or infinite numbers")
    return found


def latency_table(rows: Sequence[dict[str, Any]]) -> str:
    """Milliseconds (median and quartiles) and speed over dense; a line for each model and shape."""
    names = list(dict.fromkeys(row["model"] for row in rows))
    lines: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for row in rows:
        lines.setdefault((row["name"], row["density"], row["batch"], row["length"]), {})[row["model"]] = row
    times, ratios = [f"{name}, ms" for name in names], [f"{name}, x" for name in names[1:]]
    return table(
        ("model", "density", "batch x length", *times, *ratios),
        [
            (
                name,
                f"{100 * density:.1f} %",
                f"{batch} x {length}",
                *(f"{r[n]['median_ms']:.1f} ({r[n]['low_ms']:.1f}-{r[n]['high_ms']:.1f})" for n in names),
                *(f"{r[n]['speedup']:.2f}" for n in names[1:]),
            )
            for (name, density, batch, length), r in lines.items()
        ],
    )


if __name__ == "__main__":
    main()
