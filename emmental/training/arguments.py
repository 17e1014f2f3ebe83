"""The trainer's flags: names, defaults, groups, and the checks that need nothing but the flags themselves."""

from __future__ import annotations

import argparse
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import get_token
from huggingface_hub.constants import HF_HUB_OFFLINE
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from emmental.architectures import ARCHITECTURES
from emmental.command_line import OneLineParser, explicit_flags, leave_if, range_problems, switch
from emmental.modules.masked_nn import FRACTION_METHODS, MASK_INITS, PRUNING_METHODS, canonical_pruning_method
from emmental.pruning import GLOBAL_TOPK_METHODS, REGULARIZATIONS

MODEL_TYPES = (*(f"masked_{name}" for name in ARCHITECTURES), *ARCHITECTURES)
TASK_KINDS = ("classification", "regression")
DELIMITERS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "space": " "}
"""Names that `--delimiter` takes beside the character itself."""


def build_parser() -> OneLineParser:
    """All flags of `masked_run_glue.py`."""
    parser = OneLineParser("Fine-tune BERT on GLUE, or on your own sentences, while pruning it.")
    for add in (_add_task, _add_model, _add_phases, _add_pruning, _add_distillation, _add_optimization, _add_run):
        add(parser)
    return parser


_OWN_FILES = {
    "text_column": "column of the text; default sentence1",
    "text_pair_column": "column of the second text of pairs; default sentence2, where there is one",
    "label_column": "column of the label; default label",
    "delimiter": "what parts the cells, or tab, semicolon, ...; default: recognised",
    "encoding": "of text files, such as latin-1; default: UTF-8, or UTF-16 where that is recognised",
    "task_kind": f"{' or '.join(TASK_KINDS)}; default: as the labels look",
}
"""Flags on own files -> their help."""


def _add_task(parser: OneLineParser) -> None:
    group = parser.add_argument_group("task and data")
    group.add_argument("--data_dir", help="folder of the GLUE task's files, .tsv or as the Hub has them")
    group.add_argument("--task_name", help="cola, sst-2, mrpc, sts-b, qqp, mnli, mnli-mm, qnli, rte, wnli or ax")
    group.add_argument(
        "--train_file", help="your own data: .csv, .tsv, .jsonl or .parquet with sentence1, [sentence2], label"
    )
    group.add_argument("--validation_file", help="as --train_file, for evaluation; default: a tenth of it")
    group.add_argument("--test_file", help="as --train_file, for --do_predict; labels are not needed")
    for name, meaning in _OWN_FILES.items():
        group.add_argument(f"--{name}", help=meaning)
    group.add_argument("--label_names", nargs="+", help="the classes in the order of the model's outputs")
    group.add_argument("--positive_label", help="class whose F1 is meant, of two; default: the second one")
    group.add_argument("--max_seq_length", type=int, default=128, help="longer inputs are cut to this many tokens")
    group.add_argument("--feature_cache_dir", default="", help="tokenised data; default ~/.cache/emmental")
    switch(group, "--overwrite_cache", "tokenise again even if the cache is good")
    group.add_argument("--num_workers", type=int, default=0, help="processes that load batches")


def _add_model(parser: OneLineParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model_type",
        default="masked_bert",
        help="omit it to prune the model, whatever its type; bert, roberta, ... train it dense",
    )
    group.add_argument("--model_name_or_path", default="google-bert/bert-base-uncased", help="folder or Hub name")
    group.add_argument("--config_name", default="", help="configuration, where it is not the model's own")
    group.add_argument("--tokenizer_name", default="", help="tokenizer, where it is not the model's own")
    switch(group, "--new_classifier", "start the classifier anew, also where the model has one for other classes")
    group.add_argument("--cache_dir", default="", help="where downloaded models are kept")
    switch(group, "--do_lower_case", "lower-case the input; default: as the tokenizer says", default=None)


def _add_phases(parser: OneLineParser) -> None:
    group = parser.add_argument_group("what to do (neither --do_train nor --do_eval: both)")
    switch(group, "--do_train", "train", default=None)
    switch(group, "--do_eval", "evaluate the model", default=None)
    switch(group, "--do_predict", "write the GLUE server's prediction files")
    switch(group, "--evaluate_during_training", "evaluate at each checkpoint")
    switch(group, "--eval_all_checkpoints", "evaluate every checkpoint of the output folder, in numeric order")
    switch(group, "--dry_run", "check everything, show the schedule, and stop before training")


