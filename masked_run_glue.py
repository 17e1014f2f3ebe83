"""Fine-tune an encoder such as BERT on GLUE, or on your own sentences, while pruning it.

python masked_run_glue.py --data_dir glue/MRPC --task_name mrpc
torchrun --nproc_per_node=8 masked_run_glue.py --data_dir glue/MRPC --task_name mrpc
"""

from __future__ import annotations

import gc
import itertools
import logging
import time
from collections.abc import Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

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
from emmental.cascade.of_run import FOLDER as CASCADE_FOLDER
from emmental.cascade.of_run import cascade_of_run, check_cascade, warn_of_unknown_training
from emmental.cascade.report import result_lines
from emmental.command_line import user_mistakes
from emmental.data import FeatureDataset, LengthGroupedBatches, batch_loader, load_features
from emmental.data.cache_folder import cache_folder
from emmental.data.description import cautions, description, same_label, unknown_in
from emmental.errors import UserError
from emmental.export.bertarize import bertarize
from emmental.methods import STRUCTURED
from emmental.modules.label_shares import start_at_shares
from emmental.modules.score_head import restore_scores, standardise_scores
from emmental.optional import is_there
from emmental.patching import drop_masks, masked_layers
from emmental.pretrained import from_pretrained
from emmental.pruning import densities, masks_of, regularization, remaining_weights, schedule_threshold
from emmental.reporting.before_after import TrainedModels, candidate, floor_of, save_ladder
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
from emmental.runs.precision import precision_of_answers
from emmental.runs.progress import LOG_FILE, add_pictures, read_log
from emmental.runs.run import TRAINER_FLAGS, Run, set_up
from emmental.runs.state import seed_generators
from emmental.tasks import (
    CUSTOM,
    Task,
    compute_metrics,
    evaluation_tasks,
    predictions_from_logits,
    resolve_task,
    write_predictions,
)
from emmental.teaching.teachers import load_teacher, teacher_layer_map, teaching
from emmental.training.facts import DataFacts, data_facts
from emmental.training.folders import lock_run, opened, refuse_other_runs, runs_by_folder
from emmental.training.forecast import disk_forecast
from emmental.training.models import in_dtype, load_model, load_tokenizer, model_to_evaluate
from emmental.training.phases import DenseTraining, PhaseContext
from emmental.training.plan import Plan, plan_updates
from emmental.training.route import plan_lines, route
from emmental.training.tasks import find_task
from emmental.training.unlabelled import joined_with_unlabelled, with_unlabelled

__all__ = ["evaluate", "load_and_cache_examples", "main", "regularization", "schedule_threshold", "set_seed", "train"]

