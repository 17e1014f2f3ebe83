"""Classify sentences with a model of any form, in any engine.

python -m emmental.export.sparse --model_name_or_path out --input texts.txt --output answers.jsonl --engine onnx-int8
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import torch
from torch import nn

from emmental.architectures import longest_input
from emmental.atomic import atomic_file, refuse_losing, verify_folder
from emmental.command_line import OneLineParser, leave_if, range_problems, user_mistakes
from emmental.data.texts import STANDARD_INPUT, read_texts
from emmental.data.tokenization import trained_length
from emmental.data.unknown_tokens import FLAG
from emmental.errors import UserError
from emmental.export.arguments import read_arguments
from emmental.export.model_folder import read_model
from emmental.export.storage import load_package
from emmental.export.tokenizer import tokenizer_of
from emmental.inference.engines import ENGINES, ONNX, SPARSE, file_for, from_onnx, prepare, why_not
from emmental.inference.prediction import Predictor, json_line
from emmental.inference.sparse import load_sparse
from emmental.inference.sparse_matrix import DENSE_ABOVE
from emmental.pretrained import check_folder, has_weights

AUTO = "auto"


@contextmanager
def _writer(target: str) -> Iterator[IO[str]]:
    """Standard output for `-`; else a file. It is written whole or not at all, and replaces earlier predictions."""
    if target == STANDARD_INPUT:
        yield sys.stdout
        return
    if Path(target).is_dir():
        raise UserError(f"--output {target} is a folder; it accepts a file, or - (standard output)")
    if Path(target).exists() and not _holds_predictions(Path(target)):
        raise UserError(f"--output {target} exists and holds no predictions; it is left alone")
    with atomic_file(target) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        yield file


def _holds_predictions(path: Path) -> bool:
    """Whether the file is empty or begins like a file of `main`."""
    beginning = json_line(0, {}).removesuffix("}").encode()
    with open(path, "rb") as file:
        return file.read(len(beginning)) in (b"", beginning)


def load(
    path: Path,
    engine: str = AUTO,
    threads: int | None = None,
    pruning_method: str | None = None,
    threshold: float | None = None,
    dense_above: float = DENSE_ABOVE,
) -> nn.Module:
    """The classifier of a package, a model folder of any form, or a folder of ONNX files, in one engine.

    Args:
        path: a file or a folder.
        engine: a name among `ENGINES`; `auto`: ONNX Runtime for ONNX files, else the sparse runtime, which runs
            models that are hardly pruned in plain PyTorch.
        threads: of engines with threads of their own; PyTorch's number if absent.
        pruning_method, threshold: override what a masked model records.
        dense_above: a setting of the sparse runtime, see `load_sparse`.

    Raises:
        UserError: there is no model or no such engine, or the engine cannot run this form.
    """
    if not path.is_file():
        check_folder(path, f"--model_name_or_path {path}")
    if not (path.is_file() or (path / "config.json").is_file()):
        raise UserError(f"--model_name_or_path {path} is not a package and has no config.json; it accepts either")
    threads = torch.get_num_threads() if threads is None else threads
    weights = path.is_file() or has_weights(path)
    if not weights and (path / "onnx").is_dir() and (reason := why_not(ONNX)):
        raise UserError(f"--model_name_or_path {path}: {reason}")
    if not weights and why_not(ONNX) is None and file_for(ONNX, path).is_file():
        return _load_onnx(path, ONNX if engine == AUTO else engine, threads)
    if engine in (AUTO, SPARSE):
        return load_sparse(path, dense_above, pruning_method, threshold)
    if path.is_file() and (pruning_method, threshold) != (None, None):
        raise UserError(f"{path} is a package: --pruning_method and --threshold are for masked models")
    model = load_package(path) if path.is_file() else read_model(path, pruning_method, threshold)
    return prepare(model, engine, threads)


def _load_onnx(path: Path, engine: str, threads: int) -> nn.Module:
    if ENGINES[engine].package is None:
        ways = ", ".join(name for name, known in ENGINES.items() if known.package)
        raise UserError(f"--engine {engine} does not read ONNX files; for {path} give one of {ways}")
    verify_folder(path)
    return from_onnx(file_for(engine, path), engine, threads)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser("Classify sentences with a model of any form: package, masked, plain, small or ONNX.")
    parser.add_argument(
        "--model_name_or_path",
        "--model",
        dest="model_name_or_path",
        required=True,
        help="a package or a model's folder",
    )
    parser.add_argument(
        "--input",
        default="-",
        help="text with one sentence a line; .tsv, .csv or .jsonl with a column "
        "sentence (sentence1 and sentence2: pairs); - for standard input",
    )
    parser.add_argument("--output", default="-", help="JSON lines, one for each sentence; - for standard output")
    parser.add_argument(
        "--engine",
        default=AUTO,
        help=f"{', '.join(ENGINES)}; {AUTO}: the sparse runtime, and ONNX Runtime for a folder of ONNX files",
    )
    parser.add_argument("--tokenizer_name", help="folder of the tokenizer, if not in the model's")
    parser.add_argument("--batch_size", type=int, default=32, help="sentences computed together, of similar length")
    parser.add_argument(
        "--max_seq_length",
        type=int,
        help="texts are cut to this many tokens; default: as in the training, or the model's longest input",
    )
    parser.add_argument(
        FLAG,
        action="store_true",
        help="answer even if the tokenizer knows less than half of the tokens",
    )
    parser.add_argument("--threads", type=int, help="CPU threads; PyTorch's choice if absent")
    parser.add_argument(
        "--dense_above", type=float, default=DENSE_ABOVE, help="matrices denser than this are multiplied dense"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Classify what the command line names; a mistake is one line on stderr and exit status 2."""
    parser = _parser()
    args = read_arguments(parser, argv)
    leave_if(range_problems(args, {"batch_size": 1, "threads": 1, "max_seq_length": 1, "dense_above": 0}), parser.prog)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    with user_mistakes():
        reason = None if args.engine == AUTO else why_not(args.engine)
        if reason is not None:
            raise UserError(f"--engine {args.engine}: {reason}")
        path = Path(args.model_name_or_path)
        read = {"--input": args.input, "--model_name_or_path": path, "--tokenizer_name": args.tokenizer_name}
        refuse_losing(read, [args.output], f"--output {args.output}")
        texts = read_texts(args.input)
        model = load(path, args.engine, args.threads, args.pruning_method, args.threshold, args.dense_above)
        tokenizer = tokenizer_of(path if args.tokenizer_name is None else args.tokenizer_name)
        longest = args.max_seq_length or trained_length(model.config) or longest_input(model.config)
        predictor = Predictor(model, tokenizer, longest, args.accept_unknown_tokens)
        with _writer(args.output) as file:
            for index, answer in enumerate(predictor.predict(texts, args.batch_size)):
                file.write(json_line(index, answer) + "\n")


if __name__ == "__main__":
    main()
