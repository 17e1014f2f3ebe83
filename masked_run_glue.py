"""Fine-tune BERT on GLUE, or on your own sentences, while pruning it.

python masked_run_glue.py --data_dir glue/MRPC --task_name mrpc
torchrun --nproc_per_node=8 masked_run_glue.py --data_dir glue/MRPC --task_name mrpc
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import visualizing_image
from distiller import TaskDistiller
from emmental.atomic import DamagedError, verify_folder
from emmental.command_line import user_mistakes
from emmental.data import FeatureDataset, LengthGroupedBatches, batch_loader, load_features
from emmental.data.description import description, one_class
from emmental.errors import NonFiniteError, StoppedBySignal, UserError
from emmental.patching import drop_masks, masked_layers
from emmental.pruning import densities, mask_churn, masks_of, regularization, remaining_weights, schedule_threshold
from emmental.reporting.summary import (
    environment_line,
    final_table,
    model_card,
    place_of_results,
    push_to_hub,
    summary,
    warn_of_churn,
    warn_of_collapse,
)
from emmental.runs import processes
from emmental.runs.checkpoints import (
    checkpoints_in,
    fitting,
    load_checkpoint,
    newest_good_checkpoint,
    prune_checkpoints,
    require_finite,
    save_checkpoint,
)
from emmental.runs.evaluation import predict_logits
from emmental.runs.output_folder import OutputFolder
from emmental.runs.precision import Precision
from emmental.runs.progress import LOG_FILE, Progress, add_pictures, configure_logging, read_log
from emmental.runs.resuming import RunFlags, open_output
from emmental.runs.state import LossAverages, StopSignals, batches_of_updates
from emmental.tasks import (
    collapsed_to_one_class,
    compute_metrics,
    evaluation_tasks,
    prediction_entropy,
    predictions_from_logits,
    resolve_task,
    write_predictions,
)
from emmental.teaching.teachers import check_hidden_states, hidden_state_match, load_teacher, teacher_logits
from emmental.training.arguments import arguments_of_result, parse_arguments, recorded_arguments
from emmental.training.models import load_model, load_tokenizer, model_to_evaluate
from emmental.training.plan import Plan, plan_updates
from emmental.training.tasks import find_task

__all__ = [
    "evaluate",
    "load_and_cache_examples",
    "main",
    "regularization",
    "schedule_threshold",
    "set_seed",
    "train",
]

logger = logging.getLogger("masked_run_glue")


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Run the trainer with the flags of `argv` (default: the command line's) and return the evaluation's results."""
    args = parse_arguments(argv)
    args.output, args.datasets = None, {}
    with user_mistakes():
        args.environment = processes.start(args.no_cuda)
    configure_logging(args.environment.is_main)
    try:
        return _run(args)
    except NonFiniteError as error:
        newest = checkpoints_in(args.output_dir)
        logger.error(
            "%s; the run ends without saving it. Last good state: %s. Try a lower --learning_rate or "
            "--mask_scores_learning_rate, or --bf16 in the place of --fp16",
            error,
            newest[-1] if newest else "none",
        )
        sys.exit(1)
    finally:
        if args.output is not None:
            args.output.close()
        processes.stop()


def _run(args: argparse.Namespace) -> dict[str, float]:
    started = time.monotonic()
    logger.info("%s", environment_line(args))
    with user_mistakes():
        tokenizer, train_dataset = _prepare_task(args)
        if args.dry_run:
            return {}
        set_seed(args)
        model, teacher = _load_models(args, tokenizer)
        if teacher is not None:
            check_hidden_states(args, teacher, model, train_dataset)
        _open_output(args, train_dataset)
    if args.do_train:
        steps, mean_loss = train(args, train_dataset, model, tokenizer, teacher)
        logger.info("trained: %d updates, mean loss %.4f", steps, mean_loss)
        model.eval()
        if args.output is not None:
            args.output.save_model(model, tokenizer)
    results = evaluate(args, model, tokenizer) if args.do_eval else {}
    if args.eval_all_checkpoints:
        _evaluate_all_checkpoints(args, model, tokenizer)
    if args.do_predict:
        _predict(args, model, tokenizer)
    if args.output is not None:
        _hand_over(args, model, results, time.monotonic() - started)
    return results