def _add_pruning(parser: OneLineParser) -> None:
    group = parser.add_argument_group("pruning")
    group.add_argument("--pruning_method", default="topK", help=f"{', '.join(PRUNING_METHODS)}")
    group.add_argument("--initial_threshold", type=float, default=1.0, help="threshold the schedule starts from")
    group.add_argument("--final_threshold", type=float, default=0.7, help="threshold the schedule ends at")
    group.add_argument("--initial_warmup", type=int, default=1, help="first phase, in multiples of --warmup_steps")
    group.add_argument("--final_warmup", type=int, default=2, help="last phase, in multiples of --warmup_steps")
    group.add_argument("--mask_init", default="constant", help=f"start of the mask scores: {', '.join(MASK_INITS)}")
    group.add_argument("--mask_scale", type=float, default=0.0, help="scale of that start")
    group.add_argument("--mask_scores_learning_rate", type=float, default=1e-2, help="learning rate of the scores")
    group.add_argument("--regularization", default=None, help="l1, l0 or none: penalty on the mask scores")
    group.add_argument("--final_lambda", type=float, default=0.0, help="weight of that penalty at the end")
    switch(group, "--global_topk", "one threshold for all matrices together (topK, threshold)")
    group.add_argument(
        "--global_topk_frequency_compute", type=int, default=25, help="updates between two of its computations"
    )


def _add_distillation(parser: OneLineParser) -> None:
    group = parser.add_argument_group("distillation")
    group.add_argument("--teacher_type", default=None, help="bert, masked_bert, distilbert, ...; default: what it is")
    group.add_argument("--teacher_name_or_path", default=None, help="a fine-tuned teacher: folder or Hub name")
    group.add_argument("--teacher_label_names", nargs="+", help="the classes in the order of the teacher's outputs")
    group.add_argument("--alpha_ce", type=float, default=0.5, help="weight of the task's loss")
    group.add_argument("--alpha_distil", type=float, default=0.5, help="weight of the distillation loss")
    group.add_argument("--temperature", type=float, default=2.0, help="temperature of the distillation")
    group.add_argument(
        "--alpha_hidden_cos", type=float, default=0.0, help="weight of the hidden states' cosine distance"
    )
    group.add_argument("--alpha_hidden_mse", type=float, default=0.0, help="weight of their squared difference")
    group.add_argument(
        "--teacher_layers",
        help="for each layer of the student the teacher's, from 1; 0 for none (such as 2,4,6); default: spread evenly",
    )
    group.add_argument(
        "--hidden_cache_limit_gb",
        type=float,
        default=0.0,
        help="keep the teacher's hidden states on the disk, up to this size; 0: ask the teacher for every batch",
    )


def _add_optimization(parser: OneLineParser) -> None:
    group = parser.add_argument_group("optimization")
    group.add_argument("--per_gpu_train_batch_size", type=int, default=8, help="batch size of one process")
    group.add_argument("--per_gpu_eval_batch_size", type=int, default=8, help="the same in evaluation")
    group.add_argument("--gradient_accumulation_steps", type=int, default=1, help="batches of one update")
    group.add_argument("--learning_rate", type=float, default=5e-5, help="learning rate of the weights")
    group.add_argument("--weight_decay", type=float, default=0.0, help="not on biases, LayerNorm and mask scores")
    group.add_argument("--adam_epsilon", type=float, default=1e-8, help="epsilon of AdamW")
    group.add_argument("--max_grad_norm", type=float, default=1.0, help="clip the gradient's norm; 0: do not")
    group.add_argument("--num_train_epochs", type=float, default=3.0, help="may be fractional")
    group.add_argument("--max_steps", type=int, default=-1, help="number of updates, in place of epochs")
    group.add_argument("--warmup_steps", type=int, default=None, help="updates; default: a tenth of all")
    switch(group, "--fp16", "mixed precision in float16 with loss scaling")
    group.add_argument("--fp16_opt_level", default="O1", help="O0 is float32; O1, O2 and O3 are all torch.amp")
    switch(group, "--bf16", "mixed precision in bfloat16")
    switch(group, "--torch_compile", "torch.compile: two compilations at the start, results equal to rounding")
    switch(group, "--use_apex", "the fused optimizer of NVIDIA apex, where that is installed")


