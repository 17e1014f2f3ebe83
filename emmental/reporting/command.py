"""A fine-pruned model on one page: quality, speed, size, what remains, how it was made.

    python -m emmental.export.report --model_name_or_path out --data_dir glue/SST-2 --task_name sst-2 --output out.html

It writes every exported form of the model into `--work_dir`.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from emmental import atomic
from emmental.architectures import longest_input
from emmental.cascade.report import picture
from emmental.command_line import OneLineParser, leave_if, range_problems, user_mistakes
from emmental.data.pruning_texts import Columns
from emmental.data.tokenization import check_token_ids, trained_length
from emmental.errors import UserError
from emmental.export.arguments import read_arguments
from emmental.export.load_for_pruning import LoadedModel, load_for_pruning
from emmental.export.model_folder import read_model
from emmental.export.storage import load_package
from emmental.export.tokenizer import tokenizer_of
from emmental.inference.comparison import INT8_PACKAGE, MASKED, Judge, compare, sizes
from emmental.inference.engines import TORCH, named_config
from emmental.masked_models import unmasked_class
from emmental.patching import masked_layers
from emmental.pictures.canvas import Chart, encode_array, render_rgba
from emmental.pictures.curves import curves, has_curves
from emmental.pictures.heat import overview
from emmental.reporting.calibration import CalibrationTexts, calibration_file_texts, calibration_texts
from emmental.reporting.engine_lines import both_tried
from emmental.reporting.forms import (
    DevData,
    dense_origin,
    engines,
    environment,
    make_artifacts,
    remaining,
    training,
)
from emmental.reporting.page import GENERATOR, card_tables, page
from emmental.reporting.text_data import TextData, read_text_data
from emmental.runs.progress import LOG_FILE, read_log
from emmental.tasks import Task, evaluation_tasks, in_order_of, resolve_task, split_files, task_of_model
from emmental.tasks.classes import positive_class
from emmental.tasks.own_files import Reading
from emmental.tasks.set_aside import recorded_rows
from emmental.training.reading_arguments import DELIMITERS, HOW_TO_READ

logger = logging.getLogger(__name__)

CARD_BEGIN, CARD_END = "<!-- report:begin -->", "<!-- report:end -->"


def gather(args: argparse.Namespace, command: str) -> dict[str, Any]:
    """Make every form of a model, and measure its quality, size and speed.

    Args:
        args: the flags of the command line.
        command: the command line, for the record.

    Returns:
        What `page.page` shows, ready for JSON.

    Raises:
        UserError: the model is not a classifier of the task, or as `make_artifacts` and `read_split`.
    """
    loaded = load_for_pruning(args.model_name_or_path, 1) if args.texts else None
    source = Path(args.model_name_or_path) if loaded is None else loaded.encoder
    model = read_model(source, args.pruning_method, args.threshold)
    records, work = training(Path(args.model_name_or_path)), Path(args.work_dir)
    dense = dense_origin(source, model, args.dense)
    original = None if dense is None else read_model(dense)
    other_tokens = original is not None and original.config.vocab_size != model.config.vocab_size
    if loaded is not None and other_tokens:
        logger.warning(
            "%s has other tokens than %s: it is left out, and answers are compared with fp32", dense, source
        )
        dense = original = None
    if loaded is None:
        data, calibration = _dev_data(args, model, tokenizer_of(dense) if other_tokens else None)
    else:
        data, calibration = _text_data(args, loaded, original)
    judge = Judge(data.evaluate, args.threads, named_config(model))
    judge.judge(MASKED if masked_layers(model) else TORCH, model)
    artifacts = make_artifacts(
        source, work, calibration.texts, judge.accepts, args.pruning_method, args.threshold, dense
    )
    models = engines(artifacts, args.threads) | {INT8_PACKAGE: load_package(artifacts.packages["int8"])}
    shapes = [(batch, length) for batch in args.batch_sizes for length in args.lengths]
    compared = compare(judge, models, shapes, model.config.vocab_size, args.seconds, artifacts.int8_form)
    return {
        "made_by": GENERATOR,
        "name": source.resolve().name,
        "folder": args.model_name_or_path,
        "model_type": model.config.model_type,
        "task": args.texts or data.task.name,
        "judged_on": "answers to texts" if args.texts else "dev rows",
        "primary_metric": data.primary_metric,
        "architecture": unmasked_class(type(model)).__name__,
        "pruning": _pruning(model),
        "remaining": remaining(model, original),
        **asdict(compared),
        "int8": both_tried(artifacts.int8_form, calibration.words),
        "sizes": sizes(artifacts.files, model, original),
        "training": records,
        "environment": environment(args.threads),
        "command": command,
    }


def _dev_data(
    args: argparse.Namespace, model: PreTrainedModel, of_dense: PreTrainedTokenizerBase | None
) -> tuple[DevData, CalibrationTexts]:
    """The labelled rows that a classifier is judged on, and texts for int8. `--max_seq_length` is filled in.

    Args:
        of_dense: the tokenizer of the dense model, if that has other tokens.
    """
    source = Path(args.model_name_or_path)
    if not type(model).__name__.endswith("ForSequenceClassification"):
        raise UserError(
            f"--model_name_or_path accepts a sequence classifier, or any model with --texts; {source} is a "
            f"{type(model).__name__}"
        )
    task, tokenizer = _task(args, model.config), tokenizer_of(source)
    args.max_seq_length = args.max_seq_length or trained_length(model.config) or min(128, longest_input(model.config))
    _check_lengths(model, args)
    check_token_ids(tokenizer, model.config, f"--model_name_or_path {source}", "its model")
    features = Path(args.work_dir) / "features"
    calibration = calibration_texts(args.calibration_file, task, args.data_dir)
    sizes = args.max_seq_length, args.per_gpu_eval_batch_size
    return DevData(task, args.data_dir, *sizes, features, tokenizer, of_dense, calibration.dev_rows), calibration


def _text_data(
    args: argparse.Namespace, loaded: LoadedModel, original: PreTrainedModel | None
) -> tuple[TextData, CalibrationTexts]:
    """The texts that a model of any task head is judged on, and others for int8. `--max_seq_length` is filled in."""
    args.max_seq_length = args.max_seq_length or loaded.length(None)
    _check_lengths(loaded.model, args)
    label = None if args.label_column is None else args.label_column[0]
    delimiter = args.delimiter and DELIMITERS.get(args.delimiter, args.delimiter)
    columns = Columns(args.text_column, args.text_pair_column, label, delimiter, args.encoding)
    calibration = calibration_file_texts(args.calibration_file) if args.calibration_file else None
    return read_text_data(loaded, args.texts, columns, args.max_seq_length, original, calibration)


def draw(results: dict[str, Any], history: list[dict[str, Any]]) -> dict[str, bytes]:
    """PNG files for the page: `remaining`; `curves` when there is a history to draw; `cascade` if there is one."""
    counts = results["remaining"]["matrices"]
    densities = {name: count["remaining"] / count["total"] for name, count in counts.items()}
    totals = {name: count["total"] for name, count in counts.items()}
    pictures = {"remaining": _png(overview(densities, results["name"], totals))}
    if has_curves(history):
        pictures["curves"] = _png(curves(history, results["name"]))
    if (record := results["training"].get("cascade")) is not None:
        pictures["cascade"] = _png(picture(record))
    return pictures


def training_history(folder: Path) -> list[dict[str, Any]]:
    """The trainer's log in its output folder, if `curves` can draw it; empty if there is none.

    Raises:
        UserError: it is damaged.
    """
    try:
        history = read_log(folder / LOG_FILE)
        has_curves(history)
    except UserError as error:
        raise UserError(f"{folder / LOG_FILE} is damaged: {error}") from error
    return history


def insert_tables(card: str, tables: str) -> str:
    """A model card with the tables, between the markers of an earlier report or at the end."""
    before, begin, rest = card.partition(CARD_BEGIN)
    _, end, after = rest.partition(CARD_END)
    if not (begin and end):
        before, after = card.rstrip("\n") + "\n\n", "\n"
    return f"{before}{CARD_BEGIN}\n{tables}\n{CARD_END}{after}"


def find_problems(args: argparse.Namespace) -> list[str]:
    """Every mistake that can be found before a model is read, a line each."""
    problems = range_problems(
        args, {"threads": 1, "max_seq_length": 3, "per_gpu_eval_batch_size": 1}, above_zero=("seconds",)
    )
    for flag in ("batch_sizes", "lengths"):
        for value in getattr(args, flag):
            if value < 1:
                problems.append(f"--{flag} accepts numbers from 1, not {value}")
    own = [f"--{name}" for name in ("validation_file", "train_file") if getattr(args, name)]
    if args.texts and (own or args.data_dir or args.task_name):
        problems.append("--texts is judged instead of --validation_file or --data_dir; give either")
    if args.texts and (len(args.label_column or ()) > 1 or args.label_separator):
        problems.append("--texts takes several labels from one --label_column of lists")
    if not (own or args.texts) and None in (args.data_dir, args.task_name):
        problems.append(
            "--data_dir and --task_name are required, or --validation_file, --train_file or --texts in their place"
        )
    if own and (args.data_dir or args.task_name):
        problems.append(f"{own[0]} cannot be used with --data_dir and --task_name; give either")
    for flag in ("output", "results"):
        problems += _output_problems(flag, getattr(args, flag))
    if args.model_card:
        problems += _card_problems(Path(args.model_name_or_path))
    return problems


def _output_problems(flag: str, name: str | None) -> list[str]:
    """Refuse to replace a file that is not an earlier report."""
    if name is None:
        return []
    path = Path(name)
    if path.is_dir():
        return [f"--{flag} {name} is a folder; it accepts a file"]
    if path.exists() and GENERATOR not in path.read_text(encoding="utf-8", errors="replace")[:1000]:
        return [f"--{flag} {name} exists and is not a report; it is left alone"]
    return []


def _card_problems(folder: Path) -> list[str]:
    if not (folder / "README.md").is_file():
        return [f"--model_card: {folder} has no README.md to put the tables into"]
    if (folder / atomic.MANIFEST).is_file():
        return [f"--model_card: {folder} has a {atomic.MANIFEST}, so its files must not change; omit --model_card"]
    return []


def _task(args: argparse.Namespace, config: PreTrainedConfig) -> Task:
    """The task with its classes in the model's order, after checking that its dev files exist."""
    called = f"--model_name_or_path {args.model_name_or_path}"
    positive = positive_class(config, called)
    if not (args.validation_file or args.train_file):
        task = resolve_task(args.task_name)
        task = task if positive is None else task.with_positive(positive)
    else:
        task = task_of_model(
            config, called, args.validation_file, None, reading=_reading(args, positive), train_file=args.train_file
        )
    for judge in evaluation_tasks(task):
        split_files(judge, args.data_dir, "dev")
    return in_order_of(task, config, called) if args.task_name else task


