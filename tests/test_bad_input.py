"""What a user can get wrong: one clear line that names the flag or the file, exit status 2, and nothing lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny

import masked_run_glue
from emmental.command_line import leave_if, user_mistakes
from emmental.errors import UserError

FLAGS = {
    "no task": (["--task_name"], "--task_name is required"),
    "unknown task": (["--task_name=glue"], "--task_name 'glue' is none of"),
    "unknown flag": (["--learning_rat=1"], "unrecognized arguments: --learning_rat=1"),
    "abbreviated flag": (["--learning=1"], "unrecognized arguments"),
    "no number": (["--seed=many"], "argument --seed: invalid int value: 'many'"),
    "model type": (["--model_type=roberta"], "--model_type roberta, but"),
    "method": (["--pruning_method=topM"], "--pruning_method accepts topK, threshold"),
    "mask init": (["--mask_init=zeros"], "--mask_init accepts constant, uniform, kaiming, magnitude"),
    "mask scale": (["--mask_scale=nan"], "--mask_scale accepts a number, not nan"),
    "uniform scale": (["--mask_init=uniform", "--mask_scale=-1"], "--mask_scale accepts a number from 0"),
    "regularization": (["--regularization=l2"], "--regularization accepts l1, l0, none"),
    "teacher type": (["--teacher_type=gpt"], "--teacher_type accepts masked_bert, masked_roberta"),
    "opt level": (["--fp16_opt_level=O4"], "--fp16_opt_level accepts O0, O1, O2, O3"),
    "batch 0": (["--per_gpu_train_batch_size=0"], "--per_gpu_train_batch_size accepts numbers from 1"),
    "eval batch": (["--per_gpu_eval_batch_size=-8"], "--per_gpu_eval_batch_size accepts numbers from 1"),
    "accumulation": (["--gradient_accumulation_steps=0"], "--gradient_accumulation_steps accepts numbers from 1"),
    "rate below 0": (["--learning_rate=-1e-5"], "--learning_rate accepts numbers from 0"),
    "rate NaN": (["--learning_rate=nan"], "--learning_rate accepts numbers from 0, not nan"),
    "scores rate": (["--mask_scores_learning_rate=inf"], "--mask_scores_learning_rate accepts numbers from 0"),
    "decay": (["--weight_decay=-0.1"], "--weight_decay accepts numbers from 0"),
    "epsilon": (["--adam_epsilon=0"], "--adam_epsilon accepts numbers above 0"),
    "clipping": (["--max_grad_norm=-1"], "--max_grad_norm accepts numbers from 0"),
    "epochs": (["--num_train_epochs=0"], "--num_train_epochs accepts numbers above 0"),
    "steps": (["--max_steps=0"], "--max_steps accepts a number of updates from 1"),
    "warm-up": (["--warmup_steps=-1"], "--warmup_steps accepts numbers from 0"),
    "initial warm-up": (["--initial_warmup=-1"], "--initial_warmup accepts numbers from 0"),
    "final warm-up": (["--final_warmup=-2"], "--final_warmup accepts numbers from 0"),
    "temperature": (["--temperature=0"], "--temperature accepts numbers above 0"),
    "alpha": (["--alpha_distil=-0.5"], "--alpha_distil accepts numbers from 0"),
    "save steps": (["--save_steps=0"], "--save_steps accepts numbers from 1"),
    "logging steps": (["--logging_steps=0"], "--logging_steps accepts numbers from 1"),
    "limit": (["--save_total_limit=0"], "--save_total_limit accepts numbers from 1"),
    "seed": (["--seed=-1"], "--seed accepts numbers from 0"),
    "large seed": (["--seed=4294967296"], "--seed accepts numbers below"),
    "percent": (["--final_threshold=15"], "--final_threshold is the share of weights that stay"),
    "negative share": (["--final_threshold=-0.1"], "--final_threshold is the share of weights that stay"),
    "nothing left": (["--final_threshold=0"], "--final_threshold is the share of weights that stay"),
    "growing": (["--initial_threshold=0.2", "--final_threshold=0.5"], "weights would grow back"),
    "soft start": (
        ["--pruning_method=sigmoied_threshold", "--initial_threshold=1"],
        "--initial_threshold is compared with sigmoid(scores)",
    ),
    "soft falls": (
        ["--pruning_method=sigmoid_threshold", "--initial_threshold=0.5", "--final_threshold=0.1"],
        "must rise",
    ),
    "threshold falls": (["--pruning_method=threshold", "--initial_threshold=1", "--final_threshold=0"], "must rise"),
    "threshold NaN": (["--pruning_method=threshold", "--final_threshold=nan"], "--final_threshold accepts a finite"),
    "structured threshold": (
        ["--granularity=structured", "--pruning_method=threshold"],
        "--granularity structured chooses heads and neurons by their Fisher information",
    ),
    "structured surgeon": (
        ["--granularity=structured", "--pruning_method=brain_surgeon"],
        "--granularity structured chooses heads and neurons by their Fisher information",
    ),
    "surgeon with a schedule": (
        ["--recipe=auto", "--pruning_method=brain_surgeon", "--initial_threshold=0.5"],
        "--pruning_method brain_surgeon prunes before training: give --keep",
    ),
    "surgeon of the paper": (
        ["--recipe=paper", "--pruning_method=brain_surgeon"],
        "--pruning_method brain_surgeon prunes before training: give --keep",
    ),
    "global magnitude": (["--global_topk", "--pruning_method=magnitude"], "--global_topk is defined for"),
    "global l0": (["--global_topk", "--pruning_method=l0"], "--global_topk is defined for"),
    "magnitude penalty": (
        ["--pruning_method=magnitude", "--regularization=l1", "--final_lambda=1"],
        "--regularization needs mask scores",
    ),
    "penalty without scores": (
        ["--pruning_method=fisher", "--regularization=l1", "--final_lambda=1"],
        "--pruning_method fisher learns none",
    ),
    "lambda alone": (["--final_lambda=10"], "--final_lambda weighs a penalty"),
    "penalty alone": (["--regularization=l1"], "does nothing without --final_lambda"),
    "lambda": (["--regularization=l1", "--final_lambda=-1"], "--final_lambda accepts numbers from 0"),
    "two precisions": (["--fp16", "--bf16"], "--fp16 and --bf16 exclude each other"),
    "apex on CPU": (["--use_apex", "--no_cuda"], "--use_apex runs on GPUs only"),
    "hub": (["--push_to_hub", "--dry_run"], "--push_to_hub contradicts --dry_run"),
    "hub in no reach": (["--push_to_hub"], "--push_to_hub needs the Hub, but the environment variable HF_HUB_OFFLINE"),
    "teacher type alone": (["--teacher_type=bert"], "--teacher_type does nothing without a teacher"),
    "files and task": (["--train_file=x.csv"], "--train_file cannot be used with --data_dir or --task_name"),
    "short": (["--max_seq_length=2"], "--max_seq_length accepts numbers from 3"),
    "too long": (["--max_seq_length=33"], "--max_seq_length 33 is more than the 32 tokens"),
    "warm-up longer than the run": (["--warmup_steps=50"], "--warmup_steps 50 is longer than"),
    "no pruning phase": (["--warmup_steps=4"], "the threshold has no update to move in"),
    "one update": (["--max_steps=1"], "the threshold has no update to move in"),
    "evaluation in no training": (["--do_eval", "--evaluate_during_training"], "needs --do_train"),
    "no such model": (
        ["--model_name_or_path=/nowhere/bert"],
        "--model_name_or_path /nowhere/bert: there is no such",
    ),
    "no such tokenizer": (
        ["--tokenizer_name=/nowhere/bert"],
        "--tokenizer_name /nowhere/bert: there is no such",
    ),
    "no such configuration": (["--config_name=/nowhere/bert"], "--config_name /nowhere/bert: there is no such"),
    "no such teacher": (
        ["--teacher_name_or_path=/nowhere/bert"],
        "--teacher_name_or_path /nowhere/bert: there is no such",
    ),
    "Hub not reached": (["--model_name_or_path=a/b"], "--model_name_or_path a/b cannot be loaded"),
    "nothing to learn from": (
        ["--teacher_name_or_path=/nowhere/bert", "--alpha_ce=0", "--alpha_distil=0"],
        "--alpha_ce 0 and --alpha_distil 0 leave nothing to learn from",
    ),
    "no such folder": (["--data_dir=/nowhere"], "/nowhere"),
    "ax to train": (["--task_name=ax"], "--task_name ax has no training data; use --do_predict alone"),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    tiny.write_task(folder / "mrpc", "mrpc")
    tiny.save_bert(folder / "bert")
    return folder


def command(world: Path, output: Path) -> list[str]:
    return [
        *("--data_dir", str(world / "mrpc"), "--task_name", "mrpc", "--model_name_or_path", str(world / "bert")),
        *("--output_dir", str(output), "--feature_cache_dir", str(world / "cache"), "--max_seq_length", "32"),
        *(
            "--recipe",
            "paper",
            "--max_steps",
            "6",
            "--warmup_steps",
            "1",
            "--save_steps",
            "3",
            "--no_cuda",
            "--no-pictures",
        ),
    ]


def refusal(argv: list[str], capsys: pytest.CaptureFixture) -> str:
    """The one line with which the trainer refuses `argv`."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        masked_run_glue.main(argv)
    assert ended.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1, lines
    return lines[0].split("error: ", 1)[1]