def _add_run(parser: OneLineParser) -> None:
    group = parser.add_argument_group("run, output and logging")
    group.add_argument("--output_dir", default=None, help="default: outputs/<task_name>")
    switch(group, "--overwrite_output_dir", "start afresh: remove what this program wrote there, and only that")
    switch(group, "--accept_changes", "resume although arguments that change the result differ from the run's")
    group.add_argument("--logging_steps", type=int, default=50, help="updates between two log entries")
    group.add_argument("--save_steps", type=int, default=None, help="updates between checkpoints; default: an epoch")
    group.add_argument(
        "--save_total_limit", type=int, default=None, help="keep this many newest checkpoints + the best"
    )
    switch(group, "--pictures", "pictures of the masks", default=True)
    switch(group, "--push_to_hub", "upload the finished model to the Hugging Face Hub")
    group.add_argument("--hub_model_id", default=None, help="name on the Hub; default: the output folder's name")
    switch(group, "--no_cuda", "stay on the CPU")
    group.add_argument("--seed", type=int, default=42, help="seed of everything random")
    group.add_argument("--local_rank", type=int, default=-1, help="set by torchrun through LOCAL_RANK")


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check all flags together; a mistake ends the program with one line per mistake and status 2."""
    parser = build_parser()
    args = parser.parse_args(argv)
    args.explicit = explicit_flags(build_parser, argv)
    _normalise(args)
    leave_if(find_problems(args), parser.prog)
    return args


def _normalise(args: argparse.Namespace) -> None:
    if args.regularization in ("null", "none", "None", ""):
        args.regularization = None
    if args.pruning_method == "sigmoid_threshold":
        args.pruning_method = canonical_pruning_method(args.pruning_method)
    if args.do_train is None and args.do_eval is None:
        # The diagnostic set can be predicted alone.
        args.do_train = args.do_eval = not (args.do_predict and (args.task_name or "").lower() == "ax")
    args.do_train, args.do_eval = bool(args.do_train), bool(args.do_eval)
    if args.task_name is None and (args.train_file or args.validation_file or args.test_file):
        args.task_name = "custom"
    if args.output_dir is None and args.task_name:
        args.output_dir = str(Path("outputs") / args.task_name.lower())
    if args.teacher_layers and all(part.strip().isdecimal() for part in args.teacher_layers.split(",")):
        args.teacher_layers = [int(part) for part in args.teacher_layers.split(",")]
    args.local_rank = int(os.environ.get("LOCAL_RANK", args.local_rank))
    if args.fp16_opt_level == "O0":
        args.fp16 = False


def find_problems(args: argparse.Namespace) -> list[str]:
    """Every mistake that can be seen without opening a file, a line each, naming the flag and what it accepts."""
    return [
        *_task_problems(args),
        *_reading_problems(args),
        *_choice_problems(args),
        *_number_problems(args),
        *_pruning_problems(args),
        *_precision_problems(args),
        *_teacher_problems(args),
    ]


def _task_problems(args: argparse.Namespace) -> list[str]:
    problems = []
    own_files = [flag for flag in ("train_file", "validation_file", "test_file") if getattr(args, flag)]
    if own_files and (args.data_dir or args.task_name not in (None, "custom")):
        problems.append(f"--{own_files[0]} stands in for --data_dir and --task_name; give one or the other")
    elif own_files:
        wants_dev = args.do_eval and not args.train_file  # of which a part is set aside otherwise
        needed = {"train_file": args.do_train, "validation_file": wants_dev, "test_file": args.do_predict}
        problems += [
            f"--{flag} is needed beside --{own_files[0]}: it takes a .csv, .tsv, .jsonl or .parquet file"
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
    if args.evaluate_during_training and not args.do_train:
        problems.append("--evaluate_during_training needs --do_train")
    return problems


def _reading_problems(args: argparse.Namespace) -> list[str]:
    problems = []
    if args.delimiter is not None and len(DELIMITERS.get(args.delimiter, args.delimiter)) != 1:
        problems.append(f"--delimiter accepts one character, or {', '.join(DELIMITERS)}, not {args.delimiter!r}")
    if args.encoding is not None and not _is_encoding(args.encoding):
        problems.append(f"--encoding accepts what Python knows (utf-8, latin-1, cp1252, ...), not {args.encoding!r}")
    given = [f"--{name}" for name in _OWN_FILES if getattr(args, name) is not None]
    if given and not (args.train_file or args.validation_file or args.test_file):
        problems.append(f"{', '.join(given)}: only own files are read so; give --train_file, ...")
    return problems


def _is_encoding(name: str) -> bool:
    try:
        return "".encode(name).decode(name) == ""
    except LookupError:  # no encoding of text
        return False


def _hub_problem(dry_run: bool) -> str | None:
    """Why `--push_to_hub` would fail when the training is over, in a line; None when nothing is known against it."""
    if dry_run:
        return "--push_to_hub contradicts --dry_run, which stops before training"
    if HF_HUB_OFFLINE:
        return "--push_to_hub needs the Hub, and the environment variable HF_HUB_OFFLINE keeps it out; unset that"
    if get_token() is None:
        return "--push_to_hub needs an account on the Hub: log in with `hf auth login`, or set HF_TOKEN"
    return None


def _choice_problems(args: argparse.Namespace) -> list[str]:
    choices = {
        "model_type": MODEL_TYPES,
        "pruning_method": PRUNING_METHODS,
        "mask_init": MASK_INITS,
        "regularization": (*REGULARIZATIONS, None),
        "fp16_opt_level": ("O0", "O1", "O2", "O3"),
        "task_kind": (*TASK_KINDS, None),
    }
    return [
        f"--{flag} accepts {', '.join(choice or 'none' for choice in accepted)}, not {getattr(args, flag)!r}"
        for flag, accepted in choices.items()
        if getattr(args, flag) not in accepted
    ]


_AT_LEAST = {
    "max_seq_length": 3,
    "per_gpu_train_batch_size": 1,
    "per_gpu_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "logging_steps": 1,
    "save_steps": 1,
    "save_total_limit": 1,
    "global_topk_frequency_compute": 1,
    "initial_warmup": 0,
    "final_warmup": 0,
    "warmup_steps": 0,
    "num_workers": 0,
    "seed": 0,
    "learning_rate": 0,
    "mask_scores_learning_rate": 0,
    "weight_decay": 0,
    "max_grad_norm": 0,
    "final_lambda": 0,
    "alpha_ce": 0,
    "alpha_distil": 0,
    "alpha_hidden_cos": 0,
    "alpha_hidden_mse": 0,
    "hidden_cache_limit_gb": 0,
}
_ABOVE_ZERO = ("adam_epsilon", "temperature", "num_train_epochs")


def _number_problems(args: argparse.Namespace) -> list[str]:
    problems = range_problems(args, _AT_LEAST, _ABOVE_ZERO)
    if args.max_steps != -1 and args.max_steps < 1:
        problems.append(f"--max_steps accepts a number of updates from 1 (or -1: by epochs), not {args.max_steps}")
    if not math.isfinite(args.mask_scale) or (args.mask_init == "uniform" and args.mask_scale < 0):
        accepted = "a number from 0 (scores in [-scale, scale])" if args.mask_init == "uniform" else "a number"
        problems.append(f"--mask_scale accepts {accepted}, not {args.mask_scale}")
    if args.seed >= 2**32:
        problems.append(f"--seed accepts numbers below 4294967296, not {args.seed}")
    return problems


def _pruning_problems(args: argparse.Namespace) -> list[str]:
    if not args.model_type.startswith("masked_") or args.pruning_method not in PRUNING_METHODS:
        return []
    problems = _threshold_problems(args)
    method = args.pruning_method
    if args.global_topk and method not in GLOBAL_TOPK_METHODS:
        problems.append(
            f"--global_topk is defined for --pruning_method {' and '.join(GLOBAL_TOPK_METHODS)}, not {method}"
        )
    if method == "magnitude" and args.regularization:
        problems.append("--regularization needs mask scores, and --pruning_method magnitude learns none")
    if args.final_lambda > 0 and not args.regularization:
        problems.append("--final_lambda weighs a penalty: give --regularization l1 or l0 too")
    if args.regularization in REGULARIZATIONS and args.final_lambda == 0:
        problems.append(f"--regularization {args.regularization} does nothing without --final_lambda above 0")
    return problems


def _threshold_problems(args: argparse.Namespace) -> list[str]:
    method, start, end = args.pruning_method, args.initial_threshold, args.final_threshold
    as_fraction = method in FRACTION_METHODS or args.global_topk
    problems = []
    for flag in ("initial_threshold", "final_threshold"):
        value = getattr(args, flag)
        if as_fraction and not 0 < value <= 1:
            problems.append(
                f"--{flag} is the share of weights that stay, above 0 and up to 1 (15 % is 0.15), not {value}"
            )
        elif method == "sigmoied_threshold" and not 0 <= value < 1:
            problems.append(f"--{flag} is compared with sigmoid(scores) and accepts 0 up to below 1, not {value}")
        elif not math.isfinite(value):
            problems.append(f"--{flag} accepts a finite number, not {value}")
    if problems or method == "l0":
        return problems
    if as_fraction and start < end:
        problems.append(
            f"--initial_threshold {start} is below --final_threshold {end}: weights would grow back; swap them"
        )
    if not as_fraction and start > end:
        problems.append(
            f"--initial_threshold {start} is above --final_threshold {end}: {method} prunes scores below the "
            "threshold, so it must rise (usual: --initial_threshold 0 --final_threshold 0.1)"
        )
    return problems


def _precision_problems(args: argparse.Namespace) -> list[str]:
    problems = []
    if args.fp16 and args.bf16:
        problems.append("--fp16 and --bf16 exclude each other; give one")
    if args.use_apex:
        problem = apex_problem(args.no_cuda)
        problems += [problem] if problem else []
    if args.torch_compile and not (os.environ.get("CXX") or any(map(shutil.which, ("g++", "clang++")))):
        problems.append("--torch_compile needs a C++ compiler, g++ or clang++, and none is found")
    return problems


def _teacher_problems(args: argparse.Namespace) -> list[str]:
    problems = []
    if args.teacher_type not in (None, *MODEL_TYPES, *MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES):
        problems.append(
            f"--teacher_type accepts {', '.join(MODEL_TYPES)}, none, or another type that Transformers loads for "
            f"sequence classification (distilbert, roberta, electra, ...), not {args.teacher_type!r}"
        )
    elif args.teacher_type is not None and args.teacher_name_or_path is None:
        problems.append("--teacher_type does nothing without a teacher: give --teacher_name_or_path")
    wants_hidden = args.alpha_hidden_cos > 0 or args.alpha_hidden_mse > 0
    if args.teacher_name_or_path is not None and args.alpha_ce == args.alpha_distil == 0 and not wants_hidden:
        problems.append("--alpha_ce 0 and --alpha_distil 0 leave nothing to learn from; give one above 0")
    if wants_hidden and args.teacher_name_or_path is None:
        problems.append("--alpha_hidden_cos and --alpha_hidden_mse need a teacher: give --teacher_name_or_path")
    if args.teacher_layers is not None and not isinstance(args.teacher_layers, list):
        problems.append(
            f"--teacher_layers accepts numbers with commas between, such as 2,4,6, not {args.teacher_layers!r}"
        )
    elif args.teacher_layers is not None and not wants_hidden:
        problems.append("--teacher_layers does nothing without --alpha_hidden_cos or --alpha_hidden_mse above 0")
    if args.hidden_cache_limit_gb > 0 and not wants_hidden:
        problems.append(
            "--hidden_cache_limit_gb does nothing without --alpha_hidden_cos or --alpha_hidden_mse above 0"
        )
    return problems


def apex_problem(no_cuda: bool) -> str | None:
    """Why `--use_apex` cannot be had here, in a line; None when it can."""
    from importlib.util import find_spec

    if no_cuda:
        return "--use_apex runs on GPUs only; leave --no_cuda away"
    if find_spec("apex") is None or find_spec("apex.optimizers") is None:
        return (
            "--use_apex needs NVIDIA apex, which is built from NVIDIA's source repository (with --cpp_ext and "
            "--cuda_ext); the package that PyPI calls apex is another project"
        )
    return None


_WITHOUT_EFFECT_ON_THE_RESULT = frozenset(
    {
        "accept_changes",
        "cache_dir",
        "data_dir",
        "datasets",
        "delimiter",
        "encoding",
        "do_eval",
        "do_predict",
        "do_train",
        "dry_run",
        "environment",
        "eval_all_checkpoints",
        "evaluate_during_training",
        "explicit",
        "feature_cache_dir",
        "fp16_opt_level",
        "hub_model_id",
        "label_column",
        "local_rank",
        "logging_steps",
        "num_workers",
        "output",
        "positive_label",
        "output_dir",
        "overwrite_cache",
        "overwrite_output_dir",
        "per_gpu_eval_batch_size",
        "pictures",
        "push_to_hub",
        "save_steps",
        "save_total_limit",
        "task",
        "test_file",
        "text_column",
        "text_pair_column",
        "tokenizer_name",
        "train_file",
        "validation_file",
    }
)


def arguments_of_result(args: argparse.Namespace) -> dict[str, str | int | float | bool | None]:
    """The flags that decide which weights come out; data and tokenizer are judged by their content, elsewhere."""
    return {name: value for name, value in sorted(vars(args).items()) if name not in _WITHOUT_EFFECT_ON_THE_RESULT}


def recorded_arguments(args: argparse.Namespace) -> dict[str, str | int | float | bool | None]:
    """All flags, for the record beside the results."""
    return {
        name: value
        for name, value in sorted(vars(args).items())
        if name not in ("datasets", "environment", "explicit", "output", "task")
    }