logger = logging.getLogger("masked_run_glue")


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Run the trainer with the flags of `argv` (default: the command line's) and return the evaluation's results."""
    flags = parse_arguments(argv)
    remedies = "a lower --learning_rate or --mask_scores_learning_rate, or --bf16 instead of --fp16"
    with user_mistakes(), set_up(flags, TRAINER_FLAGS, flags.no_cuda, remedies) as run:
        started = time.monotonic()
        logger.info("%s", environment_line(run.processes))
        run.task = prepare_task(run)
        tokenizer = load_tokenizer(run)
        rows = load_data(run, tokenizer)
        facts = plan_route(run, rows, tokenizer) if run.do_train else None
        model, teacher = load_models(run, tokenizer)
        if facts is not None:
            tell_plan(run, facts)
        if run.dry_run:
            return {}
        made = train_models(run, model, teacher, tokenizer, rows, facts)
        results = evaluate(run, made.model, made.tokenizer) if run.do_eval else {}
        if run.eval_all_checkpoints:
            evaluate_all_checkpoints(run, made.tokenizer)
        if run.do_predict:
            predict(run, made.model, made.tokenizer)
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


def load_data(run: Run, tokenizer: Any) -> FeatureDataset | None:
    """Open the data of the flags. Returns the training rows and those of `--unlabeled_file`; None without training."""
    for task in evaluation_tasks(run.task):
        if run.do_eval or run.evaluate_during_training or run.eval_all_checkpoints:
            load_and_cache_examples(run, task.name, tokenizer, evaluate=True)
        if run.do_predict:
            load_and_cache_examples(run, task.name, tokenizer, predict=True)
    labelled = load_and_cache_examples(run, run.task.name, tokenizer) if run.do_train else None
    splits = {split: rows for (name, split), rows in run.datasets.items() if name == run.task.name}
    if labelled is not None:
        _mark_known_rows(run, labelled)
    for line in description(run.task, splits, run.max_seq_length):
        logger.info(line)
    for line in cautions(run.task, splits):
        logger.warning(line)
    for line in unknown_in(splits, run.accept_unknown_tokens):
        logger.warning(line)
    if labelled is None:
        return None
    rows = with_unlabelled(run, labelled, tokenizer, _cache_folder(run))
    run.contents["data"] = rows.fingerprint
    if run.load_best_model_at_end:
        run.contents["dev_data"] = run.datasets[run.task.name, "dev"].fingerprint
    return rows


def tokenise(run: Run, tokenizer: Any) -> FeatureDataset:
    """Open the data of the run again with another tokenizer. Returns the training rows, as `load_data` does."""
    opened = [*run.datasets]
    run.datasets.clear()
    for name, split in opened:
        load_and_cache_examples(run, name, tokenizer, evaluate=split == "dev", predict=split == "test")
    labelled = run.datasets[run.task.name, "train"]
    _mark_known_rows(run, labelled)
    return joined_with_unlabelled(run, labelled, tokenizer, _cache_folder(run))


def _mark_known_rows(run: Run, labelled: FeatureDataset) -> None:
    """Let the dev data know which of its rows are training rows too."""
    for (_, split), rows in run.datasets.items():
        if split == "dev":
            rows.mark_known_rows(labelled)


def plan_route(run: Run, rows: FeatureDataset, tokenizer: Any) -> DataFacts:
    """Decide the phases of the run. The settings of the last one become flags. Raises if they cannot work."""
    facts = data_facts(run, run.datasets[run.task.name, "train"], rows, tokenizer)
    run.phases = route(run.flags, facts)
    check_cascade(run)
    vars(run.flags).update(run.phases[-1].settings.as_flags(), model_type=run.model_type)
    refuse_other_runs([phase.part_of(run) for phase in run.phases if phase.trains])
    return facts


def load_models(run: Run, tokenizer: Any) -> tuple[nn.Module, nn.Module | None]:
    """Load the model to start from, and the teacher if there is one.

    The dense training is removed from `run.phases` if the model is fine-tuned already.
    """
    set_seed(run)
    start = run.part(model_type=run.phases[0].type_to_load) if run.phases else run
    model = load_model(start, run.task, tokenizer).to(run.processes.device)
    if not run.phases:
        return model, None
    if masked_layers(model) and not start.model_type.startswith("masked_"):
        model = bertarize(model)
    teacher = None
    if run.teacher_name_or_path is not None:
        teacher = load_teacher(run, tokenizer, run.task)
        teacher_layer_map(run, teacher, model)  # fails before training if the layers do not fit
    if isinstance(run.phases[0], DenseTraining) and not run.phases[0].is_needed(run, model):
        del run.phases[0]
    return model, teacher


def tell_plan(run: Run, facts: DataFacts) -> None:
    """Say what the run will do, and what it needs."""
    for line in plan_lines(run.phases, run.flags, facts):
        logger.info(line)
    kept = None if run.save_total_limit is None else run.save_total_limit + bool(run.evaluate_during_training) + 1
    logger.info(disk_forecast(run.phases, facts, run.folder, run.save_steps, kept))
    warn_of_unknown_training(run)
    if warning := run.phases[-1].plan(facts).warning():
        logger.warning("%s", warning)


def train_models(
    run: Run,
    model: nn.Module,
    teacher: nn.Module | None,
    tokenizer: Any,
    rows: FeatureDataset | None,
    facts: DataFacts | None,
) -> TrainedModels:
    """Go through the phases of the run. Without training, the loaded model is the finished one."""
    made = TrainedModels(model, tokenizer, rows, floor=floor_of(run))
    if not run.phases:
        run.output = OutputFolder(run.folder) if run.processes.is_main else None
        return made
    lock_run(run)
    context = PhaseContext(
        run, tokenizer, rows, model, run.model_name_or_path, teacher, _train_from_seed, partial(tokenise, run)
    )
    parts = runs_by_folder(run, facts)
    run.phases[-1].prepare(run, model)
    compares = any(phase.follows_dense for phase in run.phases)
    if compares and run.phases[0].follows_dense:
        add_model(made, run, "dense", model, Path(run.model_name_or_path), tokenizer)
    for folder, phases in itertools.groupby(run.phases, key=attrgetter("folder")):
        with opened(parts[folder], context, phases := [*phases]) as part:
            for phase in phases:
                made.model = phase.run(made.model, part, context)
            source = save_model(part, made.model, context.tokenizer)
            if not phase.follows_dense:
                context.dense, context.source = made.model, source
            if compares:
                add_model(made, part, phase.name, made.model, folder, context.tokenizer)
    run.learning_rate = part.learning_rate  # for the model card
    if folder != run.folder:
        run.record()
        save_model(run, made.model, context.tokenizer)
    made.tokenizer, made.rows = context.tokenizer, context.rows
    return made


def add_model(made: TrainedModels, run: Run, name: str, model: nn.Module, folder: Path, tokenizer: Any) -> None:
    """Add a finished model to those that the table compares, with its main metric on the dev data."""
    metric = evaluate(run, model, tokenizer)[run.task.primary_metric] if run.do_eval else None
    made.add(candidate(name, model, folder, metric), model)


def save_model(run: Run, model: nn.Module, tokenizer: Any) -> str:
    """Save a finished model, with `--save_dtype`, into the run's folder. Returns the folder."""
    if run.output is not None:
        run.output.save_model(in_dtype(model, run.save_dtype), tokenizer)
    return str(run.folder)


def _train_from_seed(
    run: Run, dataset: FeatureDataset, model: nn.Module, tokenizer: Any, teacher: nn.Module | None
) -> None:
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
    return cache_folder(args.feature_cache_dir)


def train(
    args: Run, train_dataset: FeatureDataset, model: nn.Module, tokenizer: Any, teacher: nn.Module | None = None
) -> tuple[int, float]:
    """Train `model` in place, from the newest good checkpoint of the output folder if there is one.

    Returns:
        (number of updates made in all, mean total loss over them).

    Raises:
        NonFiniteError: a loss or gradient became NaN or infinite; that update is not saved.
        StoppedBySignal: a signal to stop came; the state is saved.
    """
    standardise_scores(model, train_dataset.labels)
    start_at_shares(model, train_dataset.labels)
    plan = plan_updates(args, len(train_dataset), args.processes.world_size)
    world, size = args.processes, args.per_gpu_train_batch_size
    batches = LengthGroupedBatches(train_dataset.lengths, size, world.rank, world.world_size, seed=args.seed)
    rows = batches.rows_of(plan.total_updates * plan.accumulation)
    taught = teaching(args, teacher, model, train_dataset, _cache_folder(args), rows)
    distiller = TaskDistiller(args, model, plan, *taught)
    train_dataset.pad_to_multiple_of = distiller.precision.pad_to_multiple_of
    loader = batch_loader(train_dataset, batches, args.num_workers, pin_memory=world.device.type == "cuda")
    intervals = Intervals(args.logging_steps, args.save_steps or plan.updates_per_epoch)
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
        distiller.keep_exact_masks()  # of the scores of that checkpoint
    drop_masks(model)
    restore_scores(model)
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
        entropy = task.kind.entropy(logits)
        found |= task.kind.more_metrics(task, predictions, dataset.labels) if task.name == CUSTOM else {}
        found |= {} if entropy is None else {"entropy": entropy}
        found |= metric_of_new_rows(task, predictions, dataset)
        if same_label(task, dataset) is None:
            only = task.kind.collapsed(task, predictions)
            warn_of_collapse(args, only, prefix, model, dataset.labels)
        write_results(args, found, prefix, mismatched=task.name != args.task.name)
        results |= {key: value for key, value in found.items() if key not in results}
    return results


def _logits(run: Run, model: nn.Module, dataset: FeatureDataset, description: str) -> Tensor:
    precision = precision_of_answers(run.processes.device, run.fp16, run.evaluates_in_bf16, run.task.is_regression)
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
    """Write the predictions for the task's test data: the GLUE server's file, or `predictions.tsv` for own files."""
    for task in evaluation_tasks(run.task):
        dataset = load_and_cache_examples(run, task.name, tokenizer, predict=True)
        logits = _logits(run, model, dataset, "Predicting").numpy()
        predictions = predictions_from_logits(task, logits)
        if run.output is not None:
            run.output.record(task.prediction_file)
            written = write_predictions(run.output_dir, task, predictions, dataset.indices, logits)
            logger.info("predictions: %s", written)


def save(run: Run, made: TrainedModels, results: dict[str, float], seconds: float) -> None:
    """Save pictures, cascade and model card, and print the final table. The models have been saved by `save_model`."""
    history = read_log(run.folder / LOG_FILE)
    if run.cascade and run.phases:
        made.cascade = cascade_of_run(run)
    if run.pictures and is_there("pictures") and (saved := save_pictures(run, made, history)):
        run.output.adopt(*(str(picture.relative_to(run.output_dir)) for picture in saved))
        add_pictures(run.output, history[-1]["step"] if history else 0, saved)
    if run.do_train:
        run.output.write_text("README.md", model_card(run, made, results))
        run.output.write_json("summary.json", summary(run, made, results, history, seconds))
    print(final_table(run, made, results, seconds))
    if made.cascade is not None:
        print("", *result_lines(made.cascade), run.folder / CASCADE_FOLDER, sep="\n")
    if run.push_to_hub:
        push_to_hub(run.output_dir, run.hub_model_id)


def save_pictures(run: Run, made: TrainedModels, history: list[dict[str, Any]]) -> list[Path]:
    """The pictures of a finished run; a dense one has none. Several shares also make a picture that compares them.

    The picture of a mask is a `SingleImageViz`: `SingleImageViz.save` writes what its `_get_buffer` draws.
    """
    phased = len(made.models) > 1
    found = masks_of(made.model.eval(), zeros=phased)
    if not (found or phased):
        return []
    from visualizing_image import pictures_of, save_structure

    folder, title, saved = run.folder / "pictures", f"{run.task.name}, {made_by(run.phases, made)}", []
    if phased and made_by(run.phases, made) == STRUCTURED:
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
