"""Fine-tune an encoder such as BERT on GLUE, or on your own sentences, while pruning it.

python masked_run_glue.py --data_dir glue/MRPC --task_name mrpc
torchrun --nproc_per_node=8 masked_run_glue.py --data_dir glue/MRPC --task_name mrpc
"""

from __future__ import annotations

import gc
import logging
import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

READS_FLAGS_FIRST = True  # `import emmental` reads this and does not load PyTorch before the flags are read

from emmental import is_program
from emmental.runs.threads import bound_spinning
from emmental.training.arguments import parse_arguments

if is_program(__name__):
    bound_spinning()
    parse_arguments()  # --help and mistakes in flags are answered before PyTorch is loaded, which takes seconds

from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from distiller import TaskDistiller
from emmental.atomic import DamagedError, verify_folder
from emmental.command_line import user_mistakes
from emmental.data import FeatureDataset, LengthGroupedBatches, batch_loader, load_features
from emmental.data.description import cautions, description, one_class
from emmental.errors import UserError
from emmental.export.bertarize import bertarize
from emmental.inference.engines import why_not_timed
from emmental.optional import is_there
from emmental.patching import drop_masks, masked_layers
from emmental.pretrained import from_pretrained, weights_fingerprint
from emmental.pruning import densities, hold_masks, masks_of, regularization, remaining_weights, schedule_threshold
from emmental.reporting.before_after import Made, candidate, floor_of, save_ladder, timed_in
from emmental.reporting.summary import (
    checkpoints_table,
    environment_line,
    final_table,
    made_by,
    model_card,
    pruning_so_far,
    push_to_hub,
    summary,
    warn_of_collapse,
    write_results,
)
from emmental.runs.checkpoints import checkpoints_in
from emmental.runs.evaluation import metric_of_new_rows, predict_logits
from emmental.runs.loop import Intervals, RunLoop
from emmental.runs.output_folder import OutputFolder
from emmental.runs.precision import Precision
from emmental.runs.progress import LOG_FILE, add_pictures, read_log
from emmental.runs.resuming import open_output
from emmental.runs.run import TRAINER, Run, set_up
from emmental.runs.state import seed_generators
from emmental.tasks import (
    Task,
    collapsed_to_one_class,
    compute_metrics,
    evaluation_tasks,
    prediction_entropy,
    predictions_from_logits,
    resolve_task,
    write_predictions,
)
from emmental.teaching.teachers import check_hidden_states, load_teacher, teaching
from emmental.training.budgets import budget_of
from emmental.training.forecast import forecast, tell_what_follows
from emmental.training.models import in_dtype, load_model, load_tokenizer, model_to_evaluate
from emmental.training.phases import (
    dense_phase,
    in_phases,
    keep_folders,
    lock_whole,
    needs_dense_phase,
    opened,
    phase,
    plan_of_run,
    pruning_phase,
    settle_rate,
)
from emmental.training.plan import Plan, log_interval, plan_updates, trains
from emmental.training.recipe import STRUCTURED, cuts_weights
from emmental.training.structured import check_memory, cut, cut_weights
from emmental.training.tasks import find_task
from emmental.training.unlabelled import with_unlabelled

__all__ = ["evaluate", "load_and_cache_examples", "main", "regularization", "schedule_threshold", "set_seed", "train"]

