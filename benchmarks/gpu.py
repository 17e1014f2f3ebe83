"""Training updates of every method against dense, and inference of small models against dense, on a GPU.

python -m benchmarks.gpu --json gpu.json
python -m benchmarks.gpu --device cpu --shapes tiny --batches 1 --updates 1
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel
from transformers.utils import logging

from benchmarks import generated, train_step
from benchmarks.arguments import parser
from benchmarks.measurements import Spread, report, table
from emmental.command_line import leave_if, range_problems
from emmental.small_models import LayerSize, small_class, small_config_class

METHODS = ("dense", "topK", "topK global", "threshold", "sigmoied_threshold", "magnitude", "l0")


@dataclass(frozen=True)
class Shape:
    """A BERT: layers, hidden size, attention heads, feed-forward neurons, and tokens of an input."""

    layers: int
    hidden: int
    heads: int
    neurons: int
    length: int = 128

    def config(self) -> BertConfig:
        """The configuration of the dense model."""
        return BertConfig(
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=self.neurons,
        )


SHAPES = {
    "minilm": Shape(6, 384, 12, 1536),
    "bert-base": Shape(12, 768, 12, 3072),
    "tiny": Shape(2, 64, 4, 128, length=16),
}


def forms(shape: Shape) -> dict[str, PreTrainedModel]:
    """The dense model and small ones: 25 % and 10 % of the encoder in equal layers, and 10 % in every other layer."""

    def of(share: float, layers: int = shape.layers) -> LayerSize:
        share *= shape.layers / layers
        return LayerSize(max(1, round(share * shape.heads)), max(1, round(share * shape.neurons)))

    every_other = [
        of(0.1, math.ceil(shape.layers / 2)) if i % 2 == 0 else LayerSize(0, 0) for i in range(shape.layers)
    ]
    sizes = {"25 %": [of(0.25)] * shape.layers, "10 %": [of(0.1)] * shape.layers, "10 %, half empty": every_other}
    torch.manual_seed(0)
    made: dict[str, PreTrainedModel] = {"dense": BertForSequenceClassification(shape.config())}
    for name, layers in sizes.items():
        config = small_config_class("bert").from_dense(shape.config(), layers)
        made[name] = small_class(BertForSequenceClassification)(config)
    return made


def build_parser() -> argparse.ArgumentParser:
    """The flags, with their defaults."""
    made = parser(__doc__.splitlines()[0])
    made.add_argument("--device", default="cuda", help="cuda or cpu")
    made.add_argument("--shapes", nargs="+", choices=SHAPES, default=["minilm", "bert-base"], help="models measured")
    made.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=["bf16", "fp32"], help="of updates")
    made.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="ways to train")
    made.add_argument("--batch_size", type=int, default=32, help="rows of a training batch")
    made.add_argument("--updates", type=int, default=12, help="timed updates of each way to train; 0: none")
    made.add_argument("--batches", type=int, nargs="+", default=[1, 32, 256], help="rows of a batch in inference")
    made.add_argument(
        "--compiled",
        type=int,
        nargs="*",
        default=[1],
        help="batch sizes of --batches to measure also with torch.compile",
    )
    made.add_argument("--turns", type=int, default=15, help="turns of each model in inference")
    return made


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the tables, write the JSON file, and return the numbers."""
    build = build_parser()
    args = build.parse_args(argv)
    problems = range_problems(args, {"updates": 0, "turns": 1, "batch_size": 1, "threads": 1})
    if torch.device(args.device).type == "cuda" and not torch.cuda.is_available():
        problems.append("--device cuda: there is no CUDA device; give --device cpu")
    leave_if(problems, build.prog)
    torch.set_num_threads(args.threads)
    logging.disable_progress_bar()
    training, serving, tables = {}, {}, []
    for shape in args.shapes:
        for precision in args.precisions if args.updates else []:
            key = f"{shape}, {args.batch_size} x {SHAPES[shape].length}, {precision}"
            training[key] = updates(args, SHAPES[shape], precision)
            tables.append(_update_table(key, training[key]))
        key = f"{shape}, length {SHAPES[shape].length}, bf16"
        serving[key] = inference(args, SHAPES[shape])
        tables.append(_inference_table(key, serving[key]))
    return report(args, {"updates": training, "inference": serving}, *tables)


def updates(args: argparse.Namespace, shape: Shape, precision: str) -> dict[str, Any]:
    """Seconds of an update by every method, and of the small model of 25 %, by `benchmarks.train_step`."""
    flags = [f"--device={args.device}", f"--batch_size={args.batch_size}", f"--max_seq_length={shape.length}"]
    flags += [f"--updates={args.updates}", "--phase_updates=1", f"--threads={args.threads}"]
    flags += ["--bf16"] if precision == "bf16" else []
    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        models = forms(shape)
        for name, subjects in (("dense", args.methods), ("25 %", ["dense"])):
            models[name].save_pretrained(Path(folder) / name)
            generated.tokenizer().save_pretrained(Path(folder) / name)
            run = [*flags, f"--model={Path(folder) / name}", "--subjects", *subjects]
            with contextlib.redirect_stdout(io.StringIO()):
                found = train_step.main(run)["updates"]
            measured |= found if name == "dense" else {"small, 25 %": found["dense"]}
    return measured


@torch.inference_mode()
def inference(args: argparse.Namespace, shape: Shape) -> dict[str, dict[str, Spread]]:
    """Rows of a batch (and ", compiled") -> model -> seconds of a forward pass in bfloat16, in turns."""
    device = torch.device(args.device)
    models = {name: model.to(device, torch.bfloat16).eval() for name, model in forms(shape).items()}
    found = {}
    for batch in args.batches:
        tokens = torch.randint(1000, 20000, (batch, shape.length), device=device)
        found[str(batch)] = _in_turns(models, tokens, args.turns)
        if batch in args.compiled:
            compiled = {name: torch.compile(model) for name, model in models.items()}
            found[f"{batch}, compiled"] = _in_turns(compiled, tokens, args.turns)
    return found


def _in_turns(models: dict[str, Callable[..., Any]], tokens: Tensor, turns: int) -> dict[str, Spread]:
    seconds: dict[str, list[float]] = {name: [] for name in models}
    mask = torch.ones_like(tokens)
    for turn in range(-3, turns):
        for name, model in models.items():
            _finish(tokens.device)
            begin = time.perf_counter()
            model(input_ids=tokens, attention_mask=mask)
            _finish(tokens.device)
            if turn >= 0:
                seconds[name].append(time.perf_counter() - begin)
    return {name: Spread.of(values) for name, values in seconds.items()}


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _inference_table(title: str, found: dict[str, dict[str, Spread]]) -> str:
    names = list(next(iter(found.values())))
    rows = [
        [batch, *(f"{spreads[n].text(1000, 2)}, {spreads['dense'].median / spreads[n].median:.2f}" for n in names)]
        for batch, spreads in found.items()
    ]
    return f"{title}: ms, times dense\n\n" + table(["batch", *names], rows)


def _update_table(title: str, found: dict[str, Any]) -> str:
    dense = found["dense"]["seconds"]["median"]
    rows = []
    for name, each in found.items():
        seconds = Spread(**each["seconds"])
        rows.append([name, seconds.text(1000, 2), f"{seconds.median / dense:.2f}"])
    return f"{title}\n\n" + table(["update", "ms", "times dense"], rows)


if __name__ == "__main__":
    main()
