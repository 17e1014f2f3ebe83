"""The trainer's flags: names, defaults, groups, and the checks that need only the flags."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from emmental.architectures import ARCHITECTURES
from emmental.command_line import parse_flags
from emmental.errors import UserError
from emmental.flags import Flags, flag, switch
from emmental.methods import (
    MASK_INITS,
    METHODS,
    PRUNING_METHODS,
    RECOMMENDED,
    REGULARIZATIONS,
    STRUCTURED,
    UNSTRUCTURED,
    method_of,
)
from emmental.runs.arguments import common_problems, derive, distillation_flags, optimization_flags, run_flags
from emmental.training.reading_arguments import READING_FLAGS, reading_problems
from emmental.training.recipe import ALL_TOKENS, dense_model_teaches, fill_in_recipe, recipe_problems

MODEL_TYPES = (*(f"masked_{name}" for name in ARCHITECTURES), *ARCHITECTURES)
SAVE_DTYPES = ("float32", "float16", "bfloat16")
_RANKED = [METHODS[name] for name in PRUNING_METHODS if METHODS[name].accepts_global_topk]
_ALWAYS = ", ".join(method.name for method in _RANKED if method.always_global_topk)
_IF_ASKED = ", ".join(method.name for method in _RANKED if not method.always_global_topk)
FLAGS = {
    "task and data": (
        flag("data_dir", "folder of the GLUE task's files: .tsv, or as on the Hub", changes_result=False),
        flag("task_name", "cola, sst-2, mrpc, sts-b, qqp, mnli, mnli-mm, qnli, rte, wnli or ax"),
        flag(
            "train_file",
            "your own data: .csv, .tsv, .jsonl or .parquet with sentence1, [sentence2], label",
            changes_result=False,
        ),
        flag("validation_file", "like --train_file; default: a tenth of it", changes_result=False),
        flag("test_file", "for --do_predict; needs no labels", changes_result=False),
        flag(
            "unlabeled_file",
            "more text for the teacher to label: .txt (a text a line), .csv, .tsv, .jsonl or .parquet",
            several=True,
            changes_result=False,
        ),
        *READING_FLAGS,
        flag("label_names", "the classes in the order of the model's outputs", several=True),
        flag(
            "positive_label",
            "of two classes, the one for F1; default: the second",
            changes_result="load_best_model_at_end",
        ),
        flag("max_seq_length", "tokens of a text, at most", 128, at_least=3),
        flag("feature_cache_dir", "folder for tokenised data; default: ~/.cache/emmental", "", changes_result=False),
        switch(
            "accept_unknown_tokens",
            "continue even if the tokenizer knows less than half of the tokens",
            changes_result=False,
        ),
        switch("overwrite_cache", "tokenise again even if the cache is good", changes_result=False),
        flag("num_workers", "processes that load batches", 0, at_least=0, changes_result=False),
    ),
    "model": (
        flag(
            "model_type",
            "bert, roberta, ...: train without pruning; omit it to prune a model of any type",
            "masked_bert",
            accepts=MODEL_TYPES,
        ),
        flag("model_name_or_path", "folder or Hub name", "google-bert/bert-base-uncased"),
        flag("config_name", "configuration, if not the model's own", ""),
        flag("tokenizer_name", "tokenizer, if not the model's own", "", changes_result=False),
        flag("cache_dir", "folder for downloaded models", "", changes_result=False),
        switch("new_classifier", "start with a new classifier, even if the model has one"),
        switch("do_lower_case", "lower-case the input; default: as the tokenizer says", default=None),
    ),
    "what to do (none of --do_train, --do_eval, --do_predict: train and evaluate)": (
        switch("do_train", "train", default=None, changes_result=False),
        switch("do_eval", "evaluate the model", default=None, changes_result=False),
        switch("do_predict", "write the GLUE server's prediction files", changes_result=False),
        switch("evaluate_during_training", "evaluate at each checkpoint", changes_result=False),
        switch(
            "eval_all_checkpoints",
            "evaluate every checkpoint of the output folder, in numeric order; all are kept",
            changes_result=False,
        ),
        switch("dry_run", "check everything, show the plan, and stop", changes_result=False),
    ),
    "how much to prune": (
        flag(
            "recipe",
            "auto: values that fit your data; paper: those of the original scripts",
            "auto",
            accepts=("auto", "paper"),
            earlier="paper",
        ),
        flag(
            "granularity",
            "structured (heads, neurons) or unstructured",
            accepts=(STRUCTURED, UNSTRUCTURED, None),
            earlier=UNSTRUCTURED,
        ),
        flag(
            "keep",
            "share of the encoder that stays (0.25; single weights 0.15)",
            type=float,
            several=True,
        ),
        flag(
            "speedup",
            "instead of --keep: how many times as fast as dense, measured here",
            type=float,
            at_least=1,
        ),
        flag("vocabulary", "auto, or tokens that stay", ALL_TOKENS),
        flag("speedup_batch_size", "sentences at once when --speedup is measured", 1, at_least=1),
        flag("speedup_length", "tokens of each of these sentences", 128, at_least=1),
        flag(
            "speedup_engine",
            "engine in which --speedup is measured",
            "torch",
            accepts=("torch", "torch-bf16", "onnx", "onnx-int8", "openvino", "openvino-bf16", "openvino-int8"),
        ),
        switch(
            "dense_first",
            "fine-tune a dense model first, as the teacher; default: unless the model is fine-tuned already",
            default=None,
        ),
        switch("floor", "compare with a bag of words", default=True, changes_result=False),
        switch("engines", "try this machine's engines at the end, name the best", default=True, changes_result=False),
        switch("cascade", "end with a cascade of the run's models; holds training rows back to calibrate it"),
        flag(
            "changed",
            "share of a cascade's answers that may differ from dense",
            0.01,
            above_zero=True,
            changes_result=False,
        ),
    ),
    "pruning": (
        flag(
            "pruning_method",
            ", ".join(method.shown_name for method in METHODS.values()),
            "topK",
            accepts=tuple(METHODS),
            by_recipe=RECOMMENDED.name,
        ),
        flag("initial_threshold", "threshold at the start of the schedule", 1.0, by_recipe="1, or the share of a cut"),
        flag("final_threshold", "threshold at the end of the schedule", 0.7, by_recipe="--keep"),
        flag("initial_warmup", "length of the first phase, in multiples of --warmup_steps", 1, at_least=0),
        flag("final_warmup", "length of the last phase, in multiples of --warmup_steps", 2, at_least=0, by_recipe="3"),
        flag(
            "mask_init",
            f"start of the mask scores: {', '.join(MASK_INITS)}",
            "constant",
            accepts=MASK_INITS,
            by_recipe="magnitude",
        ),
        flag("mask_scale", "scale of that start", 0.0, by_recipe="1, l0 5"),
        flag("mask_scores_learning_rate", "learning rate of the scores", 1e-2, at_least=0, by_recipe="0.002, l0 0.01"),
        flag("regularization", "l1, l0 or none: penalty on the mask scores", accepts=(*REGULARIZATIONS, None)),
        flag("final_lambda", "weight of that penalty at the end", 0.0, at_least=0),
        switch("global_topk", f"one threshold for all matrices together ({_IF_ASKED}; {_ALWAYS} always)"),
        flag("global_topk_frequency_compute", "updates between two computations of that threshold", 25, at_least=1),
    ),
    "distillation": (
        flag("teacher_type", "bert, masked_bert, distilbert, ...; default: the teacher's own type"),
        flag("teacher_name_or_path", "a fine-tuned teacher: folder or Hub name"),
        flag("teacher_label_names", "the classes in the order of the teacher's outputs", several=True),
        *distillation_flags("weight of the task's loss", by_recipe="0.1"),
        flag("alpha_distil", "weight of the distillation loss", 0.5, at_least=0, by_recipe="0.9"),
        flag("alpha_hidden_cos", "weight of the hidden states' cosine distance", 0.0, at_least=0),
        flag("alpha_hidden_mse", "weight of the hidden states' squared difference", 0.0, at_least=0),
        flag(
            "teacher_layers",
            "for each layer of the student the teacher's, from 1; 0 for none (such as 2,4,6); default: spread evenly",
        ),
    ),
    "optimization": (
        flag("per_gpu_train_batch_size", "batch size of one process", 8, at_least=1, by_recipe="32 in all"),
        flag(
            "per_gpu_eval_batch_size", "batch size in evaluation", 8, at_least=1, changes_result=False, by_recipe="32"
        ),
        flag(
            "num_train_epochs",
            "may be fractional; 0: cut without training",
            3.0,
            at_least=0,
            by_recipe="600 updates",
        ),
        flag("warmup_steps", "length of the warm-up in updates; default: a tenth of all", type=int, at_least=0),
        *optimization_flags(
            accumulation=1,
            learning_rate=5e-5,
            epsilon=1e-8,
            max_grad_norm=1.0,
            by_recipe={"learning_rate": "1e-4, wide encoders less", "bf16": "where the hardware has it"},
        ),
        switch("torch_compile", "use torch.compile; two compilations at the start, same results to rounding"),
        switch("use_apex", "use the fused optimizer of NVIDIA apex, which must be installed"),
    ),
    "run, output and logging": (
        flag("output_dir", "default: outputs/<task_name>", changes_result=False),
        switch("overwrite_output_dir", "start afresh: remove what this program wrote", changes_result=False),
        flag(
            "logging_steps",
            "updates between two log entries; --recipe auto: about 40 entries a run",
            50,
            at_least=1,
            changes_result=False,
        ),
        flag(
            "save_steps",
            "updates between checkpoints; default: an epoch",
            type=int,
            at_least=1,
            changes_result="load_best_model_at_end",
        ),
        *run_flags(seed=42, kept=2, what_is_kept="keep this many newest checkpoints + the best"),
        switch(
            "load_best_model_at_end",
            "finish with the best checkpoint on the dev data, of those at the final budget",
        ),
        flag("save_dtype", "of the finished model: float32, float16, bfloat16", "float32", accepts=SAVE_DTYPES),
        switch("pictures", "draw pictures of the masks", default=True, changes_result=False),
        switch("push_to_hub", "upload the finished model to the Hugging Face Hub", changes_result=False),
        flag("hub_model_id", "name on the Hub; default: the output folder's name", changes_result=False),
        switch("no_cuda", "run on the CPU"),
    ),
}
"""Title of a group -> its flags."""
EVERYDAY = (
    "data_dir task_name train_file validation_file test_file max_seq_length model_name_or_path do_train "
    "do_eval do_predict dry_run recipe granularity keep speedup vocabulary pruning_method teacher_name_or_path "
    "per_gpu_train_batch_size learning_rate num_train_epochs output_dir overwrite_output_dir seed threads"
)
"""Flags that `--help` shows; `--help_all` shows all."""


def parse_arguments(argv: Sequence[str] | None = None) -> Flags:
    """Parse and check all flags together; a mistake ends the program with one line per mistake and status 2."""
    description = "Fine-tune an encoder such as BERT on GLUE, or on your own sentences, while pruning it."
    return parse_flags(description, FLAGS, argv, EVERYDAY, _normalise, find_problems)


def _normalise(args: Flags) -> None:
    if args.regularization in ("null", "none", "None", ""):
        args.regularization = None
    with suppress(UserError):  # find_problems names an unknown one
        args.pruning_method = method_of(args.pruning_method).name
    if args.do_train is None and args.do_eval is None:
        args.do_train = args.do_eval = not args.do_predict
    args.do_train, args.do_eval = bool(args.do_train), bool(args.do_eval)
    if args.eval_all_checkpoints and "save_total_limit" not in args.explicit:
        args.save_total_limit = None
    if args.load_best_model_at_end and args.do_train:
        args.evaluate_during_training = True
    if args.task_name is None and (args.train_file or args.validation_file or args.test_file):
        args.task_name = "custom"
    if args.output_dir is None and args.task_name:
        args.output_dir = str(Path("outputs") / args.task_name.lower())
    if args.teacher_layers and all(part.strip().isdecimal() for part in args.teacher_layers.split(",")):
        args.teacher_layers = [int(part) for part in args.teacher_layers.split(",")]
    derive(args)
    if args.pruning_method in METHODS:
        fill_in_recipe(args)
        _start_thresholds_of_scores(args)


def _start_thresholds_of_scores(args: Flags) -> None:
    """A method with thresholds of its own starts at the first of them, and ends at the last if none is given."""
    thresholds = method_of(args.pruning_method).default_thresholds
    if thresholds is None or args.global_topk or args.keep:
        return
    if "initial_threshold" not in args.explicit:
        args.initial_threshold = thresholds[0]
        if "final_threshold" not in args.explicit:
            args.final_threshold = thresholds[1]


def find_problems(args: Flags) -> list[str]:
    """Every mistake that can be found without opening a file: a line each, with the flag and what it accepts."""
    return [
        *_task_problems(args),
        *reading_problems(args),
        *common_problems(args),
        *_number_problems(args),
        *(recipe_problems(args) if args.pruning_method in METHODS else ()),
        *_pruning_problems(args),
        *_precision_problems(args),
        *_teacher_problems(args),
    ]


def _task_problems(args: Flags) -> list[str]:
    problems = []
    own_files = [flag for flag in ("train_file", "validation_file", "test_file") if getattr(args, flag)]
    if own_files and (args.data_dir or args.task_name not in (None, "custom")):
        problems.append(f"--{own_files[0]} cannot be used with --data_dir or --task_name; give either")
    elif own_files:
        wants_dev = args.do_eval and not args.train_file  # without it a part of --train_file is set aside
        needed = {"train_file": args.do_train, "validation_file": wants_dev, "test_file": args.do_predict}
        problems += [
            f"--{flag} is required with --{own_files[0]}: a .csv, .tsv, .jsonl or .parquet file"
            for flag, wanted in needed.items()
            if wanted and not getattr(args, flag)
        ]
    else:
        problems += [
            f"--{flag} is required (or --train_file and --validation_file with your own sentences)"
            for flag in ("data_dir", "task_name")
            if not getattr(args, flag)
        ]
    if args.push_to_hub:
        problem = _hub_problem(args.dry_run)
        problems += [problem] if problem else []
    if args.cascade and not (args.do_train and args.do_eval):
        problems.append("--cascade needs --do_train and --do_eval: its accuracy is that of the dev rows")
    if "changed" in args.explicit and not (args.cascade and args.changed < 1):
        problems.append("--changed accepts a share below 1, with --cascade")
    if args.evaluate_during_training and not args.do_train:
        problems.append("--evaluate_during_training needs --do_train")
    return problems


def _hub_problem(dry_run: bool) -> str | None:
    """Why `--push_to_hub` would fail after the training, in one line; None if no reason is known."""
    if dry_run:
        return "--push_to_hub contradicts --dry_run, which stops before training"
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        return "--push_to_hub needs the Hub, but the environment variable HF_HUB_OFFLINE forbids it; unset it"
    if get_token() is None:
        return "--push_to_hub needs an account on the Hub: log in with `hf auth login`, or set HF_TOKEN"
    return None


def _number_problems(args: Flags) -> list[str]:
    problems = []
    if not math.isfinite(args.mask_scale) or (args.mask_init == "uniform" and args.mask_scale < 0):
        accepted = "a number from 0 (scores in [-scale, scale])" if args.mask_init == "uniform" else "a number"
        problems.append(f"--mask_scale accepts {accepted}, not {args.mask_scale}")
    return problems


def _pruning_problems(args: Flags) -> list[str]:
    if not args.model_type.startswith("masked_") or args.pruning_method not in PRUNING_METHODS:
        return []
    problems = [] if args.granularity == STRUCTURED else _threshold_problems(args)
    method = method_of(args.pruning_method)
    if args.global_topk and "global_topk" in args.explicit and not method.accepts_global_topk:
        problems.append(
            f"--global_topk is defined for --pruning_method {_IF_ASKED}, {_ALWAYS}, not {method.name}; "
            "--keep sets the share that stays for every method"
        )
    if args.keep:
        return problems  # no penalty: `recipe_problems` refuses it
    if args.regularization and not method.regularizations:
        problems.append(f"--regularization needs mask scores, and --pruning_method {method.name} learns none")
    if args.final_lambda > 0 and not args.regularization:
        problems.append("--final_lambda weighs a penalty: give --regularization l1 or l0 too")
    if args.regularization in REGULARIZATIONS and args.final_lambda == 0:
        problems.append(f"--regularization {args.regularization} does nothing without --final_lambda above 0")
    return problems


def _threshold_problems(args: Flags) -> list[str]:
    method, start, end = method_of(args.pruning_method), args.initial_threshold, args.final_threshold
    as_fraction = method.by_share or args.global_topk
    problems = []
    for name in ("initial_threshold",) if args.keep else ("initial_threshold", "final_threshold"):
        value = getattr(args, name)
        if as_fraction and not 0 < value <= 1:
            problems.append(
                f"--{name} is the share of weights that stay, above 0 and up to 1 (15 % is 0.15), not {value}"
            )
        elif not as_fraction and (problem := method.threshold_problem(value)):
            problems.append(f"--{name} {problem}")
    if problems or not (method.has_threshold or as_fraction):
        return problems
    if as_fraction and start < end <= 1:
        problems.append(
            f"--initial_threshold {start} is below --{'keep' if args.keep else 'final_threshold'} {end}: "
            "weights would grow back; swap them"
        )
    if not as_fraction and start > end:
        problems.append(
            f"--initial_threshold {start} is above --final_threshold {end}: {method.name} prunes scores below the "
            "threshold, so it must rise (usual: --initial_threshold 0 --final_threshold 0.1)"
        )
    return problems


def _precision_problems(args: Flags) -> list[str]:
    problems = []
    if args.use_apex:
        problem = apex_problem(args.no_cuda)
        problems += [problem] if problem else []
    if args.torch_compile and not (os.environ.get("CXX") or any(map(shutil.which, ("g++", "clang++")))):
        problems.append("--torch_compile needs a C++ compiler, g++ or clang++, but none was found")
    return problems


def _is_classifier_of_transformers(model_type: str) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    return model_type in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES


def _teacher_problems(args: Flags) -> list[str]:
    problems = []
    if args.teacher_type not in (None, *MODEL_TYPES) and not _is_classifier_of_transformers(args.teacher_type):
        problems.append(
            f"--teacher_type accepts {', '.join(MODEL_TYPES)}, none, or another type that Transformers loads for "
            f"sequence classification (distilbert, roberta, electra, ...), not {args.teacher_type!r}"
        )
    elif args.teacher_type is not None and args.teacher_name_or_path is None:
        problems.append("--teacher_type does nothing without a teacher: give --teacher_name_or_path")
    wants_hidden = args.alpha_hidden_cos > 0 or args.alpha_hidden_mse > 0
    if args.teacher_name_or_path is not None and args.alpha_ce == args.alpha_distil == 0 and not wants_hidden:
        problems.append("--alpha_ce 0 and --alpha_distil 0 leave nothing to learn from; give one above 0")
    if wants_hidden and args.teacher_name_or_path is None and not dense_model_teaches(args):
        problems.append("--alpha_hidden_cos and --alpha_hidden_mse need a teacher: give --teacher_name_or_path")
    if args.unlabeled_file and args.teacher_name_or_path is None and not dense_model_teaches(args):
        problems.append("--unlabeled_file needs a teacher to label its text: give --teacher_name_or_path")
    elif args.unlabeled_file and (args.alpha_distil == 0 or not args.do_train):
        problems.append("--unlabeled_file is labelled in training: give --do_train, and --alpha_distil above 0")
    if args.teacher_layers is not None and not isinstance(args.teacher_layers, list):
        problems.append(
            f"--teacher_layers accepts numbers with commas between, such as 2,4,6, not {args.teacher_layers!r}"
        )
    elif args.teacher_layers is not None and not wants_hidden:
        problems.append("--teacher_layers does nothing without --alpha_hidden_cos or --alpha_hidden_mse above 0")
    return problems


def apex_problem(no_cuda: bool) -> str | None:
    """Why `--use_apex` cannot work here, in one line; None if it can."""
    from importlib.util import find_spec

    if no_cuda:
        return "--use_apex runs on GPUs only; omit --no_cuda"
    if find_spec("apex") is None or find_spec("apex.optimizers") is None:
        return (
            "--use_apex needs NVIDIA apex, which is built from NVIDIA's source repository (with --cpp_ext and "
            "--cuda_ext); the package that PyPI calls apex is another project"
        )
    return None
