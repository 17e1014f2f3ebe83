"""Flags that cannot be meant: answered before any work, in one line that names a flag, with status 2, nothing written.

What one flag alone accepts is the subject of `tests/test_bad_input.py` and `tests/test_distiller_command.py`; here are
flags that contradict each other, the data, the model or the program's phase.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from faults.kills import Uninterrupted
from faults.runs import World, evidence
from faults.tally import Clock, Tally

import distiller
import masked_run_glue
import visualizing_image
from emmental.export import bertarize, counts_parameters, storage
from emmental.language_models import corpus, student_init

_SOFT = "--pruning_method=sigmoied_threshold"
_HARD = "--pruning_method=threshold"
_TAUGHT = "--teacher_name_or_path={world}/teacher"
TRAINER_FLAGS: tuple[tuple[tuple[str, ...], str], ...] = (
    # Thresholds against the method.
    (("--initial_threshold=1.5",), "--initial_threshold"),
    (("--initial_threshold=0", "--final_threshold=0"), "--initial_threshold"),
    (("--initial_threshold=nan",), "--initial_threshold"),
    (("--final_threshold=inf",), "--final_threshold"),
    ((_SOFT, "--initial_threshold=0", "--final_threshold=1"), "--final_threshold"),
    ((_SOFT, "--initial_threshold=-0.1", "--final_threshold=0.1"), "--initial_threshold"),
    ((_SOFT, "--initial_threshold=nan", "--final_threshold=0.1"), "--initial_threshold"),
    ((_HARD, "--initial_threshold=inf", "--final_threshold=1"), "--initial_threshold"),
    ((_HARD, "--initial_threshold=1", "--final_threshold=-inf"), "--final_threshold"),
    ((_HARD, "--global_topk", "--initial_threshold=0", "--final_threshold=0.1"), "--initial_threshold"),
    ((_HARD, "--global_topk", "--initial_threshold=0.1", "--final_threshold=0.5"), "--initial_threshold"),
    (("--pruning_method=magnitude", "--initial_threshold=0.2", "--final_threshold=0.3"), "--initial_threshold"),
    (("--pruning_method=magnitude", "--final_threshold=30"), "--final_threshold"),
    ((_SOFT, "--global_topk", "--initial_threshold=0", "--final_threshold=0.1"), "--global_topk"),
    (("--pruning_method=magnitude", "--regularization=l0", "--final_lambda=1"), "--regularization"),
    (("--regularization=l0",), "--final_lambda"),
    (("--regularization=none", "--final_lambda=1"), "--final_lambda"),
    (("--regularization=null", "--final_lambda=1"), "--final_lambda"),
    (("--regularization=l1", "--final_lambda=nan"), "--final_lambda"),
    (("--global_topk", "--global_topk_frequency_compute=0"), "--global_topk_frequency_compute"),
    (("--global_topk", "--pruning_method=l0", "--regularization=l0", "--final_lambda=1"), "--global_topk"),
    # The schedule against the length of the run.
    (("--max_steps=6", "--warmup_steps=3"), "--warmup_steps"),
    (("--max_steps=2", "--warmup_steps=1"), "--warmup_steps"),
    (("--max_steps=6", "--warmup_steps=2", "--final_warmup=2"), "--final_warmup"),
    (("--max_steps=6", "--warmup_steps=1", "--final_warmup=6"), "--final_warmup"),
    (("--max_steps=6", "--warmup_steps=1", "--initial_warmup=7"), "--initial_warmup"),
    (("--num_train_epochs=0.001", "--warmup_steps=1"), "--warmup_steps"),
    (("--num_train_epochs=1", "--warmup_steps=9"), "--warmup_steps"),
    (("--model_type=bert", "--max_steps=4", "--warmup_steps=5"), "--warmup_steps"),
    (("--gradient_accumulation_steps=1000", "--num_train_epochs=1", "--warmup_steps=1"), "--warmup_steps"),
    (("--per_gpu_train_batch_size=1000", "--num_train_epochs=1"), "--num_train_epochs"),
    (("--num_train_epochs=nan",), "--num_train_epochs"),
    (("--num_train_epochs=inf",), "--num_train_epochs"),
    (("--max_steps=-2",), "--max_steps"),
    # Phases.
    (("--no-do_train", "--evaluate_during_training"), "--evaluate_during_training"),
    (("--do_predict", "--do_eval", "--evaluate_during_training"), "--evaluate_during_training"),
    (("--dry_run", "--push_to_hub", "--do_train"), "--push_to_hub"),
    (("--task_name=ax", "--do_train"), "--task_name"),
    (("--task_name=ax", "--do_eval", "--no-evaluate_during_training"), "--task_name"),
    (("--task_name=mnli", "--do_train"), "--data_dir"),
    (("--task_name=rte",), "dev.tsv"),
    # Data of one's own beside a task.
    (("--validation_file=a.csv",), "--validation_file"),
    (("--test_file=a.csv",), "--test_file"),
    (("--train_file=a.csv", "--validation_file=b.csv"), "--train_file"),
    (("--data_dir=", "--task_name=custom"), "--data_dir"),
    (("--data_dir={world}/bert",), "--data_dir"),
    (("--data_dir=",), "--data_dir"),
    # Precision.
    (("--fp16", "--bf16", "--fp16_opt_level=O2"), "--fp16"),
    (("--fp16", "--fp16_opt_level=O9"), "--fp16_opt_level"),
    (("--use_apex", "--fp16"), "--use_apex"),
    # Teachers.
    (("--alpha_hidden_cos=1",), "--alpha_hidden_cos"),
    (("--alpha_hidden_mse=1",), "--alpha_hidden_mse"),
    (("--teacher_layers=1,2",), "--teacher_layers"),
    (("--teacher_layers=one",), "--teacher_layers"),
    ((_TAUGHT, "--teacher_layers=1,2"), "--teacher_layers"),
    ((_TAUGHT, "--alpha_hidden_cos=1", "--teacher_layers=1"), "--teacher_layers"),
    ((_TAUGHT, "--alpha_hidden_cos=1", "--teacher_layers=1,9"), "--teacher_layers"),
    ((_TAUGHT, "--alpha_hidden_cos=1", "--teacher_layers=0,0"), "--teacher_layers"),
    ((_TAUGHT, "--teacher_type=masked_bert"), "--teacher_type"),
    ((_TAUGHT, "--teacher_type=distilbert"), "--teacher_type"),
    ((_TAUGHT, "--temperature=-1"), "--temperature"),
    ((_TAUGHT, "--alpha_ce=nan"), "--alpha_ce"),
    ((_TAUGHT, "--alpha_ce=-1", "--alpha_distil=1"), "--alpha_ce"),
    (("--teacher_name_or_path={world}/mrpc",), "mrpc"),
    (("--teacher_name_or_path={world}/distilbert/teacher",), "teacher"),
    # Models.
    (("--model_name_or_path={world}/mrpc",), "mrpc"),
    (("--model_name_or_path={world}/gpt2/teacher",), "gpt2"),
    (("--tokenizer_name={world}/mrpc",), "mrpc"),
    (("--config_name={world}/mrpc",), "mrpc"),
    (("--model_name_or_path={finished}", "--pruning_method=magnitude"), "--pruning_method"),
    (("--model_name_or_path={finished}", "--mask_init=kaiming"), "--mask_init"),
    (("--model_name_or_path={finished}", "--mask_scale=2"), "--mask_scale"),
    (("--model_name_or_path={finished}", "--model_type=bert", "--do_train"), "--model_type"),
    (("--max_seq_length=1",), "--max_seq_length"),
    (("--max_seq_length=3",), "--max_seq_length"),
    (("--max_seq_length=100000",), "--max_seq_length"),
    # Numbers.
    (("--num_workers=-1",), "--num_workers"),
    (("--warmup_steps=1.5",), "--warmup_steps"),
    (("--save_total_limit=-3",), "--save_total_limit"),
    (("--learning_rate=inf", "--mask_scores_learning_rate=nan"), "--learning_rate"),
    (("--weight_decay=nan",), "--weight_decay"),
    (("--adam_epsilon=-1e-8",), "--adam_epsilon"),
    (("--max_grad_norm=nan",), "--max_grad_norm"),
    (("--seed=1e3",), "--seed"),
    (("--per_gpu_train_batch_size=99999999999999999999",), "--per_gpu_train_batch_size"),
    (("--save_steps=1" + "0" * 400,), "--save_steps"),
    (("--no-learning_rate",), "--no-learning_rate"),
    (("--global_topk=yes",), "--global_topk"),
    (("positional",), "positional"),
)
_CUT_ONLY = ("--num_train_epochs=0", "--max_steps=-1")
PLAIN: tuple[tuple[tuple[str, ...], str], ...] = (
    # How much is to stay.
    (("--keep=0",), "--keep"),
    (("--keep=-0.5",), "--keep"),
    (("--keep=1.5",), "--keep"),
    (("--keep=25",), "--keep"),
    (("--keep=nan",), "--keep"),
    (("--keep", "half"), "--keep"),
    (("--keep=1e-9",), "--keep"),
    (("--keep=1e-9", "--granularity=unstructured"), "--keep"),
    (("--keep",), "--keep"),
    (("--keep", "0.25", "0.5"), "--keep"),
    (("--keep", "0.5", "0.5"), "--keep"),
    (("--keep", "0.5", "0"), "--keep"),
    (("--keep=0.5", "--final_threshold=0.5"), "--keep"),
    (("--keep=0.5", "--speedup=2"), "--speedup"),
    (("--keep", "0.5", "0.25", "--recipe=paper"), "--keep"),
    (("--speedup=0.5",), "--speedup"),
    (("--speedup=inf",), "--speedup"),
    (("--speedup=nan",), "--speedup"),
    (("--speedup=2", "3"), "3"),
    (("--speedup=2",), "--speedup_length"),
    (("--speedup=2", "--speedup_length=0"), "--speedup_length"),
    (("--speedup=2", "--speedup_batch_size=0"), "--speedup_batch_size"),
    (("--speedup=2", "--speedup_engine=java"), "--speedup_engine"),
    (("--speedup=2", "--granularity=unstructured"), "--speedup"),
    # What is pruned, and how.
    (("--granularity=heads",), "--granularity"),
    (("--granularity=structured", "--pruning_method=magnitude"), "--granularity"),
    (("--granularity=structured", "--model_type=bert"), "--granularity"),
    (("--pruning_method=topK", *_CUT_ONLY), "--num_train_epochs"),
    (_CUT_ONLY, "--num_train_epochs"),
    (("--num_train_epochs=0", "--max_steps=6"), "--num_train_epochs"),
    ((*_CUT_ONLY, "--recipe=paper", "--dense_first"), "--num_train_epochs"),
    (("--recipe=best",), "--recipe"),
    (("--save_dtype=int8",), "--save_dtype"),
    (("--dense_first=yes",), "--dense_first"),
    (("--unlabeled_file={world}/nowhere.txt",), "nowhere.txt"),
    (("--model_name_or_path={world}/mrpc",), "mrpc"),
)
DISTILLER_FLAGS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("--student_type=gpt2", "--teacher_type=gpt2"), "--student_type"),
    (("--student_type=roberta",), "--teacher_type"),
    (("--student_type=bert", "--teacher_type=roberta"), "--teacher_type"),
    (("--student_type=gpt2", "--teacher_type=bert", "--no-mlm"), "--teacher_type"),
    (("--student_type=gpt2", "--teacher_type=gpt2", "--no-mlm", "--restrict_ce_to_mask"), "--restrict_ce_to_mask"),
    (("--student_type=gpt2", "--teacher_type=gpt2", "--no-mlm", "--alpha_mlm=1"), "--alpha_mlm"),
    (("--student_type=gpt2", "--teacher_type=gpt2", "--no-mlm", "--freeze_token_type_embds"), "--freeze_token_type"),
    (("--alpha_ce=0", "--alpha_mlm=0", "--alpha_cos=1"), "--alpha_ce"),
    (("--alpha_ce=nan",), "--alpha_ce"),
    (("--alpha_mse=-1",), "--alpha_mse"),
    (("--word_mask=0.5", "--word_keep=0.5", "--word_rand=0.5"), "--word_mask"),
    (("--word_mask=-0.1", "--word_keep=1.0"), "--word_mask"),
    (("--word_mask=nan",), "--word_mask"),
    (("--mlm_mask_prop=0",), "--mlm_mask_prop"),
    (("--mlm_smoothing=-1",), "--mlm_smoothing"),
    (("--warmup_prop=-0.1",), "--warmup_prop"),
    (("--warmup_prop=nan",), "--warmup_prop"),
    (("--n_epoch=0",), "--n_epoch"),
    (("--n_epoch=1.5",), "--n_epoch"),
    (("--batch_size=99999999999999999999",), "--batch_size"),
    (("--n_epoch=1" + "0" * 400,), "--n_epoch"),
    (("--n_epoch=-1" + "0" * 400,), "--n_epoch"),
    (("--n_gpu=-1",), "--n_gpu"),
    (("--save_total_limit=0",), "--save_total_limit"),
    (("--log_interval=0",), "--log_interval"),
    (("--checkpoint_interval=0",), "--checkpoint_interval"),
    (("--initializer_range=0",), "--initializer_range"),
    (("--adam_epsilon=0",), "--adam_epsilon"),
    (("--seed=4294967296",), "--seed"),
    (("--fp16", "--fp16_opt_level=O5"), "--fp16_opt_level"),
    (("--student_config={world}/mrpc",), "mrpc"),
    (("--student_config={world}/bert",), "distilbert"),
    (("--teacher_name={world}/mrpc",), "mrpc"),
    (("--teacher_name={world}/roberta/teacher",), "roberta"),
    (("--data_file={world}/bert",), "bert"),
    (("--data_file={world}/mrpc",), "mrpc"),
    (("--token_counts={world}/mrpc",), "mrpc"),
    (("--student_pretrained_weights={world}/mrpc",), "mrpc"),
    (("--student_pretrained_weights={world}/roberta/teacher",), "--student_pretrained_weights"),
)
TOOLS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("bertarize", ("--model_name_or_path={world}/bert",), "not masked"),
    ("bertarize", ("--model_name_or_path={finished}", "--threshold=30"), "--threshold"),
    ("bertarize", ("--model_name_or_path={finished}", "--threshold=nan"), "--threshold"),
    ("bertarize", ("--model_name_or_path={finished}", "--pruning_method=l0", "--threshold=0.1"), "--threshold"),
    ("bertarize", ("--model_name_or_path={finished}", "--pruning_method=magnitude"), "--threshold"),
    ("bertarize", ("--model_name_or_path={finished}", "--pruning_method=topk"), "--pruning_method"),
    ("bertarize", ("--model_name_or_path={finished}", "--target_model_path={world}/mrpc"), "--output"),
    ("bertarize", ("--model_name_or_path={finished}", "--target_model_path={finished}"), "--output"),
    ("bertarize", ("--model_name_or_path={world}/nowhere",), "--model_name_or_path"),
    ("bertarize", (), "--model_name_or_path"),
    ("storage", ("--model_name_or_path={finished}",), "--package"),
    ("storage", ("--model_name_or_path={finished}", "--package={world}/mrpc/dev.tsv"), "--output"),
    ("storage", ("--model_name_or_path={finished}", "--package={world}/mrpc"), "--output"),
    ("storage", ("--model_name_or_path={finished}", "--package={world}/p", "--weights=int4"), "--weights"),
    ("storage", ("--model_name_or_path={world}/bert", "--package={world}/p", "--threshold=0.1"), "--threshold"),
    ("storage", ("--model_name_or_path={world}/mrpc", "--package={world}/p"), "--model_name_or_path"),
    ("counts", ("--model_name_or_path={world}/bert", "--pruning_method=topK"), "--pruning_method"),
    ("counts", ("--model_name_or_path={world}/mrpc/dev.tsv",), "dev.tsv"),
    ("counts", ("--model_name_or_path={finished}", "--picture={world}/a.exe"), "a.exe"),
    ("counts", ("--model_name_or_path={finished}", "--picture={world}"), "{world}"),
    ("pictures", ("--output={world}/a.png",), "--model_name_or_path"),
    ("pictures", ("--model_dir={finished}", "--image=a.png", "--saveas={world}/a.png"), "--image"),
    ("pictures", ("--image=a.png", "--saveas={world}/a.png"), "--boxes"),
    ("pictures", ("--model_dir={finished}", "--boxes=a.json", "--saveas={world}/a.png"), "--boxes"),
    ("pictures", ("--model_dir={finished}", "--picture=mask", "--saveas={world}/a.png"), "--matrix"),
    ("pictures", ("--model_dir={finished}", "--matrix=query", "--saveas={world}/a.png"), "--matrix"),
    ("pictures", ("--model_dir={finished}", "--matrix=q", "--picture=curves", "--saveas={world}/a.png"), "--matrix"),
    (
        "pictures",
        ("--model_dir={finished}", "--compare={finished}", "--picture=all", "--saveas={world}/a"),
        "--compare",
    ),
    ("pictures", ("--model_dir={finished}", "--saveas={world}/a"), "picture format"),
    ("pictures", ("--model_dir={world}/mrpc", "--saveas={world}/a.png"), "--model_name_or_path"),
    ("pictures", ("--model_dir={finished}",), "--saveas"),
    ("corpus", ("binarize", "--file_path=a.txt", "--dump_file={world}/c"), "--tokenizer"),
    (
        "corpus",
        ("binarize", "--file_path={world}/nowhere", "--tokenizer={world}/bert", "--dump_file={world}/c"),
        "nowhere",
    ),
    ("corpus", ("{text}", "--min_length=40"), "--min_length"),
    ("corpus", ("{text}", "--max_length=500"), "--max_length"),
    ("corpus", ("{text}", "--min_length=9", "--max_length=5"), "--min_length"),
    ("corpus", ("{text}", "--max_unknown=0"), "--max_unknown"),
    ("corpus", ("{text}", "--max_unknown=2"), "--max_unknown"),
    ("corpus", ("{text}", "--min_length=31"), "--min_length"),
    ("corpus", ("split",), "split"),
    (
        "student",
        ("--model_name={world}/bert", "--random_head", "--dump_checkpoint={world}/s", "--num_layers=1", "--layers=0"),
        "--layers",
    ),
    (
        "student",
        ("--model_name={world}/bert", "--random_head", "--dump_checkpoint={world}/s", "--num_layers=99"),
        "layers",
    ),
    ("student", ("--model_name={world}/bert", "--random_head", "--dump_checkpoint={world}/s", "--layers=7"), "layers"),
    ("student", ("--model_name={world}/mrpc", "--dump_checkpoint={world}/s"), "mrpc"),
    ("student", ("--model_name={world}/bert", "--random_head", "--dump_checkpoint={world}/mrpc"), "mrpc"),
)
PROGRAMS: dict[str, Callable] = {
    "bertarize": bertarize.main,
    "storage": storage.main,
    "counts": counts_parameters.main,
    "pictures": visualizing_image.main,
    "corpus": corpus.main,
    "student": student_init.main,
}


def answer(main: Callable, argv: list[str]) -> tuple[object, list[str]]:
    """Exit status (None: it did not exit) and the lines on standard error that report mistakes."""
    errors, status = io.StringIO(), None
    with redirect_stderr(errors), redirect_stdout(io.StringIO()):
        try:
            main(argv)
        except SystemExit as end:
            status = end.code
        except Exception as error:  # the mistake was not foreseen
            status = f"{type(error).__name__}: {error}"
    return status, [line for line in errors.getvalue().splitlines() if "error: " in line]


def try_all(world: World, known: Uninterrupted) -> list[Tally]:
    """The whole grid."""
    finished = known.of(world.trainer("movement"))[0]
    student = world.distiller("distilbert")
    for other in ("roberta", "gpt2"):
        world.distiller(other)
    text = str(world.folder / "distilbert" / "text.txt")
    binarize = ["binarize", f"--file_path={text}", f"--tokenizer={world.folder}/bert", f"--dump_file={world.folder}/c"]
    trainer, plain, output = world.trainer("movement"), world.plain(), world.folder / "run" / "out"

    def filled(flags: tuple[str, ...]) -> list[str]:
        places = {"world": str(world.folder), "finished": str(finished), "text": "{text}"}
        flat = [flag.format(**places) for flag in flags]
        return [part for flag in flat for part in (binarize if flag == "{text}" else [flag])]

    grids = {
        "trainer": [(masked_run_glue.main, trainer.argv(output, *filled(f)), *filled((n,))) for f, n in TRAINER_FLAGS],
        "trainer in phases": [(masked_run_glue.main, plain.argv(output, *filled(f)), *filled((n,))) for f, n in PLAIN],
        "distiller": [(distiller.main, student.argv(output, *filled(f)), *filled((n,))) for f, n in DISTILLER_FLAGS],
        "exports, pictures, corpora": [(PROGRAMS[p], filled(f), *filled((n,))) for p, f, n in TOOLS],
    }
    return [_tally(name, grid, world, output, finished) for name, grid in grids.items()]


def _tally(name: str, grid: list[tuple], world: World, output: Path, finished: Path) -> Tally:
    with Clock(Tally(f"contradictory flags, {name}", unit="command lines")) as tally:
        before = {path: path.stat().st_mtime_ns for path in world.folder.rglob("*") if path.is_file()}
        whole = evidence(finished)
        for main, argv, named in grid:
            status, lines = answer(main, argv)
            said = f"{' '.join(argv[-3:])}: status {status}, {lines}"
            tally.count(None if status == 2 and lines and named in lines[0] + lines[-1] else said)
        after = {path: path.stat().st_mtime_ns for path in world.folder.rglob("*") if path.is_file()}
        wrote = [str(path) for path in after.keys() - before.keys() if "/caches/" not in str(path)]
        if wrote or before.items() - after.items() or evidence(finished) != whole or output.exists():
            tally.lost.append(f"something was written: {wrote[:3]}")
    return tally


def long_form(folder: Path, seed: int = 0) -> list[Tally]:
    """The whole grid: it takes no longer form."""
    return try_all(World(folder / "world"), Uninterrupted(folder / "uninterrupted"))
