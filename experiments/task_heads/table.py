"""Prune models of several task heads without labels, and measure what is left of their metrics.

python -m experiments.task_heads.table --task wnut17 --dense outputs/heads/wnut17-0 --results results.jsonl
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer

import emmental
from emmental.structured.agreement import agreement, answers
from emmental.structured.texts import material
from emmental.task_heads import MOST_PASSES, task_head
from emmental.training.text_recovery import recover, recovery_run
from experiments.task_heads.datasets import READERS, metrics


def load(folder: str) -> Any:
    """The model of a folder, by the class that its configuration names."""
    import transformers

    name = AutoConfig.from_pretrained(folder).architectures[0]
    return getattr(transformers, name).from_pretrained(folder).eval()


def first_layers(dense: Any, count: int) -> Any:
    """A copy with the first layers alone."""
    config = AutoConfig.for_model(**{**dense.config.to_dict(), "num_hidden_layers": count})
    small = type(dense)(config)
    known = small.state_dict()
    small.load_state_dict({name: value for name, value in dense.state_dict().items() if name in known})
    return small.eval()


def main() -> None:
    """Append a line of JSON for every model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=[*READERS], required=True)
    parser.add_argument("--dense", required=True, help="folder of the dense model")
    parser.add_argument("--data_dir", type=Path, help="default: ../shared/data/heads, of stsb ../shared/data/glue")
    parser.add_argument("--keep", type=float, nargs="*", default=[0.4, 0.25])
    parser.add_argument("--layers", type=int, nargs="*", default=[], help="first layers, for comparison")
    parser.add_argument("--updates", type=int, nargs="+", default=[0, 300])
    parser.add_argument("--passes", type=int, nargs="+", default=[MOST_PASSES])
    parser.add_argument("--split", default="test")
    parser.add_argument("--results", type=Path, required=True)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    folder = args.data_dir or Path("../shared/data/glue" if args.task == "stsb" else "../shared/data/heads")
    dense, tokenizer = load(args.dense), AutoTokenizer.from_pretrained(args.dense)
    train, judged = (READERS[args.task](folder, split) for split in ("train", args.split))
    texts = [side for pair in train.texts for side in pair] if args.task == "stsb" else train.texts
    exact = metrics(args.task, dense, tokenizer, judged)
    plans = [("keep", keep, passes) for keep in args.keep for passes in args.passes]
    plans += [("layers", count, MOST_PASSES) for count in args.layers]
    for kind, size, passes in plans:
        for updates in args.updates:
            begin, head = time.perf_counter(), task_head(dense, passes=passes)
            rows = material(tokenizer, texts, head=head)
            if kind == "layers":
                small = first_layers(dense, int(size))
            else:
                small = emmental.prune(dense, tokenizer, texts, keep=size, passes=passes)
            if updates:
                small = recover(recovery_run(None, updates=updates), dense, small, rows, tokenizer)
            seconds = time.perf_counter() - begin
            found = metrics(args.task, small, tokenizer, judged)
            apart = agreement(head, answers(dense, rows.check, head), answers(small, rows.check, head))
            line = {
                "task": args.task,
                "dense": Path(args.dense).name,
                kind: size,
                "passes": passes,
                "updates": updates,
            }
            line |= {"metrics": found, "of_dense": {name: found[name] / exact[name] for name in found}}
            line |= {"changed": apart.changed, "divergence": apart.divergence, "seconds": seconds, "split": args.split}
            line |= {"torch": torch.__version__}
            print(line, flush=True)
            with open(args.results, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
