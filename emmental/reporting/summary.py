"""What a run reports: log entries, warnings, results, final table, model card, upload."""

from __future__ import annotations

import logging
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from huggingface_hub import HfApi, ModelCard, ModelCardData
from huggingface_hub.repocard_data import EvalResult
from torch import nn

import emmental
from emmental.architectures import base_model_type
from emmental.cascade.of_run import FOLDER as CASCADE_FOLDER
from emmental.cascade.report import PICTURE, compared, section
from emmental.data import FeatureDataset
from emmental.errors import UserError
from emmental.methods import STRUCTURED, method_of
from emmental.patching import masked_layers
from emmental.pruning import densities, mask_churn, remaining_weights
from emmental.reporting.before_after import (
    TrainedModels,
    before_and_after,
    embeddings_share,
    no_better_than_words,
    speed_reached,
)
from emmental.reporting.engine_lines import engine_lines
from emmental.runs.loop import RunLoop
from emmental.runs.processes import Processes
from emmental.runs.progress import LOG_FILE, TENSORBOARD, duration
from emmental.runs.run import Run
from emmental.structured.vocabulary import saving
from emmental.tasks import CUSTOM, Task, always_the_same, evaluation_tasks, metric_text, metric_title
from emmental.tasks.metrics import ERRORS, MOSTLY_ONE
from emmental.training.budgets import SpeedTarget
from emmental.training.phases import Phase
from emmental.training.plan import Plan
from emmental.training.reading_arguments import HOW_TO_READ
from emmental.training.recipe import ALL_TOKENS

logger = logging.getLogger(__name__)

HIGH_CHURN, PATIENCE = 0.02, 3
MOSTLY_THERE = 95.0
"""In % of the weights: if more remain, the run says that hardly anything was pruned."""


def pruning_so_far(loop: RunLoop, plan: Plan) -> dict[str, Any]:
    """What a log entry says of pruning: threshold, lambda, how much the masks change, and what remains."""
    if not plan.prunes:
        return {}
    student, step = loop.learner.student, loop.learner.global_step
    threshold, regu_lambda = plan.at(step)
    churn = mask_churn(student)
    loop.carried["high_churn"] = warn_of_churn(
        churn, loop.carried["high_churn"], loop.run.mask_scores_learning_rate, loop.run.processes.is_main
    )
    loop.progress.scalars(step, {f"remaining/{k}": 100 * v for k, v in densities(student).items()})
    return {"threshold": threshold, "lambda": regu_lambda, "churn": churn, "remaining": remaining_weights(student)}


def warn_of_churn(churn: float, high_before: int, learning_rate: float, is_main: bool = True) -> int:
    """Warn once if masks keep changing faster than weights can follow. Returns how often in a row they did."""
    high = high_before + 1 if churn > HIGH_CHURN else 0
    if high == PATIENCE and is_main:
        logger.warning(
            "%.1f %% of the mask entries change at every update: the weights cannot follow. Lower "
            "--mask_scores_learning_rate (now %g), or start with --mask_init magnitude and a larger --mask_scale",
            100 * churn,
            learning_rate,
        )
    return high


def warn_of_collapse(
    run: Run,
    predicted: int | np.ndarray | None,
    checkpoint: str = "",
    model: nn.Module | None = None,
    labels: np.ndarray | None = None,
) -> None:
    """Warn if every prediction of `model` is the same, with advice for this kind of run and for the `labels`.

    `predicted` is what `Kind.collapsed` found.
    """
    if predicted is not None and run.processes.is_main:
        same = run.task.kind.same_answer(run.task, predicted, labels)
        where = f"{checkpoint}: " if checkpoint else ""
        if same.share >= MOSTLY_ONE:
            logger.warning("%severy prediction is %s, and %s", where, same.text, same.if_common)
            return
        logger.warning("%severy prediction is %s: the model has collapsed. %s", where, same.text, _against(run, model))