def _prepare_task(args: argparse.Namespace) -> tuple[Any, FeatureDataset | None]:
    """Task, tokenizer and training data; shows the plan of the training and refuses one that makes no sense."""
    if not args.do_train:
        args.model_name_or_path = model_to_evaluate(args)
    args.task = find_task(args)
    if args.do_train and args.task.train is None:
        raise UserError(f"--task_name {args.task.name} has no training data; it takes --do_predict alone")
    tokenizer = load_tokenizer(args)
    for task in evaluation_tasks(args.task):
        if args.do_eval or args.evaluate_during_training or args.eval_all_checkpoints:
            load_and_cache_examples(args, task.name, tokenizer, evaluate=True)
        if args.do_predict:
            load_and_cache_examples(args, task.name, tokenizer, predict=True)
    train_dataset = load_and_cache_examples(args, args.task.name, tokenizer) if args.do_train else None
    opened = {split: rows for (name, split), rows in args.datasets.items() if name == args.task.name}
    for line in description(args.task, opened, args.max_seq_length):
        logger.info(line)
    if train_dataset is None:
        return tokenizer, None
    plan = plan_updates(args, len(train_dataset), args.environment.world_size)
    for line in plan.lines():
        logger.info(line)
    if problem := plan.problem():
        raise UserError(problem)
    return tokenizer, train_dataset


def _open_output(args: argparse.Namespace, train_dataset: FeatureDataset | None) -> None:
    """Lock the output folder, and see that a run which stands there is this one."""
    args.data = None if train_dataset is None else train_dataset.fingerprint
    if not args.do_train:
        args.output = OutputFolder(args.output_dir) if args.environment.is_main else None
        return
    args.output = open_output(
        args.output_dir, args.environment, _identity(args), args.overwrite_output_dir, args.accept_changes, RunFlags()
    )
    if args.output is not None:
        args.output.write_json("training_args.json", recorded_arguments(args))


def _identity(args: argparse.Namespace) -> dict[str, Any]:
    return {**arguments_of_result(args), "world_size": args.environment.world_size}


def _load_models(args: argparse.Namespace, tokenizer: Any) -> tuple[nn.Module, nn.Module | None]:
    model = load_model(args, args.task, tokenizer).to(args.environment.device)
    if args.teacher_name_or_path is None or not args.do_train:
        return model, None
    return model, load_teacher(args, tokenizer, args.task)


def set_seed(args: argparse.Namespace) -> None:
    """Seed Python, NumPy and PyTorch with `args.seed`."""
    random.seed(args.seed)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)


def load_and_cache_examples(
    args: argparse.Namespace, task: str, tokenizer: Any, evaluate: bool = False, predict: bool = False
) -> FeatureDataset:
    """The tokenised training (or `evaluate`: dev, `predict`: test) rows of a task; rank 0 caches, all read.

    A data set once opened by a run stays open.
    """
    spec = next((each for each in evaluation_tasks(args.task) if each.name == task), None) or resolve_task(task)
    split = "test" if predict else "dev" if evaluate else "train"
    if (task, split) not in args.datasets:
        with args.environment.main_first():
            args.datasets[task, split] = load_features(
                spec,
                args.data_dir,
                split,
                tokenizer,
                args.max_seq_length,
                _cache_folder(args),
                overwrite_cache=args.overwrite_cache and args.environment.is_main,
                show_progress=args.environment.is_main,
            )
    return args.datasets[task, split]


def _cache_folder(args: argparse.Namespace) -> Path:
    if args.feature_cache_dir:
        return Path(args.feature_cache_dir)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emmental"


