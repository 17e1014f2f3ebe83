"""The flags of `distiller.py`: names, defaults, groups, and the checks that need nothing but the flags themselves."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence

from emmental.command_line import OneLineParser, explicit_flags, leave_if, range_problems, switch

MASKED_STUDENTS = {"distilbert": ("bert", "distilbert"), "bert": ("bert",), "roberta": ("roberta",)}
CAUSAL_STUDENTS = {"gpt2": ("gpt2",)}
TEACHERS_OF = {**MASKED_STUDENTS, **CAUSAL_STUDENTS}
"""Student type -> the teacher types it learns from."""
LOSSES = ("ce", "mlm", "clm", "mse", "cos")
_REQUIRED = ("dump_path", "data_file", "student_type", "student_config", "teacher_type", "teacher_name")


def build_parser() -> OneLineParser:
    """All flags of `distiller.py`."""
    parser = OneLineParser("Distil a smaller language model from BERT, RoBERTa or GPT-2, as DistilBERT was made.")
    for add in (_add_data, _add_models, _add_losses, _add_masking, _add_optimization, _add_run):
        add(parser)
    return parser


def _add_data(parser: OneLineParser) -> None:
    group = parser.add_argument_group("data and output")
    group.add_argument("--dump_path", help="folder of the run: student, checkpoints, log")
    group.add_argument("--data_file", help="corpus made by `python -m emmental.data.corpus binarize`")
    group.add_argument("--token_counts", help="corpus whose token counts smooth the masking; default: --data_file's")
    switch(group, "--force", "start afresh: remove what this program wrote to --dump_path, and only that")
    switch(group, "--accept_changes", "resume although arguments that change the result differ from the run's")


def _add_models(parser: OneLineParser) -> None:
    group = parser.add_argument_group("student and teacher")
    group.add_argument("--student_type", help=f"{', '.join(TEACHERS_OF)}")
    group.add_argument("--student_config", help="configuration of the student: .json file, folder or Hub name")
    group.add_argument("--student_pretrained_weights", help="what the student starts from: folder or Hub name")
    group.add_argument("--teacher_type", help="bert or distilbert, roberta, gpt2")
    group.add_argument("--teacher_name", help="folder or Hub name; its tokenizer made the corpus")
    group.add_argument("--initializer_range", type=float, default=0.02, help="spread of weights that start at random")
    switch(group, "--freeze_pos_embs", "do not train the position embeddings")
    switch(group, "--freeze_token_type_embds", "do not train the token-type embeddings, if the student has any")


def _add_losses(parser: OneLineParser) -> None:
    group = parser.add_argument_group("losses")
    group.add_argument("--temperature", type=float, default=2.0, help="temperature of ce")
    group.add_argument("--alpha_ce", type=float, default=0.5, help="weight of KL(teacher || student)")
    group.add_argument("--alpha_mlm", type=float, default=0.0, help="weight of masked LM; 1.0 with --mlm")
    group.add_argument("--alpha_clm", type=float, default=0.5, help="weight of causal LM; 0.0 with --mlm")
    group.add_argument("--alpha_mse", type=float, default=0.0, help="weight of the logits' squared difference")
    group.add_argument("--alpha_cos", type=float, default=0.0, help="weight of the hidden states' cosine distance")
    switch(group, "--restrict_ce_to_mask", "ce and mse at the masked tokens only")


def _add_masking(parser: OneLineParser) -> None:
    group = parser.add_argument_group("masking")
    switch(group, "--mlm", "masked LM (BERT, RoBERTa); without it causal LM (GPT-2)")
    group.add_argument("--mlm_mask_prop", type=float, default=0.15, help="share of the tokens that are predicted")
    group.add_argument("--word_mask", type=float, default=0.8, help="share of those that become the mask token")
    group.add_argument("--word_keep", type=float, default=0.1, help="share that stay as they are")
    group.add_argument("--word_rand", type=float, default=0.1, help="share that become a random token")
    group.add_argument("--mlm_smoothing", type=float, default=0.7, help="mask rare tokens more; 0: all alike")


def _add_optimization(parser: OneLineParser) -> None:
    group = parser.add_argument_group("optimization")
    group.add_argument("--n_epoch", type=int, default=3, help="passes over the corpus")
    group.add_argument("--batch_size", type=int, default=5, help="sequences of one process in a batch")
    switch(group, "--group_by_size", "batches of sequences of similar length", default=True)
    group.add_argument("--gradient_accumulation_steps", type=int, default=50, help="batches of one update")
    group.add_argument("--warmup_prop", type=float, default=0.05, help="share of the updates that warm up")
    group.add_argument("--weight_decay", type=float, default=0.0, help="not on biases and LayerNorm")
    group.add_argument("--learning_rate", type=float, default=5e-4, help="after the warm-up")
    group.add_argument("--adam_epsilon", type=float, default=1e-6, help="epsilon of AdamW; its betas are 0.9, 0.98")
    group.add_argument("--max_grad_norm", type=float, default=5.0, help="clip the gradient's norm; 0: do not")
    switch(group, "--fp16", "mixed precision in float16 with loss scaling")
    group.add_argument("--fp16_opt_level", default="O1", help="O0 is float32; O1, O2 and O3 are all torch.amp")
    switch(group, "--bf16", "mixed precision in bfloat16")


def _add_run(parser: OneLineParser) -> None:
    group = parser.add_argument_group("run and logging")
    group.add_argument("--n_gpu", type=int, help="0 stays on the CPU; else all that torchrun's processes name")
    group.add_argument("--local_rank", type=int, default=-1, help="set by torchrun through LOCAL_RANK")
    group.add_argument("--seed", type=int, default=56, help="seed of everything random")
    group.add_argument("--log_interval", type=int, default=500, help="batches between two log entries")
    group.add_argument("--checkpoint_interval", type=int, default=4000, help="batches between two checkpoints")
    group.add_argument("--save_total_limit", type=int, default=2, help="keep this many newest checkpoints")


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check all flags together; a mistake ends the program with one line per mistake and status 2."""
    parser = build_parser()
    args = parser.parse_args(argv)
    args.explicit = explicit_flags(build_parser, argv)
    _normalise(args)
    leave_if(find_problems(args), parser.prog)
    return args


