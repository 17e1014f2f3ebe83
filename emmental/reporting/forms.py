"""What a report compares: every exported form of a model, its answers to the dev data, and its training's records."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from os.path import isfile  # also False for names that no file can have
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import emmental
from emmental.cascade.of_run import FOLDER as CASCADE_FOLDER
from emmental.cascade.serving import CASCADE_FILE, read_record
from emmental.data import load_features
from emmental.data.texts import Text
from emmental.errors import UserError
from emmental.export.bertarize import bertarize_folder
from emmental.export.calibration import Calibration
from emmental.export.counts_parameters import Count, count_parameters
from emmental.export.model_folder import read_model
from emmental.export.onnx import INT8_FILE, MODEL_FILE, export_onnx_folder
from emmental.export.openvino_int8 import OPENVINO_FILE, missing_package
from emmental.export.package import VALUE_TYPES
from emmental.export.storage import save_package
from emmental.flags import Flags
from emmental.inference.comparison import DENSE, FORM_TITLES, Evaluation
from emmental.inference.engines import ONNX, ONNX_INT8, TORCH, available, prepare
from emmental.latency import machine
from emmental.masked_models import unmasked_class
from emmental.patching import masked_layers
from emmental.pretrained import weight_files
from emmental.runs.evaluation import predict_logits
from emmental.runs.precision import Precision
from emmental.runs.processes import Processes
from emmental.tasks import Task, class_order, compute_metrics, evaluation_tasks, predictions_from_logits
from emmental.training.arguments import FLAGS


@dataclass(frozen=True)
class Artifacts:
    """Folders and files of the exported forms of one model.

    Attributes:
        source: folder of the fine-pruned model.
        plain: its bertarized folder; `source` itself if that is plain.
        onnx: the folder of its two ONNX models.
        packages: type of the values -> package, matrices and embeddings both of that type.
        int8_form: the form of int8 in `onnx`, a name among `FORMS`.
        dense: folder of the dense model it came from; None if unknown.
    """

    source: Path
    plain: Path
    onnx: Path
    packages: dict[str, Path]
    int8_form: str
    dense: Path | None = None

    @property
    def files(self) -> dict[str, Path]:
        """Form -> its file of weights, or its package."""
        folders = {DENSE: self.dense, "checkpoint": self.source, "bertarized": self.plain}
        if self.plain == self.source:
            del folders["checkpoint"]
        files = {name: weight_files(folder)[0] for name, folder in folders.items() if folder is not None}
        files |= {ONNX: self.onnx / MODEL_FILE, ONNX_INT8: self.onnx / INT8_FILE}
        return files | {f"{values} package": path for values, path in self.packages.items()}


@dataclass(frozen=True)
class DevData:
    """Data and settings for evaluating the forms of a model.

    Attributes:
        task: GLUE's, or own files.
        data_dir: folder of the GLUE task.
        max_seq_length: longer inputs are cut to this many tokens.
        batch_size: of the evaluation.
        cache_dir: folder of the tokenised data.
        tokenizer: of the model.
        of_dense: that of the dense model, if it has other tokens.
        calibrated: (n,) dev rows that int8 is calibrated on: its points are counted on the others.
    """

    task: Task
    data_dir: str | None
    max_seq_length: int
    batch_size: int
    cache_dir: Path
    tokenizer: PreTrainedTokenizerBase
    of_dense: PreTrainedTokenizerBase | None = None
    calibrated: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def primary_metric(self) -> str:
        """The name of the metric that forms are judged by."""
        return self.task.primary_metric

    def evaluate(self, model: nn.Module, title: str) -> Evaluation:
        """Evaluate a form on all dev rows; `mnli` has two dev files, and is judged on the first.

        Args:
            model: the form.
            title: its name for people.
        """
        logits, metrics, judged = [], {}, []
        columns = np.argsort(class_order(self.task, model.config, title))  # a dense model may have its own order
        alone = Processes(device=torch.device("cpu"))
        own = self.of_dense if self.of_dense is not None and title == FORM_TITLES[DENSE] else self.tokenizer
        for task in evaluation_tasks(self.task):
            rows = load_features(
                task, self.data_dir, "dev", own, self.max_seq_length, self.cache_dir, show_progress=False
            )
            bar, precision = f"Evaluating {title}", Precision(alone.device)
            part = predict_logits(model, rows, self.batch_size, alone, precision, bar).numpy()[:, columns]
            metrics |= compute_metrics(task, predictions_from_logits(task, part), rows.labels)
            others = np.setdiff1d(np.arange(len(part)), self.calibrated)
            others = others if len(others) else np.arange(len(part))
            of_others = predictions_from_logits(task, part[others])
            judged.append(compute_metrics(task, of_others, np.asarray(rows.labels)[others])[task.primary_metric])
            logits.append(part)
        return Evaluation(np.concatenate(logits), metrics, judged[0], self.task.kind.agreement)


def make_artifacts(
    source: Path,
    work_dir: Path,
    texts: Sequence[Text],
    accepts: Callable[[Path], bool],
    pruning_method: str | None = None,
    threshold: float | None = None,
    dense: Path | None = None,
) -> Artifacts:
    """Write the exported forms of the model in `source` into `work_dir`; those of an earlier call are replaced.

    int8 is calibrated on `texts`; `accepts` says whether an ONNX file is good enough. `dense` is the folder of the
    model it came from, which is only read.

    Raises:
        ValueError, UserError: as `read_model`, `bertarize_folder`, `export_onnx_folder` and `save_package`.
    """
    plain = source
    if masked_layers(read_model(source, pruning_method, threshold)):
        plain = work_dir / "plain"
        bertarize_folder(source, plain, pruning_method, threshold)
    openvino, choice = missing_package() is None, Calibration(accepts=accepts)
    made = export_onnx_folder(plain, work_dir / "onnx", True, texts=texts, openvino=openvino, choice=choice)
    packages = {values: work_dir / f"{values}.emmental" for values in VALUE_TYPES}
    work_dir.mkdir(parents=True, exist_ok=True)
    for values, path in packages.items():
        save_package(plain, path, values, values)
    return Artifacts(source, plain, work_dir / "onnx", packages, made.int8_form, dense)


def engines(artifacts: Artifacts, threads: int) -> dict[str, nn.Module]:
    """Models to serve: the dense model, if it is known, and the model in every engine of this machine."""
    plain = read_model(artifacts.plain)
    dense = {} if artifacts.dense is None else {DENSE: prepare(read_model(artifacts.dense), TORCH, threads)}
    names = available(calibrated=(artifacts.onnx / OPENVINO_FILE).is_file())
    return dense | {name: prepare(plain, name, threads, artifacts.onnx) for name in names}


def remaining(model: PreTrainedModel, dense: PreTrainedModel | None = None) -> dict[str, dict]:
    """Counts as JSON: `sums` and `matrices`, each name -> remaining, total, percent.

    If heads and neurons were cut out of the model, the total of `encoder matrices` is that of `dense`.
    """

    def row(count: Count) -> dict[str, float]:
        return {"remaining": count.remaining, "total": count.total, "percent": count.percent}

    counts = count_parameters(model)
    sums = counts.sums()
    if dense is not None:
        total = count_parameters(dense).sums()["encoder matrices"].total
        left = sums["encoder matrices"]
        sums["encoder matrices"] = Count(left.remaining, max(total, left.total))
    return {
        "sums": {name: row(count) for name, count in sums.items()},
        "matrices": {name: row(count) for name, count in counts.matrices.items()},
    }


def environment(threads: int) -> dict[str, Any]:
    """Versions and hardware that the numbers depend on."""
    return {
        **machine(),
        "onnxruntime": onnxruntime.__version__,
        "emmental": emmental.__version__,
        "threads": threads,
    }


def training(folder: Path) -> dict[str, Any]:
    """Records of the trainer in its output folder: `command`, `summary` and `cascade`, if they exist.

    Raises:
        UserError: a file of it is damaged.
    """
    records: dict[str, Any] = {}
    summary = _read_object(folder / "summary.json")
    flags = flags_of_training(folder)
    if flags is not None:
        facts = (summary or {}).get("environment")
        processes = facts.get("processes") if isinstance(facts, dict) else None
        records["command"] = training_command(flags, processes if isinstance(processes, int) else 1)
    if summary is not None:
        records["summary"] = summary
    if (folder / CASCADE_FOLDER / CASCADE_FILE).is_file():
        records["cascade"] = read_record(folder / CASCADE_FOLDER)
    return records


def flags_of_training(folder: Path) -> dict[str, Any] | None:
    """Flag -> value of the training that wrote the folder; None without its record. Raises `UserError`: damaged."""
    return _read_object(folder / "training_args.json")


def dense_origin(source: Path, model: PreTrainedModel, named: str | None = None) -> Path | None:
    """Folder of the dense model that `model` in `source` came from.

    Args:
        named: the user's choice. Default: `source`/dense, then the teacher or the model in the training's flags,
            if that is a folder here with a model of the same head and as many outputs that is not masked.

    Raises:
        UserError: the folder that the user named holds no such model.
    """
    flags = _read_object(source / "training_args.json") or {}
    recorded = [flags.get(flag) for flag in ("teacher_name_or_path", "model_name_or_path")]
    others = [source / "dense", *(Path(name) for name in recorded if name and isinstance(name, str))]
    for folder in [Path(named)] if named else others:
        settings = _read_object(folder / "config.json")
        if settings is not None and _is_dense(settings, model):
            return folder
    if named:
        kind = "classifier" if head_of(model) == "ForSequenceClassification" else f"model {head_of(model)}"
        raise UserError(f"--dense {named} holds no dense {kind} with {model.config.num_labels} outputs")
    return None


def _is_dense(settings: dict[str, Any], model: PreTrainedModel) -> bool:
    names, labels = settings.get("architectures"), settings.get("id2label")
    name = names[0] if isinstance(names, list) and names else None
    outputs = len(labels) if labels and isinstance(labels, dict) else 2  # Transformers omits two unnamed classes
    plain = isinstance(name, str) and head_suffix(name) == head_of(model) and not name.startswith("Masked")
    return plain and outputs == model.config.num_labels


def head_of(model: PreTrainedModel) -> str:
    """`head_suffix` of a model, masked or not."""
    return head_suffix(unmasked_class(type(model)).__name__)


def head_suffix(name: str) -> str:
    """The end of a model's class name that names its head: `ForTokenClassification`; `Model` without one."""
    return name[name.rfind("For") :] if "For" in name else "Model"


def training_command(flags: dict[str, Any], processes: int = 1) -> str:
    """The command line of `masked_run_glue.py`. Older records hold only flags that differ from their defaults."""
    start = "python" if processes == 1 else f"torchrun --nproc_per_node={processes}"
    words = [*start.split(), "masked_run_glue.py"]
    given = flags.get("given")
    for flag in Flags(FLAGS, {}).declared:
        if flag.name not in (given if isinstance(given, list) else flags):
            continue
        value = flags.get(flag.name, flag.default)
        if value == flag.default or (value is False and flag.default is None):
            continue
        if isinstance(value, bool):
            words.append(f"--{flag.name}" if value else f"--no-{flag.name}")
        else:
            values = [str(one) for one in value] if isinstance(value, list) else [str(value)]
            words += [f"--{flag.name}", *(values if flag.several else [",".join(values)])]
    return shlex.join(words)


def _read_object(file: Path) -> dict[str, Any] | None:
    if not isfile(file):
        return None
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is damaged ({type(error).__name__})") from error
    if not isinstance(value, dict):
        raise UserError(f"{file} is damaged: a JSON object is expected")
    return value