def _against(run: Run, model: nn.Module | None) -> str:
    """Advice against a collapse."""
    if not run.phases:
        return f"{run.model_name_or_path} was trained that way, or gets other inputs than it was trained on"
    slower = f"--learning_rate (now {run.learning_rate:g})"
    if not (run.model_type.startswith("masked_") and run.phases[-1].masked):
        return f"Lower {slower}, or train longer (--num_train_epochs)"
    if method_of(run.pruning_method).learns_scores:
        slower = f"--mask_scores_learning_rate (now {run.mask_scores_learning_rate:g}) or {slower}"
    if model is not None and masked_layers(model) and (left := remaining_weights(model)) > MOSTLY_THERE:
        return f"Lower {slower}, or train longer (--num_train_epochs): {left:.1f} % of the weights are still there"
    return f"Lower {slower}, or prune less ({run.phases[-1].milder_flag()}) or more slowly (--num_train_epochs)"


def checkpoints_table(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """Lines of text: update, remaining weights in % and metrics of each checkpoint that was evaluated."""
    if not rows:
        return []
    names = [name for name in rows[0] if name not in ("step", "remaining")]
    lines = [f"{'update':>8}  {'remaining':>9}  " + "  ".join(f"{name:>10}" for name in names)]
    return lines + [
        f"{row['step']:>8}  {row['remaining']:>7.2f} %  " + "  ".join(f"{row[name]:>10.4f}" for name in names)
        for row in rows
    ]


def final_table(run: Run, made: TrainedModels, results: dict[str, float], seconds: float) -> str:
    """The table at the end of a run: before and after, metrics, remaining weights, size on disk, and places of files.

    A run that only evaluates or predicts names its model and the files it wrote.
    """
    output, metric = Path(run.output_dir), run.task.primary_metric
    weights = output / "model.safetensors"
    rows = [(metric_title(run.task, name), metric_text(name, value)) for name, value in results.items()]
    rows += _floor_rows(run, made, results)
    if run.do_train or made.model.config.model_type.startswith("masked_"):
        rows.append(("remaining weights", f"{made.remaining:.2f} % of the encoder's matrices"))
    if weights.exists():
        scores = ", with mask scores" if made.model.config.model_type.startswith("masked_") else ""
        shares = f"{weights.name}{scores}; {100 * embeddings_share(made.model):.0f} % embeddings of tokens"
        rows.append(("size on disk", f"{weights.stat().st_size / 1e6:.1f} MB ({shares})"))
    if run.phases and isinstance(target := run.phases[-1].target, SpeedTarget):
        rows.append(("speed", speed_reached(target, made)))
    rows.append(("time", duration(seconds)))
    rows.append(("model", str(output if run.do_train else run.model_name_or_path)))
    for title, path in _places(run):
        if (output / path).exists():
            rows.append((title, str(output / path)))
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    table = before_and_after(made.timed(metric), metric) if made.candidates and run.do_train else []
    rule = "-" * max(len(line) for line in [*lines, *table])
    parts = [rule, *table, rule] if table else [rule]
    return "\n".join([*parts, *lines, *_advice(run, made, results), rule])


def _floor_rows(run: Run, made: TrainedModels, results: dict[str, float]) -> list[tuple[str, str]]:
    """(title, value) of what the bag of words reaches, and the same answer for every row."""
    rows, metric = [], run.task.primary_metric
    if made.floor is not None:
        shown = [*([] if made.candidates else [metric]), *(name for name in made.floor.metrics if name in ERRORS)]
        rows = [(f"bag of words, {metric_title(run.task, m)}", metric_text(m, made.floor.metrics[m])) for m in shown]
    constant = constant_answer(run.task, run.datasets)
    if results and constant and run.task.kind.shows_constant(constant):
        title = run.task.kind.constant_title
        rows += [(f"{title}, {name}", metric_text(name, value)) for name, value in constant.items()]
    return rows


def constant_answer(task: Task, datasets: Mapping[tuple[str, str], FeatureDataset]) -> dict[str, float]:
    """Metrics, on the dev data, of the same answer for every row: see `always_the_same`. Empty without dev labels.

    The answer is chosen by the training rows, or without training by the dev rows.
    """
    dev, train = (datasets.get((task.name, split)) for split in ("dev", "train"))
    if dev is None or dev.labels is None:
        return {}
    return always_the_same(task, (dev if train is None else train).labels, dev.labels)


def _advice(run: Run, made: TrainedModels, results: dict[str, float]) -> list[str]:
    """Hints for the user: what to know or to do next, a line each."""
    lines = []
    if made.floor is not None and no_better_than_words(results, made.floor, run.task.primary_metric):
        lines.append("no significant gain over the bag of words: serve the bag of words, it is faster")
    by_scores = made_by(run.phases, made) == run.pruning_method and not method_of(run.pruning_method).by_share
    if run.do_train and by_scores and made.remaining > MOSTLY_THERE:
        lines.append(
            f"{made.remaining:.1f} % of the weights remain, so hardly anything was pruned: give --keep, or a larger "
            f"--final_lambda (now {run.final_lambda:g})"
        )
    if made.candidates and run.do_train and run.do_eval and run.engines:
        dev, train = (run.datasets[run.task.name, split] for split in ("dev", "train"))
        lines += engine_lines(run.task, dev, train, made, run.output_dir)
    lines += _vocabulary_advice(run, made)
    if made.candidates and run.do_train:
        tool = f"python -m emmental.export.report --model_name_or_path {run.output_dir}"
        lines.append(f"next: {tool} {_data_flags(run)} --output report.html")
    elif run.do_train and made.model.config.model_type.startswith("masked_"):
        tool = f"python -m emmental.export.bertarize --model_name_or_path {run.output_dir}"
        lines.append(f"next: {tool}   (a plain model with exact zeros, of the dense model's size)")
    return lines


def _vocabulary_advice(run: Run, made: TrainedModels) -> list[str]:
    """What `--vocabulary` would save, if it is not given, can be and is worth it."""
    if run.vocabulary != ALL_TOKENS or made.rows is None or not (run.phases and run.phases[-1].follows_dense):
        return []
    width = getattr(torch, run.save_dtype).itemsize
    line = saving(made.model, made.tokenizer, made.rows.token_counts(), "--vocabulary", width)
    return [] if line is None else [line]


def _data_flags(run: Run) -> str:
    """The flags of the report that name the run's dev data."""
    if run.task.name != CUSTOM:
        return shlex.join(["--data_dir", run.data_dir, "--task_name", run.task.name])
    file = "validation_file" if run.validation_file else "train_file"
    given = [(name, getattr(run, name)) for name in (file, *HOW_TO_READ)]
    values = [(name, value if isinstance(value, list) else [value]) for name, value in given if value is not None]
    return shlex.join(word for name, words in values for word in (f"--{name}", *words))


def _places(run: Run) -> list[tuple[str, str]]:
    """(title, path in the output folder) of files that a run may write."""
    places = (
        [("results", str(place_of_results(run.do_train, run.output_dir) / "eval_results.json"))] if run.do_eval else []
    )
    if run.do_predict:
        places += [("predictions", task.prediction_file) for task in evaluation_tasks(run.task)]
    return [*places, ("log", LOG_FILE), ("tensorboard", TENSORBOARD), ("pictures", "pictures")]


def place_of_results(do_train: bool, folder: str | Path) -> Path:
    """Folder of results inside the output folder: a finished training keeps its own if it is evaluated again."""
    finished = not do_train and (Path(folder) / "training_args.json").is_file()
    return Path("evaluations", "again") if finished else Path()


def write_results(run: Run, results: dict[str, float], prefix: str, mismatched: bool) -> None:
    """Write the results of an evaluation into `eval_results.txt` and `.json`, see `masked_run_glue.evaluate`."""
    if run.output is None:
        return
    named = {} if run.task.positive_label is None else {"positive_label": run.task.positive_name}
    folder = Path("evaluations", prefix) if prefix else place_of_results(run.do_train, run.output_dir)
    folder = folder / "MM" if mismatched else folder
    run.output.write_text(
        str(folder / "eval_results.txt"), "".join(f"{k} = {v}\n" for k, v in (results | named).items())
    )
    run.output.write_json(str(folder / "eval_results.json"), results | named)


def made_by(phases: Sequence[Phase], made: TrainedModels) -> str:
    """How the model was made, in a word: a pruning method, `structured`, or `dense`."""
    if phases:
        return phases[-1].method
    config = made.model.config
    if config.model_type.startswith("small_"):
        return STRUCTURED
    return config.pruning_method if config.model_type.startswith("masked_") else "dense"


def summary(
    run: Run,
    made: TrainedModels,
    results: dict[str, float],
    history: list[dict[str, Any]],
    seconds: float,
) -> dict[str, Any]:
    """The final table for programs: metrics, remaining weights in %, updates, seconds of this run, and machine."""
    return {
        "task": run.task.name,
        "method": made_by(run.phases, made),
        "metrics": {name: value for name, value in results.items() if name != "entropy"},
        "positive_label": run.task.positive_name,
        "constant_answer": constant_answer(run.task, run.datasets),
        "remaining": made.remaining,
        "vocabulary": _tokens(made),
        "embeddings": embeddings_share(made.model),
        "compared": [asdict(one) for one in made.timed(run.task.primary_metric)],
        **({} if made.cascade is None else {"cascade": compared(made.cascade)}),
        "updates": max((row["step"] for row in history), default=0),
        "seconds": round(seconds, 1),
        "environment": environment_facts(run.processes),
    }


def _tokens(made: TrainedModels) -> dict[str, int]:
    """Tokens of the finished model, and of the dense one."""
    first = next(iter(made.models.values()), made.model)
    return {"tokens": made.model.config.vocab_size, "dense": first.config.vocab_size}


def model_card(run: Run, made: TrainedModels, results: dict[str, float]) -> str:
    """The output folder's README.md: the Hub's metadata with the metrics, and how the model was made."""
    name = run.hub_model_id or Path(run.output_dir).resolve().name
    dataset = (CUSTOM, "own files") if run.task.name == CUSTOM else ("glue", f"GLUE {run.task.name}")
    data = ModelCardData(
        library_name="transformers",
        tags=["emmental"]
        if made_by(run.phases, made) == "dense"
        else ["emmental", "pruning", made_by(run.phases, made)],
        base_model=_hub_name(run.model_name_or_path),
        pipeline_tag="text-classification",
        model_name=name,
        eval_results=[
            EvalResult("text-classification", *dataset, metric, float(metric_text(metric, value)))
            for metric, value in results.items()
            if metric != "entropy"
        ]
        or None,
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_card_text(run, made, results, name)}"))


def push_to_hub(folder: str, name: str | None = None) -> None:
    """Upload the finished model: the files for `from_pretrained`, the card, results and pictures.

    Args:
        folder: of the run.
        name: of the model on the Hub; default: that of the folder.

    Raises:
        UserError: the Hub cannot be reached, or refuses. The model is still whole in the output folder.
    """
    try:
        _upload(folder, name)
    except OSError as error:
        raise UserError(f"--push_to_hub: {error} (the finished model is in {folder})") from error


def _upload(folder: str, name: str | None) -> None:
    api = HfApi()
    name = api.create_repo(name or Path(folder).resolve().name, exist_ok=True).repo_id
    api.upload_folder(
        repo_id=name,
        folder_path=folder,
        allow_patterns=[
            "*.json",
            "*.txt",
            "*.py",
            "model.safetensors",
            "README.md",
            "pictures/*",
            f"{CASCADE_FOLDER}/*",
        ],
        ignore_patterns=[".emmental*", "checkpoint-*", "dense/*", "pruned/*", "vocabulary/*", "keep-*"],
    )
    logger.info("uploaded as %s", name)


def _hub_name(name: str) -> str | None:
    return None if Path(name).exists() else name


def _card_text(run: Run, made: TrainedModels, results: dict[str, float], name: str) -> str:
    shown = {metric_title(run.task, metric): metric_text(metric, value) for metric, value in results.items()}
    if results and run.task.is_regression:
        constant = constant_answer(run.task, run.datasets)
        shown |= {f"always the mean, {name}": metric_text(name, value) for name, value in constant.items()}
    rows = [f"| {title} | {text} |" for title, text in shown.items()]
    table = "\n".join(rows) or "| not evaluated | |"
    config, method = made.model.config, made_by(run.phases, made)
    kind, note = run.task.kind.noun, run.task.kind.note
    pruned = method if method == "dense" else f"{method}, {made.remaining:.2f} % remain"
    learns = run.phases and run.phases[-1].masked and method_of(method).learns_scores
    scores = f", mask scores {run.mask_scores_learning_rate:g}" if learns else ""
    if config.model_type.startswith("masked_"):
        pruned = f"{config.pruning_method}, threshold {config.threshold}, {made.remaining:.2f} % remain"
    return f"""# {name}

A {base_model_type(config.model_type)} {kind} for {run.task.name}, fine-tuned with emmental from \
`{Path(run.model_name_or_path).name}`.{f" {note}" if note else ""}

| metric (dev) | value |
|---|---|
{table}

{_compared(run.task.primary_metric, made, results)}- Encoder: {pruned}.
- Vocabulary: {_vocabulary_text(made)}.
- Updates: learning rate {run.learning_rate:g}{scores}, batch {run.per_gpu_train_batch_size} x \
{run.gradient_accumulation_steps} x {run.processes.world_size}, seed {run.seed}; all flags in `training_args.json`.
- Made with emmental {emmental.__version__}, PyTorch {torch.__version__}, Transformers {transformers.__version__}, \
Python {platform.python_version()}.

```python
import emmental  # `pip install .` in a clone of its repository; PyPI's `emmental` is another project
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```
{_cascade(run, made)}"""


def _cascade(run: Run, made: TrainedModels) -> str:
    """The cascade of the run's models as a part of the card; empty if there is none."""
    if made.cascade is None:
        return ""
    return section(made.cascade, CASCADE_FOLDER, (Path(run.output_dir) / CASCADE_FOLDER / PICTURE).is_file())


def _vocabulary_text(made: TrainedModels) -> str:
    tokens, share = _tokens(made), f"their embeddings are {100 * embeddings_share(made.model):.0f} % of the file"
    of = f" of {tokens['dense']:,}" if tokens["tokens"] < tokens["dense"] else ""
    return f"{tokens['tokens']:,}{of} tokens; {share}"


def _compared(metric: str, made: TrainedModels, results: dict[str, float]) -> str:
    """Dense, pruned and bag of words as a table of the card; empty if there is nothing to compare."""
    rows = [(one.name, one.metric) for one in made.candidates] or [("this model", results.get(metric))]
    if made.floor is not None:
        rows.append(("bag of words", made.floor.metrics.get(metric)))
    if len(rows) < 2:
        return ""
    lines = [f"| {name} | {'-' if value is None else f'{value:.4f}'} |" for name, value in rows]
    return "\n".join([f"| model | {metric} (dev) |", "|---|---|", *lines]) + "\n\n"


def environment_line(processes: Processes) -> str:
    """Versions and hardware, for the first line of the log."""
    return ", ".join(f"{name} {value}" for name, value in environment_facts(processes).items())


def environment_facts(processes: Processes) -> dict[str, Any]:
    """Name -> version or number, of everything that a run's numbers depend on."""
    return {
        "emmental": emmental.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "device": str(processes.device),
        "processes": processes.world_size,
        "threads": torch.get_num_threads(),
    }