def train(
    args: argparse.Namespace,
    train_dataset: FeatureDataset,
    model: nn.Module,
    tokenizer: Any,
    teacher: nn.Module | None = None,
) -> tuple[int, float]:
    """Fine-prune `model` in place, going on from the newest good checkpoint of the output folder if there is one.

    Returns:
        (number of updates made in all, mean total loss over them).

    Raises:
        NonFiniteError: a loss or gradient became NaN or infinite; nothing of that is saved.
        StoppedBySignal: SIGTERM or Ctrl-C came; the state is saved.
    """
    environment = args.environment
    plan = plan_updates(args, len(train_dataset), environment.world_size)
    known = hidden = None
    if teacher is not None:
        hidden = hidden_state_match(args, teacher, model, train_dataset, environment, _cache_folder(args))
        known = teacher_logits(args, teacher, train_dataset, environment, _cache_folder(args))
    distiller = TaskDistiller(args, model, plan, environment, known, hidden)
    training = Training(args, distiller, tokenizer)
    training.resume()
    batches = LengthGroupedBatches(
        train_dataset.lengths, args.per_gpu_train_batch_size, environment.rank, environment.world_size, seed=args.seed
    )
    train_dataset.pad_to_multiple_of = distiller.precision.pad_to_multiple_of
    loader = batch_loader(train_dataset, batches, args.num_workers, pin_memory=environment.device.type == "cuda")
    model.train()
    with Progress(args.output, plan.total_updates, distiller.global_step) as progress, StopSignals() as signals:
        updates = batches_of_updates(loader, batches, plan.accumulation, distiller.global_step)
        while distiller.global_step < plan.total_updates:
            epoch, micro_batches = next(updates)
            training.update(micro_batches)
            progress.advance()
            stopping = environment.any(signals.received is not None)
            training.log_if_due(progress, epoch)
            training.save_if_due(progress, stopping)
            if stopping:
                logger.info("saved after update %d; the same command goes on from there", distiller.global_step)
                raise StoppedBySignal(128 + (signals.received or 15))
    drop_masks(model)
    return distiller.global_step, training.averages.mean_total()