def _reading(args: argparse.Namespace, positive: str | None) -> Reading:
    """How own files are read. Of a training file, only the rows that the training set aside are read."""
    columns = tuple(args.label_column or ())
    earlier = recorded_rows(args.model_name_or_path)
    if not args.validation_file and earlier is None:
        raise UserError(
            f"--train_file: {args.model_name_or_path} has no record of its training; give --validation_file"
        )
    return Reading(
        text=args.text_column,
        pair=args.text_pair_column,
        label=columns[0] if len(columns) == 1 else None,
        delimiter=args.delimiter and DELIMITERS.get(args.delimiter, args.delimiter),
        encoding=args.encoding,
        positive_label=positive,
        set_aside=True,
        label_columns=columns if len(columns) > 1 else (),
        label_separator=args.label_separator,
        model=f"--model_name_or_path {args.model_name_or_path}",
        earlier=earlier,
    )


def _check_lengths(model: PreTrainedModel, args: argparse.Namespace) -> None:
    longest = longest_input(model.config)
    for flag, length in (("max_seq_length", args.max_seq_length), ("lengths", max(args.lengths))):
        if length > longest:
            raise UserError(f"--{flag} {length} is more than the {longest} positions of {args.model_name_or_path}")


def _pruning(model: PreTrainedModel) -> dict[str, Any] | None:
    if not masked_layers(model):
        return None
    config = model.config
    return {
        "method": config.pruning_method,
        "threshold": config.threshold,
        "global_topk": config.global_boundary is not None,
    }