def with_defaults(params: argparse.Namespace) -> argparse.Namespace:
    """A copy of the parameters in which every flag that is missing has its default."""
    return argparse.Namespace(**{**vars(build_parser().parse_args([])), **vars(params)})


def run_identity(args: argparse.Namespace, world_size: int) -> dict[str, str | int | float | bool | None]:
    """What decides which weights come out: flags, content of corpora and teacher, number of processes."""
    recorded = recorded_arguments(args).items()
    flags = {name: value for name, value in recorded if name not in _WITHOUT_EFFECT_ON_THE_RESULT}
    contents = {name: getattr(args, name, None) for name in ("data", "counted", "teacher_weights")}
    return {**flags, **contents, "world_size": world_size}


def recorded_arguments(args: argparse.Namespace) -> dict[str, str | int | float | bool | None]:
    """All flags, for the record beside the results."""
    names = vars(build_parser().parse_args([]))
    return {name: getattr(args, name) for name in sorted(names)}


_WITHOUT_EFFECT_ON_THE_RESULT = frozenset(
    {
        "accept_changes",
        "checkpoint_interval",
        "data_file",
        "dump_path",
        "force",
        "fp16_opt_level",
        "local_rank",
        "log_interval",
        "n_gpu",
        "save_total_limit",
    }
)


def _normalise(args: argparse.Namespace) -> None:
    if args.mlm:
        args.alpha_mlm = args.alpha_mlm if "alpha_mlm" in args.explicit else 1.0
        args.alpha_clm = args.alpha_clm if "alpha_clm" in args.explicit else 0.0
    args.local_rank = int(os.environ.get("LOCAL_RANK", args.local_rank))
    if args.fp16_opt_level == "O0":
        args.fp16 = False


def find_problems(args: argparse.Namespace) -> list[str]:
    """Every mistake that can be seen without opening a file, a line each, naming the flag and what it accepts."""
    return [
        *(f"--{flag} is required" for flag in _REQUIRED if not getattr(args, flag)),
        *_type_problems(args),
        *_loss_problems(args),
        *_number_problems(args),
        *_masking_problems(args),
    ]


