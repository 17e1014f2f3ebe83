"""Build a cascade, classify with it, or check it on new texts.

python -m emmental.cascade --models small dense --texts held-out.csv --train_file train.csv --output served
python -m emmental.cascade --model_name_or_path served --predict new.csv --output answers.jsonl
python -m emmental.cascade --model_name_or_path served --check new.csv
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emmental import atomic
from emmental.cascade.serving import load
from emmental.command_line import OneLineParser, leave_if, range_problems, user_mistakes
from emmental.errors import UserError

logger = logging.getLogger(__name__)

SERVED = "served"
STANDARD_OUTPUT = "-"
_STOPPED = 130
"""Exit status after Ctrl-C, as shells give it."""
_BUILD, _ASK = ("models",), ("predict", "check")
_MODES_OF = {
    **dict.fromkeys(
        ("texts", "train_file", "validation_file", "changed", "delta", "engine", "max_seq_length"), _BUILD
    ),
    **dict.fromkeys(("seed", "label_column", "label_separator"), _BUILD),
    "sample": ("check",),
    "output": ("models", "predict"),
    **dict.fromkeys(("model_name_or_path", "batch_size"), _ASK),
}
"""Flag -> what it is for. Flags for everything are not named."""


def _parser() -> OneLineParser:
    parser = OneLineParser(
        "Cascade of classifiers: a cheap one answers what it is sure of, dearer ones the rest. --models builds one, "
        "--predict classifies, --check compares new texts with the calibration.",
        "python -m emmental.cascade",
    )
    add = parser.add_argument
    add(
        "--models", nargs="+", metavar="FOLDER", help="build: classifiers, the cheapest first; the last always answers"
    )
    add("--texts", metavar="FILE", help="build: texts that no stage was trained on; labels are not needed")
    add("--train_file", metavar="FILE", help="build: adds a bag of words, fitted on these rows, as a stage")
    add(
        "--validation_file",
        metavar="FILE",
        help="build: labelled rows that accuracies are counted on; default: --texts",
    )
    add("--changed", type=float, default=0.01, help="build: share of answers that may differ from the last stage's")
    add("--delta", type=float, default=0.05, help="build: probability that more of them differ")
    add("--engine", default="auto", help="build: engine of every model; auto: the fastest that loses nothing")
    add("--max_seq_length", type=int, help="build: texts are cut to this many tokens; default: as in the training")
    add("--seed", type=int, default=0, help="build: chooses the texts that find the thresholds")
    add("--predict", metavar="FILE", help="classify the texts of a file")
    add("--check", metavar="FILE", help="compare new texts with the calibration; exit status 1 if they differ")
    add("--sample", type=int, default=1000, help="check: most texts that the last stage answers too")
    add("--model_name_or_path", help=f"predict, check: folder of the cascade; default: {SERVED}")
    add("--output", help=f"build: folder to write, default {SERVED}; predict: JSON lines, default standard output")
    add("--batch_size", type=int, default=32, help="texts computed together")
    add("--threads", type=int, help="CPU threads of a stage; default: OMP_NUM_THREADS, or the cores")
    for name, what in (
        ("text_column", "sentence1, sentence or text"),
        ("text_pair_column", "sentence2, if the file has it"),
        ("label_column", "label, if the file has it"),
    ):
        add(f"--{name}", help=f"column of the files; default: {what}")
    add("--label_separator", default=";", help="between the labels of a text, for several labels at once")
    add("--delimiter", help="between the cells of a text file; default: recognised")
    add("--encoding", help="of text files; default: recognised")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Do what the command line says; a mistake is one line on stderr and exit status 2."""
    parser = _parser()
    args = parser.parse_args(argv)
    leave_if(_problems(args, parser), parser.prog)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        with user_mistakes():
            if args.models:
                _build(args)
            elif args.predict:
                _predict(args)
            else:
                _check(args)
    except KeyboardInterrupt:
        print(f"{parser.prog}: stopped; nothing was written", file=sys.stderr)
        sys.exit(_STOPPED)