class Training:
    """One training: its updates, what is logged of them, and its checkpoints."""

    def __init__(self, args: argparse.Namespace, distiller: TaskDistiller, tokenizer: Any) -> None:
        self.args = args
        self.distiller = distiller
        self.plan: Plan = distiller.plan
        self.tokenizer = tokenizer
        self.averages = LossAverages(args.environment)
        self.best: dict[str, Any] = {"step": None, "metric": None}
        self.high_churn = 0
        self.save_steps = args.save_steps or self.plan.updates_per_epoch

    def resume(self) -> None:
        """Take up the newest good checkpoint; every rank reads the one that rank 0 found."""
        found = newest_good_checkpoint(self.args.output_dir)
        if found is None:
            return
        distiller = self.distiller
        with user_mistakes(), fitting(found):
            state = load_checkpoint(
                found, distiller.student, distiller.optimizer, self.args.environment, distiller.companion
            )
            distiller.load_state_dict(state["updates"])
            self.averages.load_state_dict(state["averages"])
            self.best = {name: state["best"][name] for name in self.best}
            self.high_churn = int(state["high_churn"])
        self._prune_checkpoints()
        logger.info("resuming after update %d of %d (%s)", self.distiller.global_step, self.plan.total_updates, found)

    def update(self, micro_batches: list[dict[str, Tensor]]) -> None:
        """One optimizer update."""
        distiller, device = self.distiller, self.args.environment.device
        threshold, regu_lambda = self.plan.at(distiller.global_step + 1)
        distiller.measuring = self._is_due(self.args.logging_steps, distiller.global_step + 1)
        distiller.begin_update(len(micro_batches))
        for batch in micro_batches:
            on_device = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
            distiller.step(on_device, threshold, regu_lambda)
            self.averages.add(distiller.losses, len(micro_batches))
        self.averages.update_done()

    def log_if_due(self, progress: Progress, epoch: int) -> None:
        """Every `logging_steps` updates and after the last: losses, threshold, rates, remaining weights, gradients."""
        distiller, step = self.distiller, self.distiller.global_step
        if not self._is_due(self.args.logging_steps, step):
            return
        distiller.check_finite()
        threshold, regu_lambda = self.plan.at(step)
        losses = self.averages.take_recent()
        row = {"epoch": epoch, "loss": losses.pop("total"), "losses": losses}
        if self.plan.prunes:
            churn = mask_churn(distiller.student)
            row |= {"threshold": threshold, "lambda": regu_lambda, "churn": churn}
            row["remaining"] = remaining_weights(distiller.student)
            self.high_churn = warn_of_churn(self.args, churn, self.high_churn)
            progress.scalars(step, {f"remaining/{k}": 100 * v for k, v in densities(distiller.student).items()})
        row["rates"] = distiller.learning_rates()
        row["gradient_norms"] = {name: float(norm) for name, norm in distiller.gradient_norms.items()}
        row["skipped_updates"] = distiller.skipped_updates
        progress.log(step, row)

    def save_if_due(self, progress: Progress, stopping: bool) -> None:
        """Every `save_steps` updates, after the last and before stopping: evaluate, checkpoint, picture."""
        step = self.distiller.global_step
        scheduled = self._is_due(self.save_steps, step)
        if not (scheduled or stopping):
            return
        self.distiller.check_finite()
        if scheduled and self.args.evaluate_during_training:
            require_finite(step, self.distiller.student, self.distiller.optimizer, self.distiller.companion)
            self._evaluate(progress, step)
        if self.args.output is not None:
            # Before the checkpoint: a run that is killed between the two goes on from there and draws no more of it.
            self._picture(progress, step)
        state = {
            "updates": self.distiller.state_dict(),
            "averages": self.averages.state_dict(),
            "best": self.best,
            "high_churn": self.high_churn,
            "arguments": _identity(self.args),
        }
        save_checkpoint(
            self.args.output_dir,
            step,
            self.distiller.student,
            self.tokenizer,
            self.distiller.optimizer,
            state,
            self.args.environment,
            self.distiller.companion,
        )
        self._prune_checkpoints()

    def _prune_checkpoints(self) -> None:
        if self.args.output is not None:
            limit, step = self.args.save_total_limit, self.distiller.global_step
            prune_checkpoints(self.args.output_dir, limit, self.best["step"], step)

    def _evaluate(self, progress: Progress, step: int) -> None:
        results = evaluate(self.args, self.distiller.student, self.tokenizer, prefix=f"checkpoint-{step}")
        progress.log(step, {"eval": results})
        metric = results[self.args.task.primary_metric]
        if self.best["metric"] is None or metric > self.best["metric"]:
            self.best = {"step": step, "metric": metric}

    def _picture(self, progress: Progress, step: int) -> None:
        if not (self.args.pictures and self.plan.prunes):
            return
        name = f"pictures/overview-{step}.png"
        self.args.output.record(name)
        path, masked = Path(self.args.output_dir) / name, masked_layers(self.distiller.student)
        title = f"{self.args.task.name}, {self.args.pruning_method}, update {step}"
        sizes = {layer: module.weight.numel() for layer, module in masked.items()}
        visualizing_image.save_overview(path, densities(self.distiller.student), title, sizes)
        # The parts of a figure refer to each other; left to the collector's own pace, dozens would wait in memory.
        gc.collect()
        progress.picture(step, path)

    def _is_due(self, every: int, step: int) -> bool:
        return step % every == 0 or step == self.plan.total_updates


def evaluate(args: argparse.Namespace, model: nn.Module, tokenizer: Any, prefix: str = "") -> dict[str, float]:
    """Metrics of the model on the task's dev data (`mnli`: matched and mismatched), at the threshold the model has.

    Writes `eval_results.txt` and `eval_results.json` into the output folder, for `mnli` mismatched into its folder
    `MM`; with a prefix, into `evaluations/<prefix>` there. A finished training keeps its results: see
    `place_of_results`.
    """
    results: dict[str, float] = {}
    for task in evaluation_tasks(args.task):
        dataset = load_and_cache_examples(args, task.name, tokenizer, evaluate=True)
        logits = _logits(args, model, dataset, prefix or "Evaluating").numpy()
        predictions = predictions_from_logits(task, logits)
        found = compute_metrics(task, predictions, dataset.labels)
        entropy = prediction_entropy(logits)
        found |= {} if entropy is None else {"entropy": entropy}
        if one_class(task, dataset) is None:
            warn_of_collapse(args, collapsed_to_one_class(predictions, task.num_labels))
        _write_results(args, found, prefix, mismatched=task.name != args.task.name)
        results |= {key: value for key, value in found.items() if key not in results}
    return results


