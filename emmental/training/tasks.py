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


def find_task(run: Run) -> Task:
    """The task with its classes in the order of the model's outputs. For `--cascade`, training rows are held back.

    Without training, flags that are not given take the values of the model's training (see `_take_from_training`).

    Raises:
        UserError: the files cannot be read, the model has other classes, or too few rows can be held back.
    """
    names = _names(run.label_names)
    own = _files_first(run, names) if run.do_train else None
    config, called = load_config(run)
    if not run.do_train:
        _take_from_training(run, config, called, names)
    task = _task_for_model(run, own, config, called, names)
    holds_back = run.cascade and run.do_train and task.train is not None
    return _with_rows_for_cascade(run, task, config) if holds_back else task


def _with_rows_for_cascade(run: Run, task: Task, config: PreTrainedConfig) -> Task:
    """The task without the training rows that a cascade of the run's models is calibrated on."""
    if task.is_regression:
        raise UserError("--cascade needs classes: nothing says how sure a score is")
    called = f"--model_name_or_path {run.model_name_or_path}"
    earlier = _earlier(run, config)
    try:
        return hold_back(task, run.data_dir, rows_needed(run.changed, DELTA), earlier, called)
    except UserError as error:
        raise UserError(f"--cascade --changed {run.changed:g}: {error}") from None


def _task_for_model(
    run: Run, own: Task | None, config: PreTrainedConfig, called: str, names: list[str] | None
) -> Task:
    """GLUE's task or that of own files, with the classes of the model. `own`: read already, if files were read."""
    if run.task_name != CUSTOM:
        task = resolve_task(run.task_name)
        task = task if run.positive_label is None else task.with_positive(run.positive_label)
        return _in_order_of_student(run, task, config, called, names)
    if not run.train_file:
        return task_of_model(config, called, run.validation_file, run.test_file, names, reading_of(run, config))
    if own is None or _record_of_hub(run, config) is not None:
        own = _own_task(run, names, config)
    return _in_order_of_student(run, own, config, called, names)


def _files_first(run: Run, names: list[str] | None) -> Task | None:
    """The task of own files. Faults in files are found here, before the Hub is asked for a model."""
    if run.train_file:
        return _own_task(run, names)
    task = resolve_task(run.task_name)
    if task.train is not None:
        split_files(task, run.data_dir, "train")
    return None


def _own_task(run: Run, names: list[str] | None, config: PreTrainedConfig | None = None) -> Task:
    return user_task(run.train_file, run.validation_file, run.test_file, names, reading_of(run, config))


def _in_order_of_student(run: Run, task: Task, config: PreTrainedConfig, called: str, names: list[str] | None) -> Task:
    """The task with its classes in the order of the model's outputs; a new classifier takes the task's own order.

    Training makes a new classifier if the model has none, if the user wants it, or if the model's has another size and
    unnamed classes.
    """
    if run.do_train:
        own = classes_of_model(config, called)
        unnamed = are_numbered(own) and len(own) != task.num_labels
        if run.new_classifier or unnamed or not is_classifier(config):
            return task if names is None else in_given_order(task, names)
    try:
        return in_order_of(task, config, called, names)
    except UserError as error:
        if not run.do_train:
            raise
        raise UserError(f"{error}; --new_classifier starts with a new classifier") from None


def _take_from_training(run: Run, config: PreTrainedConfig, called: str, names: list[str] | None) -> None:
    """Use the text length and the positive label of the model's training, unless flags say others."""
    if "max_seq_length" not in run.explicit:
        run.max_seq_length = trained_length(config) or run.max_seq_length
    if run.positive_label is None and run.task_kind != "regression":
        run.positive_label = positive_class(config, called, names)


def _names(given: list[str] | None) -> list[str] | None:
    """The class names of `--label_names`: several words, or one word with commas. A name with commas is in quotes."""
    if given is None:
        return None
    parts = next(csv.reader(given, skipinitialspace=True)) if len(given) == 1 else given
    return [part.strip() for part in parts]


def reading_of(run: Run, config: PreTrainedConfig | None = None) -> Reading:
    """How own files are read. The configuration is the model's, if it is loaded."""
    delimiter = run.delimiter and DELIMITERS.get(run.delimiter, run.delimiter)
    columns = tuple(run.label_column or ())
    evaluates = run.do_eval or run.evaluate_during_training or run.eval_all_checkpoints
    return Reading(
        text=run.text_column,
        pair=run.text_pair_column,
        label=columns[0] if len(columns) == 1 else None,
        delimiter=delimiter,
        encoding=run.encoding,
        kind=run.task_kind,
        positive_label=run.positive_label,
        set_aside=bool(evaluates),
        model=f"--model_name_or_path {run.model_name_or_path}",
        earlier=_earlier(run, config),
        label_columns=columns if len(columns) > 1 else (),
        label_separator=run.label_separator,
    )


def _earlier(run: Run, config: PreTrainedConfig | None) -> TrainedRows | None:
    """What the model records about its training rows; or the output folder, if an older version began the run."""
    begun = recorded_rows(run.output_dir) if run.do_train and not run.overwrite_output_dir else None
    if begun is not None and begun.seed is not None:
        return begun
    return _record_of_hub(run, config) or recorded_rows(run.model_name_or_path)


def _record_of_hub(run: Run, config: PreTrainedConfig | None) -> TrainedRows | None:
    """What a model of the Hub records, which has no folder of that name."""
    is_folder = Path(run.model_name_or_path).is_dir()
    return None if config is None or is_folder else rows_of_record(getattr(config, SET_ASIDE, None))