def _problems(args: argparse.Namespace, parser: argparse.ArgumentParser) -> list[str]:
    asked = [name for name in ("models", "predict", "check") if getattr(args, name)]
    problems = range_problems(args, {"batch_size": 1, "threads": 1, "sample": 1, "max_seq_length": 4, "seed": 0})
    if len(asked) != 1:
        problems.append(f"give one of --models, --predict and --check, not {' and '.join(asked) or 'none'}")
    if args.models and not args.texts:
        problems.append("--models needs --texts: rows that no stage was trained on")
    for name in ("changed", "delta"):
        if not 0 < getattr(args, name) < 1:
            problems.append(f"--{name} accepts a share between 0 and 1, not {getattr(args, name):g}")
    if len(asked) == 1:
        for name, modes in _MODES_OF.items():
            if getattr(args, name) != parser.get_default(name) and asked[0] not in modes:
                problems.append(f"--{name} is for {' and '.join(f'--{mode}' for mode in modes)}, not for --{asked[0]}")
    return problems


def _reading(args: argparse.Namespace, label: str | None = None) -> Any:
    from emmental.tasks.own_files import Reading
    from emmental.training.reading_arguments import DELIMITERS

    delimiter = args.delimiter and DELIMITERS.get(args.delimiter, args.delimiter)
    return Reading(args.text_column, args.text_pair_column, label, delimiter, args.encoding)


def _build(args: argparse.Namespace) -> None:
    import transformers

    from emmental.cascade.building import build_cascade
    from emmental.cascade.report import result_lines
    from emmental.cascade.rows import Rows, read_rows

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    reading = _reading(args, args.label_column)
    files = {"--texts": args.texts, "--train_file": args.train_file, "--validation_file": args.validation_file}
    read = {flag: read_rows(file, flag, reading) for flag, file in files.items() if file}
    given = {flag: Rows(rows.texts, _fitting_labels(args, rows, flag)) for flag, rows in read.items()}
    if "--validation_file" in given and given["--validation_file"].labels is None:
        raise UserError(f"--validation_file {args.validation_file} needs labels: accuracies are counted on it")
    record = build_cascade(
        args.models,
        given["--texts"].texts,
        args.output or SERVED,
        labels=given["--texts"].labels,
        changed=args.changed,
        delta=args.delta,
        training=given.get("--train_file"),
        validation=given.get("--validation_file"),
        engine=args.engine,
        max_length=args.max_seq_length,
        threads=args.threads,
        seed=args.seed,
        label_separator=args.label_separator,
    )
    print(*result_lines(record), sep="\n")
    if not args.train_file:
        print("without --train_file there is no bag of words among the stages")
    print(Path(args.output or SERVED))


def _fitting_labels(args: argparse.Namespace, rows: Any, flag: str) -> list[str] | None:
    """The labels of a file. A column that nobody named is not used if it holds other classes than the last stage."""
    from emmental.cascade.models import classes_of
    from emmental.cascade.rows import answers_in

    try:
        if rows.labels is not None:
            answers_in(rows.labels, *classes_of(args.models[-1]), args.label_separator)
    except UserError as error:
        if args.label_column:
            raise UserError(f"{flag}: {error}") from None
        logger.warning("%s: its labels are not used: %s", flag, error)
        return None
    return rows.labels


def _predict(args: argparse.Namespace) -> None:
    from emmental.cascade.rows import read_rows

    if args.output not in (None, STANDARD_OUTPUT):
        atomic.refuse_losing({"--predict": args.predict}, [args.output], f"--output {args.output}")
    cascade = load(args.model_name_or_path or SERVED, args.threads)
    answers = cascade.classify(read_rows(args.predict, "--predict", _reading(args)).texts, args.batch_size)
    lines = "".join(json.dumps({"index": row, **one}, ensure_ascii=False) + "\n" for row, one in enumerate(answers))
    if args.output in (None, STANDARD_OUTPUT):
        sys.stdout.write(lines)
        return
    target = Path(args.output)
    if target.exists() and not (target.is_file() and target.read_bytes()[:10] in (b"", b'{"index": ')):
        raise UserError(f"--output {target} exists and holds no predictions; it is left alone")
    atomic.write_text(target, lines)


def _check(args: argparse.Namespace) -> None:
    from emmental.cascade.drift import check
    from emmental.cascade.rows import read_rows

    cascade = load(args.model_name_or_path or SERVED, args.threads)
    texts = read_rows(args.check, "--check", _reading(args)).texts
    drift = check(cascade, texts, args.sample, args.batch_size)
    print(*drift.lines([step.name for step in cascade.steps]), sep="\n")
    if drift.broken or (drift.shares_differ and drift.reaches_further):
        sys.exit(1)


if __name__ == "__main__":
    main()