def _type_problems(args: argparse.Namespace) -> list[str]:
    student, teacher = args.student_type, args.teacher_type
    if not (student and teacher):
        return []
    if student not in TEACHERS_OF:
        return [f"--student_type accepts {', '.join(TEACHERS_OF)}, not {student!r}"]
    problems = []
    if teacher not in TEACHERS_OF[student]:
        accepted = " or ".join(TEACHERS_OF[student])
        problems.append(f"--teacher_type accepts {accepted} for --student_type {student}, not {teacher!r}")
    if args.mlm != (student in MASKED_STUDENTS):
        needed = "needs --mlm" if student in MASKED_STUDENTS else "excludes --mlm"
        problems.append(f"--student_type {student} {needed}: BERT and RoBERTa are masked LMs, GPT-2 is a causal one")
    if args.freeze_token_type_embds and student not in ("bert", "roberta"):
        problems.append(f"--freeze_token_type_embds: a {student} has no token types; leave it away")
    return problems


def _loss_problems(args: argparse.Namespace) -> list[str]:
    problems = []
    wanted, unwanted = ("alpha_mlm", "alpha_clm") if args.mlm else ("alpha_clm", "alpha_mlm")
    kind = "with" if args.mlm else "without"
    if getattr(args, unwanted) > 0:
        problems.append(f"--{unwanted} accepts 0 {kind} --mlm, not {getattr(args, unwanted)}")
    if not any(getattr(args, f"alpha_{name}") > 0 for name in ("ce", "mse", wanted.removeprefix("alpha_"))):
        problems.append(f"--alpha_ce, --alpha_mse or --{wanted} must be above 0, or the student's head is not trained")
    if args.restrict_ce_to_mask and not args.mlm:
        problems.append("--restrict_ce_to_mask needs --mlm: a causal LM masks nothing")
    return problems


_AT_LEAST = {
    "n_epoch": 1,
    "batch_size": 1,
    "gradient_accumulation_steps": 1,
    "log_interval": 1,
    "checkpoint_interval": 1,
    "save_total_limit": 1,
    "n_gpu": 0,
    "seed": 0,
    "learning_rate": 0,
    "weight_decay": 0,
    "max_grad_norm": 0,
    "mlm_smoothing": 0,
    **{f"alpha_{name}": 0 for name in LOSSES},
}
_ABOVE_ZERO = ("temperature", "adam_epsilon", "initializer_range")


def _number_problems(args: argparse.Namespace) -> list[str]:
    problems = range_problems(args, _AT_LEAST, _ABOVE_ZERO)
    if not 0 <= args.warmup_prop < 1:
        problems.append(f"--warmup_prop is a share of the updates, from 0 to below 1, not {args.warmup_prop}")
    if args.seed >= 2**32:
        problems.append(f"--seed accepts numbers below 4294967296, not {args.seed}")
    if args.fp16_opt_level not in ("O0", "O1", "O2", "O3"):
        problems.append(f"--fp16_opt_level accepts O0, O1, O2, O3, not {args.fp16_opt_level!r}")
    if args.fp16 and args.bf16:
        problems.append("--fp16 and --bf16 exclude each other; give one")
    return problems


def _masking_problems(args: argparse.Namespace) -> list[str]:
    problems = []
    if args.mlm and not 0 < args.mlm_mask_prop <= 1:
        problems.append(f"--mlm_mask_prop is a share of the tokens, above 0 and up to 1, not {args.mlm_mask_prop}")
    shares = {flag: getattr(args, flag) for flag in ("word_mask", "word_keep", "word_rand")}
    problems += [
        f"--{flag} is a share, from 0 to 1, not {value}" for flag, value in shares.items() if not 0 <= value <= 1
    ]
    if not math.isclose(sum(shares.values()), 1.0, abs_tol=1e-6):
        problems.append(f"--word_mask, --word_keep and --word_rand must add up to 1, not {sum(shares.values()):g}")
    return problems
