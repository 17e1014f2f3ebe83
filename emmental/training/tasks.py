"""Makes the task from flags, files and the given model."""

from __future__ import annotations

import csv
from pathlib import Path

from transformers import PreTrainedConfig

from emmental.cascade.promise import DELTA, rows_needed
from emmental.data.tokenization import trained_length
from emmental.errors import UserError
from emmental.runs.run import Run
from emmental.tasks import CUSTOM, Task, hold_back, in_order_of, resolve_task, split_files, task_of_model, user_task
from emmental.tasks.classes import are_numbered, classes_of_model, in_given_order, is_classifier, positive_class
from emmental.tasks.own_files import Reading
from emmental.tasks.set_aside import SET_ASIDE, TrainedRows, recorded_rows, rows_of_record
from emmental.training.models import load_config
from emmental.training.reading_arguments import DELIMITERS


def find_task(args: Run) -> Task:
    """The task with its classes in the order of the model's outputs. For `--cascade`, training rows are held back.

    Without training, flags that are not given take the values of the model's training (see `_settle`).

    Raises:
        UserError: the files cannot be read, the model has other classes, or too few rows can be held back.
    """
    task = _task_of_files(args)
    return _with_rows_for_cascade(args, task) if args.cascade and args.do_train and task.train is not None else task


def _with_rows_for_cascade(args: Run, task: Task) -> Task:
    """The task without the training rows that a cascade of the run's models is calibrated on."""
    if task.is_regression:
        raise UserError("--cascade needs classes: nothing says how sure a score is")
    called = f"--model_name_or_path {args.model_name_or_path}"
    earlier = _earlier(args, load_config(args)[0])
    try:
        return hold_back(task, args.data_dir, rows_needed(args.changed, DELTA), earlier, called)
    except UserError as error:
        raise UserError(f"--cascade --changed {args.changed:g}: {error}") from None


def _task_of_files(args: Run) -> Task:
    names = _names(args.label_names)
    own = _files_first(args, names) if args.do_train else None
    config, called = load_config(args)
    if not args.do_train:
        _settle(args, config, called, names)
    if args.task_name != CUSTOM:
        task = resolve_task(args.task_name)
        task = task if args.positive_label is None else task.with_positive(args.positive_label)
        return _in_order_of_student(args, task, config, called, names)
    if not args.train_file:
        return task_of_model(config, called, args.validation_file, args.test_file, names, reading_of(args, config))
    if own is None or _record_of_hub(args, config) is not None:
        own = _own_task(args, names, config)
    return _in_order_of_student(args, own, config, called, names)


def _files_first(args: Run, names: list[str] | None) -> Task | None:
    """The task of own files. Faults in files are found here, before the Hub is asked for a model."""
    if args.train_file:
        return _own_task(args, names)
    task = resolve_task(args.task_name)
    if task.train is not None:
        split_files(task, args.data_dir, "train")
    return None


def _own_task(args: Run, names: list[str] | None, config: PreTrainedConfig | None = None) -> Task:
    return user_task(args.train_file, args.validation_file, args.test_file, names, reading_of(args, config))


def _in_order_of_student(
    args: Run, task: Task, config: PreTrainedConfig, called: str, names: list[str] | None
) -> Task:
    """The task with its classes in the order of the model's outputs; a new classifier takes the task's own order.

    Training makes a new classifier if the model has none, if the user wants it, or if the model's has another size and
    unnamed classes.
    """
    if args.do_train:
        own = classes_of_model(config, called)
        unnamed = are_numbered(own) and len(own) != task.num_labels
        if args.new_classifier or unnamed or not is_classifier(config):
            return task if names is None else in_given_order(task, names)
    try:
        return in_order_of(task, config, called, names)
    except UserError as error:
        if not args.do_train:
            raise
        raise UserError(f"{error}; --new_classifier starts with a new classifier") from None


def _settle(args: Run, config: PreTrainedConfig, called: str, names: list[str] | None) -> None:
    """Use the text length and the positive label of the model's training, unless flags say others."""
    if "max_seq_length" not in args.explicit:
        args.max_seq_length = trained_length(config) or args.max_seq_length
    if args.positive_label is None and args.task_kind != "regression":
        args.positive_label = positive_class(config, called, names)


def _names(given: list[str] | None) -> list[str] | None:
    """The class names of `--label_names`: several words, or one word with commas. A name with commas is in quotes."""
    if given is None:
        return None
    parts = next(csv.reader(given, skipinitialspace=True)) if len(given) == 1 else given
    return [part.strip() for part in parts]


def reading_of(args: Run, config: PreTrainedConfig | None = None) -> Reading:
    """How own files are read. The configuration is the model's, if it is loaded."""
    delimiter = args.delimiter and DELIMITERS.get(args.delimiter, args.delimiter)
    columns = tuple(args.label_column or ())
    evaluates = args.do_eval or args.evaluate_during_training or args.eval_all_checkpoints
    return Reading(
        text=args.text_column,
        pair=args.text_pair_column,
        label=columns[0] if len(columns) == 1 else None,
        delimiter=delimiter,
        encoding=args.encoding,
        kind=args.task_kind,
        positive_label=args.positive_label,
        set_aside=bool(evaluates),
        model=f"--model_name_or_path {args.model_name_or_path}",
        earlier=_earlier(args, config),
        label_columns=columns if len(columns) > 1 else (),
        label_separator=args.label_separator,
    )


def _earlier(args: Run, config: PreTrainedConfig | None) -> TrainedRows | None:
    """What the model records about its training rows; or the output folder, if an older version began the run."""
    begun = recorded_rows(args.output_dir) if args.do_train and not args.overwrite_output_dir else None
    if begun is not None and begun.seed is not None:
        return begun
    return _record_of_hub(args, config) or recorded_rows(args.model_name_or_path)


def _record_of_hub(args: Run, config: PreTrainedConfig | None) -> TrainedRows | None:
    """What a model of the Hub records, which has no folder of that name."""
    is_folder = Path(args.model_name_or_path).is_dir()
    return None if config is None or is_folder else rows_of_record(getattr(config, SET_ASIDE, None))