def _png(chart: Chart) -> bytes:
    return encode_array(render_rgba(chart)[..., :3], ".png")


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser("Export a fine-pruned model in every form, measure them all, and write one page about it.")
    parser.add_argument("--model_name_or_path", required=True, help="folder of the model: masked, plain or small")
    parser.add_argument("--data_dir", help="folder of the GLUE task's .tsv files")
    parser.add_argument("--task_name", help="cola, sst-2, mrpc, sts-b, qqp, mnli, mnli-mm, qnli, rte or wnli")
    parser.add_argument("--validation_file", help="own labelled data, instead of these two; as for the trainer")
    parser.add_argument("--texts", help="judge any task head on texts, by agreement with dense; as for emmental-prune")
    parser.add_argument("--train_file", help="without validation file: its rows that the training set aside")
    for name in HOW_TO_READ:
        several = {"nargs": "+"} if name == "label_column" else {}
        parser.add_argument(f"--{name}", help="for own data, as for the trainer", **several)
    parser.add_argument("--dense", help="folder of the dense model it came from; default: what the training recorded")
    parser.add_argument(
        "--calibration_file",
        help="texts that int8 is calibrated on; default: training rows, or dev rows that are then not judged",
    )
    parser.add_argument("--output", "--target", dest="output", default="report.html", help="page to write")
    parser.add_argument("--results", help="file for the numbers, as JSON")
    parser.add_argument("--work_dir", help="folder for the exported forms; default: <output>-files")
    parser.add_argument(
        "--model_card",
        action=argparse.BooleanOptionalAction,
        help=f"write the tables into the model folder's README.md, between {CARD_BEGIN} and {CARD_END}",
        default=False,
    )
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8], help="batch sizes to time")
    parser.add_argument("--lengths", type=int, nargs="+", default=[32, 128], help="input lengths to time, in tokens")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each latency of each form")
    parser.add_argument(
        "--max_seq_length", type=int, help="most tokens of a dev row; default: as in the training, or 128"
    )
    parser.add_argument("--per_gpu_eval_batch_size", type=int, default=32, help="batch size of the evaluation")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Write the report that the command line asks for; a mistake is one line on stderr and exit status 2."""
    parser = _parser()
    args = read_arguments(parser, argv)
    leave_if(find_problems(args), parser.prog)
    target, source = Path(args.output), Path(args.model_name_or_path)
    args.work_dir = args.work_dir or target.with_name(f"{target.stem}-files")
    given = sys.argv[1:] if argv is None else argv
    with user_mistakes():
        history = training_history(source)
        results = gather(args, shlex.join(["python", "-m", GENERATOR, *given]))
        atomic.write_text(target, page(results, draw(results, history)))
        if args.results is not None:
            atomic.write_json(args.results, results)
        if args.model_card:
            card = source / "README.md"
            atomic.write_text(card, insert_tables(card.read_text(encoding="utf-8"), card_tables(results)))
    print(target)


if __name__ == "__main__":
    main()