def test_an_output_folder_whose_name_is_not_utf8(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    argv = command(world, Path(f"{tmp_path}/caf\udce9"))
    assert refusal(argv, capsys).startswith("--output_dir accepts names in UTF-8")


@pytest.mark.parametrize("case", FLAGS)
def test_wrong_flags(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture, case: str) -> None:
    changed, expected = FLAGS[case]
    argv = command(world, tmp_path / "out")
    if changed == ["--task_name"]:
        index = argv.index("--task_name")
        argv = argv[:index] + argv[index + 2 :]
    else:
        argv += changed
    assert expected in refusal(argv, capsys)
    assert not (tmp_path / "out" / "training_args.json").exists()


def _lines(folder: Path) -> list[str]:
    return (folder / "train.tsv").read_text().splitlines()


def _write(folder: Path, lines: list[str], ending: str = "\n") -> None:
    (folder / "train.tsv").write_text("\n".join(lines) + ending)


def missing_column(folder: Path) -> None:
    lines = _lines(folder)
    _write(folder, [*lines[:3], lines[3].rsplit("\t", 1)[0], *lines[4:]])


def unknown_label(folder: Path) -> None:
    lines = _lines(folder)
    _write(folder, [*lines[:2], "2" + lines[2][1:], *lines[3:]])


def header_alone(folder: Path) -> None:
    _write(folder, _lines(folder)[:1])


def empty_file(folder: Path) -> None:
    (folder / "train.tsv").write_text("")


def not_text(folder: Path) -> None:
    (folder / "train.tsv").write_bytes(b"Quality\t#1 ID\n\xff\xfe\x00")


def no_train_file(folder: Path) -> None:
    (folder / "train.tsv").unlink()


def no_dev_file(folder: Path) -> None:
    (folder / "dev.tsv").unlink()


DATA = {
    missing_column: "train.tsv:4",
    unknown_label: "train.tsv:3",
    header_alone: "train.tsv",
    empty_file: "train.tsv",
    not_text: "train.tsv",
    no_train_file: "train.tsv",
    no_dev_file: "dev.tsv",
}


@pytest.mark.parametrize("spoil", DATA, ids=lambda spoil: spoil.__name__)
def test_wrong_data(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture, spoil: Callable[[Path], None]) -> None:
    shutil.copytree(world / "mrpc", tmp_path / "mrpc")
    spoil(tmp_path / "mrpc")
    argv = [*command(world, tmp_path / "out"), "--data_dir", str(tmp_path / "mrpc")]
    assert DATA[spoil] in refusal(argv, capsys)
    assert not (tmp_path / "out").exists()


def other_vocabulary(teacher: Path) -> None:
    tokenizer = json.loads((teacher / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["kasa"], vocabulary["kate"] = vocabulary["kate"], vocabulary["kasa"]
    (teacher / "tokenizer.json").write_text(json.dumps(tokenizer))


def other_outputs(teacher: Path) -> None:
    tiny.save_bert(teacher, num_labels=3)


def truncated_weights(teacher: Path) -> None:
    (teacher / "model.safetensors").write_bytes((teacher / "model.safetensors").read_bytes()[:500])


def no_configuration(teacher: Path) -> None:
    (teacher / "config.json").write_text("{")


@pytest.mark.parametrize("where", [["--train_file", "nowhere.csv"], ["--data_dir", "nowhere", "--task_name", "mrpc"]])
def test_files_are_looked_for_before_the_model(tmp_path, capsys, monkeypatch, where) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        masked_run_glue.main([*where, "--model_name_or_path", "no-such-model"])
    assert f"{where[0]} nowhere" in capsys.readouterr().err.splitlines()[-1]


def test_a_model_without_its_tokenizer(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shutil.copytree(world / "bert", tmp_path / "bare")
    for file in (tmp_path / "bare").glob("tokenizer*"):
        file.unlink()
    argv = [*command(world, tmp_path / "out"), "--model_name_or_path", str(tmp_path / "bare")]
    assert "bare holds no tokenizer; it needs a tokenizer.json" in refusal(argv, capsys)
    assert not (tmp_path / "out").exists()


TEACHERS = {
    other_vocabulary: "another tokenizer than the student",
    other_outputs: "has 3 outputs, --task_name mrpc needs 2",
    truncated_weights: "teacher: a .safetensors file is damaged",
    no_configuration: "config.json",
}


@pytest.mark.parametrize("spoil", TEACHERS, ids=lambda spoil: spoil.__name__)
def test_wrong_teachers(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture, spoil: Callable[[Path], None]
) -> None:
    shutil.copytree(world / "bert", tmp_path / "teacher")
    spoil(tmp_path / "teacher")
    argv = [*command(world, tmp_path / "out"), "--teacher_name_or_path", str(tmp_path / "teacher")]
    assert TEACHERS[spoil] in refusal(argv, capsys)
    assert not list((tmp_path / "out").glob("*.safetensors"))


@pytest.fixture
def finished(world: Path, tmp_path: Path) -> Path:
    masked_run_glue.main(command(world, tmp_path / "out"))
    return tmp_path / "out"


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (["--seed=7"], "seed 42 -> 7"),
        (["--learning_rate=1e-3"], "learning_rate 5e-05 -> 0.001"),
        (["--pruning_method=magnitude"], "pruning_method 'topK' -> 'magnitude'"),
        (["--per_gpu_train_batch_size=4"], "per_gpu_train_batch_size 8 -> 4"),
        (["--max_seq_length=16"], "max_seq_length 32 -> 16"),
    ],
)
def test_another_run_in_the_same_folder_is_refused(
    world: Path, finished: Path, capsys: pytest.CaptureFixture, changed: list[str], named: str
) -> None:
    before = snapshot(finished)
    line = refusal([*command(world, finished), *changed], capsys)
    assert named in line
    assert "--overwrite_output_dir" in line
    assert snapshot(finished) == before


def test_other_data_in_the_same_folder_is_refused(
    world: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    tiny.write_task(tmp_path / "mrpc", "mrpc", seed=1)
    assert "data " in refusal([*command(world, finished), "--data_dir", str(tmp_path / "mrpc")], capsys)


def test_only_damaged_checkpoints_are_refused_and_kept(
    world: Path, finished: Path, capsys: pytest.CaptureFixture
) -> None:
    for file in finished.glob("checkpoint-*/model.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    before = snapshot(finished)
    assert "is damaged" in refusal(command(world, finished), capsys)
    assert snapshot(finished) == before


def test_flags_that_contradict_a_pruned_model_are_refused(
    world: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    argv = [*command(world, tmp_path / "other"), "--model_name_or_path", str(finished), "--pruning_method", "l0"]
    assert "--pruning_method l0 contradicts" in refusal(argv, capsys)
    argv = [*command(world, tmp_path / "other"), "--model_name_or_path", str(finished), "--model_type", "bert"]
    assert "is masked" in refusal(argv, capsys)


def test_a_model_that_is_not_fine_tuned_is_not_evaluated(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from transformers import BertModel

    BertModel.from_pretrained(world / "bert").save_pretrained(tmp_path / "bare")
    tiny.tokenizer().save_pretrained(tmp_path / "bare")
    argv = [*command(world, tmp_path / "out"), "--model_name_or_path", str(tmp_path / "bare"), "--do_eval"]
    assert "is not fine-tuned" in refusal(argv, capsys)


def test_a_folder_in_use_is_refused(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from emmental.runs.output_folder import OutputFolder

    held = OutputFolder(tmp_path / "out")
    assert "is in use by another run" in refusal(command(world, tmp_path / "out"), capsys)
    held.close()
    assert masked_run_glue.main(command(world, tmp_path / "out"))["acc"] >= 0


def test_a_file_in_the_place_of_the_output_folder_is_refused(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "out").write_text("mine")
    assert "cannot be written to" in refusal(command(world, tmp_path / "out"), capsys)
    assert (tmp_path / "out").read_text() == "mine"


def test_compiling_without_a_compiler(world, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    message = refusal([*command(world, tmp_path / "out"), "--torch_compile"], capsys)
    assert "--torch_compile needs a C++ compiler, g++ or clang++, but none was found" in message


def test_several_mistakes_are_told_together(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        masked_run_glue.main(["--task_name", "mrpc", "--seed", "-1", "--temperature", "0"])
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all("error: --" in line for line in lines)


def test_help_is_grouped(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        masked_run_glue.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for group in ("task and data:", "pruning:", "distillation:", "optimization:"):
        assert group in text


def test_torchrun_is_told_what_was_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(report))
    with pytest.raises(SystemExit):
        leave_if(["--seed accepts numbers"], "trainer.py")
    assert json.loads(report.read_text()) == {"message": "trainer.py: error: --seed accepts numbers"}
    with pytest.raises(SystemExit), user_mistakes():
        raise UserError("no such\nfolder")
    assert json.loads(report.read_text())["message"].endswith("error: no such folder")
