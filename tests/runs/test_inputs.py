"""Nothing that a run reads is removed or replaced, however its place is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tiny
import tiny_lm

import distiller
import masked_run_glue
from emmental.runs.output_folder import OutputFolder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data, and with the finished run `x`: its model, that of its dense phase, and a checkpoint."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    tiny.write_task(tmp_path / "mrpc", "mrpc")
    tiny.save_bert(tmp_path / "bert")
    for place in ("x", "x/dense", "x/keep-0.5", "x/checkpoint-10", "x/dense/checkpoint-10"):
        tiny.save_bert(tmp_path / place)
        if "checkpoint" not in place:
            output = OutputFolder(tmp_path / place)
            output.adopt(*(file.name for file in (tmp_path / place).iterdir() if file.suffix != ".lock"))
            output.close()
    (tmp_path / "x" / "link.safetensors").symlink_to(tmp_path / "bert" / "model.safetensors")
    (tmp_path / "link").symlink_to(tmp_path / "x")
    return tmp_path


def refusal(main: object, argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command is refused."""
    with pytest.raises(SystemExit) as left:
        main(argv)
    assert left.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    return line.partition("error: ")[2]


@pytest.mark.parametrize("afresh", [True, False])
@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize(
    ("model", "output"),
    [
        ("x", "x"),
        ("{root}/x", "x"),
        ("x", "{root}/mrpc/../x/"),
        ("link", "x"),
        ("x", "link"),
        ("x", "~/x"),
        ("x/dense", "x"),
        ("x/keep-0.5", "x"),
        ("x/checkpoint-10", "link"),
        ("x/dense/checkpoint-10", "x"),
        ("link/dense", "x"),
    ],
)
def test_the_model_stays(world, capsys, model, output, plain, afresh):
    before = contents(world)
    model, output = (name.replace("{root}", str(world)) for name in (model, output))
    argv = ["--data_dir", "mrpc", "--task_name", "mrpc", "--model_name_or_path", model, f"--output_dir={output}"]
    argv += ["--model_type", "bert"] * plain + ["--overwrite_output_dir"] * afresh
    line = refusal(masked_run_glue.main, argv, capsys)
    expected = output.replace("~", str(world))
    assert line == (
        f"--output_dir {Path(expected)} would remove or replace --model_name_or_path {model}, which is read; "
        "give another place"
    )
    assert contents(world) == before


@pytest.mark.parametrize(
    "flags",
    [
        ("--teacher_name_or_path", "x/dense"),
        ("--tokenizer_name", "x"),
        ("--config_name", "x"),
        ("--config_name", "x/config.json"),
        ("--unlabeled_file", "more.txt", "x/answers.tsv"),
        ("--feature_cache_dir", "x/checkpoint-10"),
    ],
)
def test_whatever_else_is_read_stays(world, capsys, flags):
    for name in ("more.txt", "x/answers.tsv"):
        (world / name).write_text("kasa lote\n")
    output = OutputFolder(world / "x")
    output.adopt("answers.tsv")
    output.close()
    before = contents(world)
    argv = ["--data_dir", "mrpc", "--task_name", "mrpc", "--model_name_or_path", "bert", "--overwrite_output_dir"]
    line = refusal(masked_run_glue.main, [*argv, "--output_dir", "x", *flags], capsys)
    assert line.startswith(f"--output_dir x would remove or replace {flags[0]} {flags[-1]}, ")
    assert contents(world) == before


def test_own_files_that_an_earlier_run_wrote_stay(world, capsys):
    (world / "x" / "custom.tsv").write_text("sentence1\tlabel\nkasa lote\tgood\n")
    output = OutputFolder(world / "x")
    output.adopt("custom.tsv")
    output.close()
    for flag in ("--train_file", "--validation_file", "--test_file"):
        argv = ["--train_file", "a.tsv", "--validation_file", "a.tsv", "--output_dir", "x", flag, "link/custom.tsv"]
        line = refusal(masked_run_glue.main, argv, capsys)
        assert line.startswith(f"--output_dir x would remove or replace {flag} link/custom.tsv, ")


def test_places_where_nothing_is_lost_are_taken(world):
    """A model beside the run's own files, data in the output folder, an evaluation of the folder's own model."""
    common = ["--task_name", "mrpc", "--no-pictures", "--no-engines", "--no-floor", "--no_cuda", "--max_steps", "1"]
    common += ["--max_seq_length", "32", "--feature_cache_dir", "caches", "--model_type", "bert"]
    model = contents(world / "bert")
    for _ in range(2):
        argv = ["--data_dir", "mrpc", "--model_name_or_path", "bert", "--output_dir", ".", *common]
        masked_run_glue.main([*argv, "--overwrite_output_dir"])
    data = contents(world / "mrpc")
    masked_run_glue.main(["--data_dir", "mrpc", "--model_name_or_path", "bert", "--output_dir", "mrpc", *common])
    masked_run_glue.main(
        ["--data_dir", "mrpc", "--model_name_or_path", ".", "--output_dir", ".", "--do_eval", *common]
    )
    assert contents(world / "bert") == model
    assert data.items() <= contents(world / "mrpc").items()


@pytest.mark.parametrize("flag", ["--data_file", "--token_counts", "--student_pretrained_weights", "--teacher_name"])
def test_the_distiller_keeps_what_it_reads(tmp_path, capsys, flag):
    argv = tiny_lm.prepare(tmp_path / "world", "distilbert")
    output = OutputFolder(tmp_path / "out")
    place = tmp_path / "out" / ("checkpoint-2" if flag in ("--data_file", "--token_counts") else ".")
    tiny.save_bert(place)
    output.adopt("config.json", "model.safetensors")
    output.close()
    before = contents(tmp_path)
    given = [*argv, flag, str(place), "--dump_path", os.path.relpath(tmp_path / "out"), "--force"]
    line = refusal(distiller.main, given, capsys)
    assert f" would remove or replace {flag} {place}, which is read" in line
    assert contents(tmp_path) == before
