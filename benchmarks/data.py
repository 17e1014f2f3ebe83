"""Data preparation: speed of tokenising, start of a run from a cache, and padding.

python -m benchmarks.data --model_name_or_path MODEL --data_dir glue/SST-2 --task_name sst-2
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from benchmarks import generated
from benchmarks.arguments import model_folder, parser
from benchmarks.measurements import Spread, report, table, timed
from emmental.command_line import leave_if, user_mistakes
from emmental.data import FeatureDataset, LengthGroupedBatches, batch_loader, load_features, padding_share
from emmental.tasks import read_split, resolve_task

_BATCH_SIZES = (8, 16, 32, 64)
_TIMES = (
    ("read", "reading_seconds"),
    ("read, tokenise, cache", "cold_seconds"),
    ("cache to first batch", "warm_seconds"),
)


def build_parser() -> argparse.ArgumentParser:
    """The flags. Without a folder, sentence pairs are generated."""
    made = parser(__doc__.splitlines()[0])
    model_folder(made, "folder with a tokenizer; default: every word is a token")
    made.add_argument("--data_dir", type=Path, default=None, help="folder of a GLUE task; default: generated pairs")
    made.add_argument("--task_name", default="mnli", help="name of that task")
    made.add_argument("--lines", type=int, default=20_000, help="without --data_dir: pairs to generate")
    made.add_argument("--copies", type=int, default=1, help="with --data_dir: repeats of its training rows")
    made.add_argument("--max_seq_length", type=int, default=128, help="tokens of a row")
    made.add_argument("--repeats", type=int, default=3, help="timed repetitions")
    return made


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure as the flags say. Print tables, write JSON, return its content."""
    options = build_parser().parse_args(argv)
    sound = min(options.lines, options.repeats, options.copies) >= 1
    leave_if([] if sound else ["--lines, --copies and --repeats accept numbers from 1"], "data.py")
    with tempfile.TemporaryDirectory() as name, user_mistakes():
        folder = Path(name)
        if options.data_dir is None:
            options.data_dir = generated.write_pairs(folder / "data", options.lines, (8, 24))
        elif options.copies > 1:
            options.data_dir = repeated(options, folder / "data")
        results = measured(options, folder / "cache")
    times = table(
        ["", "s (quartiles)", "rows a second"],
        (
            [f"{what}, {results['rows']} rows", results[key].text(), f"{results['rows'] / results[key].median:.0f}"]
            for what, key in _TIMES
        ),
    )
    shares = table(
        ["batch size", "padding, % of tokens", "in file order, %"],
        (
            [str(size), f"{100 * row['grouped']:.2f}", f"{100 * row['in_order']:.1f}"]
            for size, row in results["padding"].items()
        ),
    )
    return report(options, {"options": vars(options), **results}, times, shares)


def repeated(options: argparse.Namespace, folder: Path) -> Path:
    """The task's training file, its rows written several times, so the time to start matters less."""
    layout = resolve_task(options.task_name).layout("train")
    lines = (options.data_dir / layout.files[0]).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    header, rows = (lines[:1], lines[1:]) if layout.header else ([], lines)
    folder.mkdir()
    (folder / layout.files[0]).write_text("\n".join([*header, *rows * options.copies, ""]), encoding="utf-8")
    return folder


def measured(options: argparse.Namespace, cache: Path) -> dict[str, Any]:
    """Cold and warm starts, and the padding of an epoch."""
    reading = timed(lambda: read_split(resolve_task(options.task_name), options.data_dir, "train"), options.repeats)
    cold, warm = [], []
    for repeat in range(options.repeats):
        begin = time.perf_counter()
        dataset = opened(options, cache / str(repeat))
        cold.append(time.perf_counter() - begin)
    for _ in range(options.repeats):
        begin = time.perf_counter()
        dataset = opened(options, cache / "0")
        first_batch(dataset)
        warm.append(time.perf_counter() - begin)
    return {
        "rows": len(dataset),
        "reading_seconds": reading,
        "cold_seconds": Spread.of(cold),
        "warm_seconds": Spread.of(warm),
        "padding": {size: padding(dataset, size) for size in _BATCH_SIZES},
    }


def opened(options: argparse.Namespace, cache: Path) -> FeatureDataset:
    """The training rows, opened as in the trainer: the tokenizer first, then the cache or the files."""
    tokenizer = generated.tokenizer() if options.model is None else AutoTokenizer.from_pretrained(options.model)
    task = resolve_task(options.task_name)
    return load_features(
        task, options.data_dir, "train", tokenizer, options.max_seq_length, cache, show_progress=False
    )


def first_batch(dataset: FeatureDataset) -> dict[str, Any]:
    """The first batch: the work before the first update."""
    return next(iter(batch_loader(dataset, LengthGroupedBatches(dataset.lengths, 32))))


def padding(dataset: FeatureDataset, batch_size: int) -> dict[str, float]:
    """Share of padding among the tokens of an epoch: in batches of similar lengths, and in batches in file order."""
    grouped = LengthGroupedBatches(dataset.lengths, batch_size)
    in_order = LengthGroupedBatches(dataset.lengths, batch_size, shuffle=False, grouped=False)
    lengths = dataset.lengths
    return {"grouped": padding_share(lengths, grouped), "in_order": padding_share(lengths, in_order)}


if __name__ == "__main__":
    main()
