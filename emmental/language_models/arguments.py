"""The flags of `distiller.py`: names, defaults, groups, and the checks that need only the flags."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

from emmental.command_line import parse_flags
from emmental.flags import Flags, flag, switch
from emmental.runs.arguments import common_problems, derive, distillation_flags, optimization_flags, run_flags

MASKED_STUDENTS = {"distilbert": ("bert", "distilbert"), "bert": ("bert",), "roberta": ("roberta",)}
CAUSAL_STUDENTS = {"gpt2": ("gpt2",)}
TEACHERS_OF = {**MASKED_STUDENTS, **CAUSAL_STUDENTS}
"""Student type -> teacher types that it can learn from."""
LOSSES = ("ce", "mlm", "clm", "mse", "cos")
_REQUIRED = ("dump_path", "data_file", "student_type", "student_config", "teacher_type", "teacher_name")


FLAGS = {
    "data and output": (
        flag("dump_path", "folder of the run: student, checkpoints, log", changes_result=False),
        flag("data_file", "corpus made by `python -m emmental.data.corpus binarize`", changes_result=False),
        flag("token_counts", "corpus whose token counts smooth the masking; default: --data_file's"),
        switch(
            "force",
            "start afresh: remove what this program wrote to --dump_path, and only that",
            changes_result=False,
        ),
    ),
    "student and teacher": (
        flag("student_type", ", ".join(TEACHERS_OF)),
        flag("student_config", "configuration of the student: .json file, folder or Hub name"),
        flag("student_pretrained_weights", "weights to start from: folder or Hub name"),
        flag("teacher_type", "bert or distilbert, roberta, gpt2"),
        flag("teacher_name", "folder or Hub name; its tokenizer made the corpus"),
        flag("initializer_range", "standard deviation of weights that start at random", 0.02, above_zero=True),
        switch("freeze_pos_embs", "do not train the position embeddings"),
        switch("freeze_token_type_embds", "do not train the token-type embeddings, if the student has any"),
    ),
    "losses": (
        *distillation_flags("weight of KL(teacher || student)"),
        flag("alpha_mlm", "weight of masked LM; 1.0 with --mlm", 0.0, at_least=0),
        flag("alpha_clm", "weight of causal LM; 0.0 with --mlm", 0.5, at_least=0),
        flag("alpha_mse", "weight of the logits' squared difference", 0.0, at_least=0),
        flag("alpha_cos", "weight of the hidden states' cosine distance", 0.0, at_least=0),
        switch("restrict_ce_to_mask", "ce and mse at the masked tokens only"),
    ),
    "masking": (
        switch("mlm", "masked LM (BERT, RoBERTa); without it causal LM (GPT-2)"),
        flag("mlm_mask_prop", "share of the tokens that are predicted", 0.15),
        flag("word_mask", "share of those that become the mask token", 0.8),
        flag("word_keep", "share that stay as they are", 0.1),
        flag("word_rand", "share that become a random token", 0.1),
        flag("mlm_smoothing", "mask rare tokens more often; 0: all equally often", 0.7, at_least=0),
    ),
    "optimization": (
        flag("n_epoch", "passes over the corpus", 3, at_least=1),
        flag("batch_size", "sequences of one process in a batch", 5, at_least=1),
        switch("group_by_size", "batches of sequences of similar length", default=True),
        flag("warmup_prop", "share of the updates for the warm-up", 0.05),
        *optimization_flags(accumulation=50, learning_rate=5e-4, epsilon=1e-6, max_grad_norm=5.0),
    ),
    "run and logging": (
        flag(
            "n_gpu",
            "0: run on the CPU; otherwise each process uses one GPU",
            type=int,
            at_least=0,
        ),
        flag("log_interval", "batches between two log entries", 500, at_least=1, changes_result=False),
        flag("checkpoint_interval", "batches between two checkpoints", 4000, at_least=1, changes_result=False),
        *run_flags(seed=56, kept=2, what_is_kept="keep this many newest checkpoints"),
    ),
}
"""Title of a group -> its flags."""


EVERYDAY = (
    "dump_path data_file token_counts force student_type student_config student_pretrained_weights teacher_type "
    "teacher_name alpha_ce alpha_mlm alpha_clm alpha_mse alpha_cos mlm temperature n_epoch batch_size "
    "gradient_accumulation_steps learning_rate bf16 seed threads log_interval checkpoint_interval"
)
"""Flags that `--help` shows; `--help_all` shows all."""


def parse_arguments(argv: Sequence[str] | None = None) -> Flags:
    """Parse and check all flags together; a mistake ends the program with one line per mistake and status 2."""
    description = "Distil a smaller language model from BERT, RoBERTa or GPT-2."
    return parse_flags(description, FLAGS, argv, EVERYDAY, _normalise, find_problems)


def with_defaults(params: argparse.Namespace) -> Flags:
    """The flags among the parameters; missing flags have their defaults."""
    declared = {one.name for flags in FLAGS.values() for one in flags}
    return Flags(FLAGS, {name: value for name, value in vars(params).items() if name in declared})


def _normalise(args: Flags) -> None:
    if args.mlm:
        args.alpha_mlm = args.alpha_mlm if "alpha_mlm" in args.explicit else 1.0
        args.alpha_clm = args.alpha_clm if "alpha_clm" in args.explicit else 0.0
    derive(args)


def find_problems(args: Flags) -> list[str]:
    """Every mistake that can be found without opening a file: a line each, with the flag and what it accepts."""
    return [
        *(f"--{flag} is required" for flag in _REQUIRED if not getattr(args, flag)),
        *_type_problems(args),
        *_loss_problems(args),
        *_number_problems(args),
        *_masking_problems(args),
    ]


def _type_problems(args: Flags) -> list[str]:
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
        problems.append(f"--freeze_token_type_embds: a {student} has no token types; omit it")
    return problems


def _loss_problems(args: Flags) -> list[str]:
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


def _number_problems(args: Flags) -> list[str]:
    problems = common_problems(args)
    if not 0 <= args.warmup_prop < 1:
        problems.append(f"--warmup_prop is a share of the updates, from 0 to below 1, not {args.warmup_prop}")
    return problems


def _masking_problems(args: Flags) -> list[str]:
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