logger = logging.getLogger("masked_run_glue")


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Run the trainer with the flags of `argv` (default: the command line's) and return the evaluation's results."""
    flags = parse_arguments(argv)
    remedies = "a lower --learning_rate or --mask_scores_learning_rate, or --bf16 instead of --fp16"
    with user_mistakes(), set_up(flags, TRAINER, flags.no_cuda, remedies) as run:
        started = time.monotonic()
        logger.info("%s", environment_line(run))
        run.task = prepare_task(run)
        tokenizer = load_tokenizer(run)
        train_dataset, more, plan = load_data(run, tokenizer)
        models = load_models(run, tokenizer, train_dataset)
        for line in plan:
            logger.info(line)
        if run.dry_run:
            return {}
        made = train_models(run, models, tokenizer, more)
        results = evaluate(run, made.model, tokenizer) if run.do_eval else {}
        if run.eval_all_checkpoints:
            evaluate_all_checkpoints(run, tokenizer)
        if run.do_predict:
            predict(run, made.model, tokenizer)
        if run.output is not None:
            save(run, made, results, time.monotonic() - started)
        return results


def command() -> None:
    """The console command: `main` without its results, which would become the exit status."""
    main()


def prepare_task(run: Run) -> Task:
    """The task of the flags. Without training, `--model_name_or_path` becomes the model to evaluate."""
    if not run.do_train:
        run.model_name_or_path = model_to_evaluate(run)
    task = find_task(run)
    if run.do_train and task.train is None:
        raise UserError(f"--task_name {task.name} has no training data; use --do_predict alone")
    return task


def load_data(run: Run, tokenizer: Any) -> tuple[FeatureDataset | None, FeatureDataset | None, list[str]]:
    """Training data, these with `--unlabeled_file`, and the plan for them. Raises if the plan cannot work."""
    for task in evaluation_tasks(run.task):
        if run.do_eval or run.evaluate_during_training or run.eval_all_checkpoints:
            load_and_cache_examples(run, task.name, tokenizer, evaluate=True)
        if run.do_predict:
            load_and_cache_examples(run, task.name, tokenizer, predict=True)
    train_dataset = load_and_cache_examples(run, run.task.name, tokenizer) if run.do_train else None
    opened = {split: rows for (name, split), rows in run.datasets.items() if name == run.task.name}
    for name, split in run.datasets:
        if split == "dev" and train_dataset is not None:
            run.datasets[name, split].mark_known_rows(train_dataset)
    for line in description(run.task, opened, run.max_seq_length):
        logger.info(line)
    for line in cautions(run.task, opened):
        logger.warning(line)
    if train_dataset is None:
        return None, None, []
    if run.speedup is not None and (reason := why_not_timed(run.speedup_engine)):
        raise UserError(f"--speedup_engine {run.speedup_engine}: {reason}")
    more = with_unlabelled(run, train_dataset, tokenizer, _cache_folder(run))
    run.contents["data"] = more.fingerprint
    if run.load_best_model_at_end:
        run.contents["dev_data"] = run.datasets[run.task.name, "dev"].fingerprint
    return train_dataset, more, [*plan_of_run(run, len(train_dataset)), *forecast(run, len(train_dataset))]


class Models(NamedTuple):
    """What a run starts from: the first phase and its model, the teacher, and whether to train dense first."""

    first: Run
    student: nn.Module
    teacher: nn.Module | None
    dense_first: bool


def load_models(run: Run, tokenizer: Any, dataset: FeatureDataset | None) -> Models:
    """Load the model of the first phase, and the teacher. Checks them before training."""
    set_seed(run)
    phased = run.do_train and in_phases(run)
    first = dense_phase(run, len(dataset)) if phased else run
    model, teacher = load_model(first, run.task, tokenizer).to(run.processes.device), None
    model = bertarize(model) if phased and masked_layers(model) else model
    if run.do_train and run.teacher_name_or_path is not None:
        teacher = load_teacher(run, tokenizer, run.task)
        check_hidden_states(run, teacher, model, dataset)
    if phased and cuts_weights(run.flags):
        check_memory(run, model)
    first.contents = dict(run.contents)
    return Models(first, model, teacher, phased and needs_dense_phase(run, model, dataset))


def train_models(run: Run, models: Models, tokenizer: Any, dataset: FeatureDataset | None) -> Made:
    """Train in the phases of the flags. Without training, the loaded model is the finished one."""
    floor = floor_of(run)
    if not run.do_train:
        made = Made(models.student)
        if run.processes.is_main:
            run.output = OutputFolder(run.folder)
    elif in_phases(run):
        made = _train_in_phases(run, models, tokenizer, dataset)
    else:
        made = _train_once(run, models, tokenizer, dataset)
    made.floor = floor
    return made


def _train_once(run: Run, models: Models, tokenizer: Any, dataset: FeatureDataset) -> Made:
    """One training, dense or pruning, of the model that the flags name."""
    open_output(run)
    _learn(run, dataset, models.student, tokenizer, models.teacher)
    save_model(run, models.student, tokenizer)
    return Made(models.student)


def _train_in_phases(run: Run, models: Models, tokenizer: Any, more: FeatureDataset) -> Made:
    """Train dense first, unless the model is fine-tuned already. Then for each share: prune, train, save."""
    dense_run, dense, teacher, from_dense = models
    parts = [pruning_phase(run, share, folder) for share, folder in keep_folders(run)]
    start = run.model_name_or_path
    lock_whole(run)
    if run.speedup is not None:  # fails before training if the speed-up is out of reach
        budget_of(run, dense, 1.0, dense, timed_in(run.speedup_engine))
    tell_what_follows(run, dense_run if from_dense else None, parts, more)
    made = Made(dense)
    with opened(dense_run, run) if from_dense else nullcontext():
        if from_dense:
            _learn(dense_run, run.datasets[run.task.name, "train"], dense, tokenizer, teacher)
            start = save_model(dense_run, dense, tokenizer)
        run.record()
        made.add(candidate("dense", dense, Path(start), _metric_of(dense_run, dense, tokenizer)), dense)
    for part, (share, folder) in zip(parts, keep_folders(run), strict=True):
        part.contents["teacher_weights"] = weights_fingerprint(teacher or dense)
        with opened(part, run):
            if run.granularity == STRUCTURED:
                budget = budget_of(part, made.model, share, dense, timed_in(run.speedup_engine))
                model = _recover(part, cut(part, made.model, more, *budget), more, tokenizer, teacher or dense)
            else:
                fresh, cuts = run.new_classifier and not from_dense, cuts_weights(run.flags)
                source = str(cut_weights(part, dense, more, share)) if cuts else start
                loaded = phase(part, model_name_or_path=source, new_classifier=fresh and not cuts)
                model = _prune_weights(part, loaded, more, tokenizer, teacher or dense)
            save_model(part, model, tokenizer)
            name = f"{share:.1%} kept" if run.speedup is None else f"{run.speedup:g} times as fast"
            made.add(candidate(name, model, folder, _metric_of(part, model, tokenizer)), model)
    run.learning_rate = parts[-1].learning_rate  # for the model card
    if len(parts) > 1:
        save_model(run, made.model, tokenizer)
    return made


def save_model(run: Run, model: nn.Module, tokenizer: Any) -> str:
    """Save a finished model, with `--save_dtype`, into the run's folder. Returns the folder."""
    if run.output is not None:
        run.output.save_model(in_dtype(model, run.save_dtype), tokenizer)
    return str(run.folder)


def _metric_of(run: Run, model: nn.Module, tokenizer: Any) -> float | None:
    """The task's main metric on the dev data; None if nothing is evaluated."""
    return evaluate(run, model, tokenizer)[run.task.primary_metric] if run.do_eval else None


def _recover(run: Run, small: nn.Module, dataset: FeatureDataset, tokenizer: Any, teacher: nn.Module) -> nn.Module:
    """Train the model that a cut has left. Returns it in evaluation mode."""
    if trains(run):
        settle_rate(run)
        _learn(run, dataset, small, tokenizer, teacher)
    return small.eval()


def _prune_weights(run: Run, start: Run, dataset: FeatureDataset, tokenizer: Any, teacher: nn.Module) -> nn.Module:
    """Prune single weights of the model that `start` names. Returns it in plain form, with exact zeros."""
    set_seed(run)  # a resumed run has drawn other random numbers before
    masked = load_model(start, run.task, tokenizer).to(run.processes.device)
    if cuts_weights(run.flags):
        hold_masks(masked)
    if trains(run):
        _learn(run, dataset, masked, tokenizer, teacher)
    return bertarize(masked)


def _learn(run: Run, dataset: FeatureDataset, model: nn.Module, tokenizer: Any, teacher: nn.Module | None) -> None:
    """Train `model`, always from the same random state, and leave it in evaluation mode."""
    set_seed(run)
    steps, mean_loss = train(run, dataset, model, tokenizer, teacher)
    logger.info("trained: %d updates, mean loss %.4f", steps, mean_loss)
    model.eval()


def set_seed(args: Run) -> None:
    """Seed Python, NumPy and PyTorch with `args.seed`."""
    seed_generators(args.seed)


def load_and_cache_examples(
    args: Run, task: str, tokenizer: Any, evaluate: bool = False, predict: bool = False
) -> FeatureDataset:
    """Tokenised rows of a task: training, with `evaluate` dev, with `predict` test. Rank 0 saves the cache.

    A run opens each data set only once.
    """
    spec = next((each for each in evaluation_tasks(args.task) if each.name == task), None) or resolve_task(task)
    split = "test" if predict else "dev" if evaluate else "train"
    if (task, split) not in args.datasets:
        with args.processes.main_first():
            args.datasets[task, split] = load_features(
                spec,
                args.data_dir,
                split,
                tokenizer,
                args.max_seq_length,
                _cache_folder(args),
                overwrite_cache=args.overwrite_cache and args.processes.is_main,
                show_progress=args.processes.is_main,
            )
    return args.datasets[task, split]


def _cache_folder(args: Run) -> Path:
    if args.feature_cache_dir:
        return Path(args.feature_cache_dir)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emmental"


def train(
    args: Run, train_dataset: FeatureDataset, model: nn.Module, tokenizer: Any, teacher: nn.Module | None = None
) -> tuple[int, float]:
    """Fine-prune `model` in place, starting from the newest good checkpoint of the output folder if there is one.

    Returns:
        (number of updates made in all, mean total loss over them).

    Raises:
        NonFiniteError: a loss or gradient became NaN or infinite; that update is not saved.
        StoppedBySignal: SIGTERM or Ctrl-C came; the state is saved.
    """
    plan = plan_updates(args, len(train_dataset), args.processes.world_size)
    world, size = args.processes, args.per_gpu_train_batch_size
    batches = LengthGroupedBatches(train_dataset.lengths, size, world.rank, world.world_size, seed=args.seed)
    rows = batches.rows_of(plan.total_updates * plan.accumulation)
    taught = teaching(args, teacher, model, train_dataset, _cache_folder(args), rows)
    distiller = TaskDistiller(args, model, plan, *taught)
    train_dataset.pad_to_multiple_of = distiller.precision.pad_to_multiple_of
    loader = batch_loader(train_dataset, batches, args.num_workers, pin_memory=world.device.type == "cuda")
    intervals = Intervals(log_interval(args, plan.total_updates), args.save_steps or plan.updates_per_epoch)
    loop = RunLoop(args, distiller, batches, plan.total_updates, intervals, tokenizer)
    loop.carried["high_churn"] = 0
    loop.resume()
    model.train()
    with loop:
        for micro_batches in loop.updates(loader):
            threshold, regu_lambda = plan.at(distiller.global_step + 1)
            for batch in micro_batches:
                distiller.step(batch, threshold, regu_lambda)
                loop.count()
            if loop.log_is_due:
                loop.log(pruning_so_far(loop, plan))
            if loop.save_is_scheduled and args.evaluate_during_training:
                loop.require_finite()
                results = evaluate(args, model, tokenizer, prefix=f"checkpoint-{distiller.global_step}")
                may_be_best = not args.load_best_model_at_end or plan.is_final(distiller.global_step)
                loop.log_results(results, results[args.task.primary_metric], may_be_best)
            if loop.save_is_due:
                # Picture first: a run killed between the two would resume from the checkpoint and never draw it.
                save_picture(loop, plan)
                loop.save()
    if args.load_best_model_at_end:
        loop.load_best()
    drop_masks(model)
    return distiller.global_step, loop.averages.mean_total()


def save_picture(loop: RunLoop, plan: Plan) -> None:
    """Draw what remains of each layer, as `pictures/overview-<updates>.png`."""
    run, student, step = loop.run, loop.learner.student, loop.learner.global_step
    if run.output is None or not (run.pictures and plan.prunes and is_there("pictures")):
        return
    import visualizing_image

    name = f"pictures/overview-{step}.png"
    run.output.record(name)
    sizes = {layer: module.weight.numel() for layer, module in masked_layers(student).items()}
    title = f"{run.task.name}, {run.pruning_method}, update {step}"
    visualizing_image.save_overview(run.folder / name, densities(student), title, sizes)
    # The parts of a figure refer to each other: without this call, dozens of figures stay in memory.
    gc.collect()
    loop.progress.picture(step, run.folder / name)


def evaluate(args: Run, model: nn.Module, tokenizer: Any, prefix: str = "") -> dict[str, float]:
    """Metrics of the model on the task's dev data (`mnli`: matched and mismatched), at the model's threshold.

    Writes `eval_results.txt` and `eval_results.json` into the output folder; with a prefix, into its folder
    `evaluations/<prefix>`. The results of `mnli` mismatched go into a folder `MM` there. The results of a finished
    training are kept: see `place_of_results`.
    """
    results: dict[str, float] = {}
    for task in evaluation_tasks(args.task):
        dataset = load_and_cache_examples(args, task.name, tokenizer, evaluate=True)
        logits = _logits(args, model, dataset, prefix or "Evaluating").numpy()
        predictions = predictions_from_logits(task, logits)
        found = compute_metrics(task, predictions, dataset.labels)
        entropy = prediction_entropy(logits)
        found |= {} if entropy is None else {"entropy": entropy}
        found |= metric_of_new_rows(task, predictions, dataset)
        if one_class(task, dataset) is None:
            warn_of_collapse(args, collapsed_to_one_class(predictions, task.num_labels), prefix, model)
        write_results(args, found, prefix, mismatched=task.name != args.task.name)
        results |= {key: value for key, value in found.items() if key not in results}
    return results


def _logits(run: Run, model: nn.Module, dataset: FeatureDataset, description: str) -> Tensor:
    bf16 = run.bf16 and "bf16" in run.explicit  # the precision that the recipe trains in must not change results
    precision = Precision(run.processes.device, run.fp16, bf16)
    return predict_logits(model, dataset, run.per_gpu_eval_batch_size, run.processes, precision, description)


def evaluate_all_checkpoints(run: Run, tokenizer: Any) -> None:
    """Evaluate every checkpoint of the output folder, in numeric order, into `eval_all_checkpoints.json`."""
    rows = []
    for checkpoint in checkpoints_in(run.output_dir):
        try:
            verify_folder(checkpoint)
        except DamagedError as error:
            logger.warning("--eval_all_checkpoints: %s is damaged and skipped: %s", checkpoint.name, error)
            continue
        saved = from_pretrained(AutoModelForSequenceClassification, str(checkpoint)).to(run.processes.device)
        results = evaluate(run, saved, tokenizer, prefix=checkpoint.name)
        rows.append({"step": int(checkpoint.name.split("-")[1]), "remaining": remaining_weights(saved), **results})
    if not rows:
        logger.warning("--eval_all_checkpoints: there is no checkpoint in %s", run.output_dir)
    if run.output is not None:
        run.output.write_json("eval_all_checkpoints.json", rows)
        print("\n".join(checkpoints_table(rows)))


def predict(run: Run, model: nn.Module, tokenizer: Any) -> None:
    """Write the GLUE server's prediction file of the task's test data."""
    for task in evaluation_tasks(run.task):
        dataset = load_and_cache_examples(run, task.name, tokenizer, predict=True)
        logits = _logits(run, model, dataset, "Predicting").numpy()
        predictions = predictions_from_logits(task, logits)
        if run.output is not None:
            run.output.record(task.prediction_file)
            written = write_predictions(run.output_dir, task, predictions, dataset.indices, logits)
            logger.info("predictions: %s", written)


def save(run: Run, made: Made, results: dict[str, float], seconds: float) -> None:
    """Save the pictures and the model card, and print the final table. The models have been saved by `save_model`."""
    history = read_log(run.folder / LOG_FILE)
    if run.pictures and is_there("pictures") and (saved := save_pictures(run, made, history)):
        run.output.adopt(*(str(picture.relative_to(run.output_dir)) for picture in saved))
        add_pictures(run.output, history[-1]["step"] if history else 0, saved)
    if run.do_train:
        run.output.write_text("README.md", model_card(run, made, results))
        run.output.write_json("summary.json", summary(run, made, results, history, seconds))
    print(final_table(run, made, results, seconds))
    if run.push_to_hub:
        push_to_hub(run)


def save_pictures(run: Run, made: Made, history: list[dict[str, Any]]) -> list[Path]:
    """The pictures of a finished run; a dense one has none. Several shares also make a picture that compares them.

    The picture of a mask is a `SingleImageViz`: `SingleImageViz.save` writes what its `_get_buffer` draws.
    """
    phased = len(made.models) > 1
    found = masks_of(made.model.eval(), zeros=phased)
    if not (found or phased):
        return []
    from visualizing_image import pictures_of, save_structure

    folder, title, saved = run.folder / "pictures", f"{run.task.name}, {made_by(run, made)}", []
    if phased and run.granularity == STRUCTURED:
        run.output.record("pictures/structure.png")
        saved.append(save_structure(folder, *made.sizes, title))
    else:
        masks = {name: mask.cpu().numpy() for name, mask in found.items()}
        for name, picture in pictures_of(masks, history, made.model.config.num_attention_heads, title):
            run.output.record(f"pictures/{name}")  # first: what a kill leaves half written is removed by the next run
            saved.append(picture.save(folder / name))
    return [*saved, *save_ladder(made, run.task.primary_metric, folder, title)]


if __name__ == "__main__":
    main()