def _logits(args: argparse.Namespace, model: nn.Module, dataset: FeatureDataset, description: str) -> Tensor:
    precision = Precision(args.environment.device, args.fp16, args.bf16)
    return predict_logits(model, dataset, args.per_gpu_eval_batch_size, args.environment, precision, description)


def _write_results(args: argparse.Namespace, results: dict[str, float], prefix: str, mismatched: bool) -> None:
    if args.output is None:
        return
    named = {} if args.task.positive_label is None else {"positive_label": args.task.positive_name}
    folder = Path("evaluations", prefix) if prefix else place_of_results(args)
    folder = folder / "MM" if mismatched else folder
    args.output.write_text(
        str(folder / "eval_results.txt"), "".join(f"{k} = {v}\n" for k, v in (results | named).items())
    )
    args.output.write_json(str(folder / "eval_results.json"), results | named)


def _evaluate_all_checkpoints(args: argparse.Namespace, model: nn.Module, tokenizer: Any) -> None:
    """Evaluate every checkpoint of the output folder, in numeric order, into `eval_all_checkpoints.json`."""
    rows = []
    for checkpoint in checkpoints_in(args.output_dir):
        try:
            verify_folder(checkpoint)
        except DamagedError as error:
            logger.warning("--eval_all_checkpoints: %s is damaged and left out: %s", checkpoint.name, error)
            continue
        saved = type(model).from_pretrained(checkpoint).to(args.environment.device)
        results = evaluate(args, saved, tokenizer, prefix=checkpoint.name)
        rows.append({"step": int(checkpoint.name.split("-")[1]), **results})
        logger.info("%s: %s", checkpoint.name, ", ".join(f"{k} {v:.4f}" for k, v in results.items()))
    if not rows:
        logger.warning("--eval_all_checkpoints: there is no checkpoint in %s", args.output_dir)
    if args.output is not None:
        args.output.write_json("eval_all_checkpoints.json", rows)


def _predict(args: argparse.Namespace, model: nn.Module, tokenizer: Any) -> None:
    """Write the GLUE server's prediction file of the task's test data."""
    for task in evaluation_tasks(args.task):
        dataset = load_and_cache_examples(args, task.name, tokenizer, predict=True)
        logits = _logits(args, model, dataset, "Predicting").numpy()
        predictions = predictions_from_logits(task, logits)
        if args.output is not None:
            args.output.record(task.prediction_file)
            written = write_predictions(args.output_dir, task, predictions, dataset.indices, logits)
            logger.info("predictions: %s", written)


def _hand_over(args: argparse.Namespace, model: nn.Module, results: dict[str, float], seconds: float) -> None:
    """Pictures, model card and the final table."""
    history = read_log(Path(args.output_dir) / LOG_FILE)
    masks = {name: mask.cpu().numpy() for name, mask in masks_of(model.eval()).items()}
    if args.pictures and masks:
        folder, title = Path(args.output_dir) / "pictures", f"{args.task.name}, {model.config.pruning_method}"
        saved = visualizing_image.save_all(folder, masks, history, model.config.num_attention_heads, title)
        args.output.adopt(*(str(picture.relative_to(args.output_dir)) for picture in saved))
        add_pictures(args.output, history[-1]["step"] if history else 0, saved)
    if args.do_train:
        args.output.write_text("README.md", model_card(args, model, results))
        args.output.write_json("summary.json", summary(args, model, results, history, seconds))
    print(final_table(args, model, results, seconds))
    if args.push_to_hub:
        with user_mistakes():
            push_to_hub(args)


if __name__ == "__main__":
    main()
