"""The command line of `distiller.py` on tiny models: every student, resuming, processes, and what it refuses."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import forked
import pytest
import tiny
import tiny_lm
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

import distiller
from distiller import Distiller
from emmental.atomic import verify_folder
from emmental.language_models.corpus import binarize, sequence_rules
from emmental.runs import loop

ROOT = Path(__file__).resolve().parents[1]
STUDENTS = ("distilbert", "roberta", "gpt2")
FAST = ["--batch_size", "4", "--gradient_accumulation_steps", "2", "--n_epoch", "2", "--n_gpu", "0"]
OFTEN = ["--log_interval", "3", "--checkpoint_interval", "4", "--learning_rate", "1e-3"]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """For each student type the flags that name teacher, corpus and configuration; the students have dropout."""
    folders = {student: tmp_path_factory.mktemp(student) for student in STUDENTS}
    return {student: tiny_lm.prepare(folder, student, dropout=0.1) for student, folder in folders.items()}


def command(flags: list[str], output: Path, *others: str) -> list[str]:
    return [*flags, *FAST, *OFTEN, "--dump_path", str(output), *others]


def rows(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "train_log.jsonl").read_text().splitlines()]


def refusal(argv: list[str], capsys: pytest.CaptureFixture) -> str:
    with pytest.raises(SystemExit) as raised:
        distiller.main(argv)
    errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert raised.value.code == 2
    assert len(errors) == 1, errors
    return errors[0]


@pytest.mark.parametrize("student", STUDENTS)
def test_every_student_trains_and_loads(worlds: dict[str, list[str]], tmp_path: Path, student: str) -> None:
    losses = ["--alpha_mse", "0.1", "--alpha_cos", "0.5", "--temperature", "1.5"]
    distiller.main(command(worlds[student], tmp_path / "out", *losses))
    output = tmp_path / "out"
    model = (AutoModelForCausalLM if student == "gpt2" else AutoModelForMaskedLM).from_pretrained(output)
    assert model.config.num_hidden_layers == 2
    assert AutoTokenizer.from_pretrained(output).get_vocab() == tiny.tokenizer().get_vocab()
    log = rows(output)
    # 22 sequences are 6 batches of 4: 3 updates an epoch, logged where 3 more batches are complete.
    assert [row["step"] for row in log] == [2, 3, 5, 6]
    assert [row["batches"] for row in log] == [4, 6, 10, 12]
    assert set(log[0]["losses"]) == {"ce", "clm" if student == "gpt2" else "mlm", "mse", "cos"}
    weights = {"ce": 0.5, "clm": 0.5, "mlm": 1.0, "mse": 0.1, "cos": 0.5}
    assert log[0]["loss"] == pytest.approx(sum(weights[name] * value for name, value in log[0]["losses"].items()))
    assert all("second" not in key for row in log for key in row)
    assert sorted(path.name for path in output.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    verify_folder(output / "checkpoint-6")


def test_a_number_of_updates_in_place_of_epochs(worlds: dict[str, list[str]], tmp_path: Path) -> None:
    distiller.main(command(worlds["distilbert"], tmp_path / "out", "--max_steps", "5"))
    assert rows(tmp_path / "out")[-1]["step"] == 5
    assert (tmp_path / "out" / "checkpoint-5").is_dir()


def test_tensorboard_has_losses_rates_speed_and_memory(worlds: dict[str, list[str]], tmp_path: Path) -> None:
    distiller.main(command(worlds["distilbert"], tmp_path / "out"))
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    events.Reload()
    wanted = {"train/loss", "losses/ce", "losses/mlm", "rates/weights", "gradient_norms/weights"}
    wanted |= {"speed/sequences_per_second", "speed/tokens_per_second", "memory/peak_gib"}
    assert wanted <= set(events.Tags()["scalars"])
    assert all(event.value > 0 for event in events.Scalars("speed/tokens_per_second"))
    assert [event.value for event in events.Scalars("losses/mlm")] == pytest.approx(
        [row["losses"]["mlm"] for row in rows(tmp_path / "out")]
    )


def test_the_student_learns(worlds: dict[str, list[str]], tmp_path: Path) -> None:
    training = [
        "--n_epoch",
        "20",
        "--gradient_accumulation_steps",
        "1",
        "--learning_rate",
        "1e-2",
        "--alpha_mse",
        "0.1",
    ]
    distiller.main(command(worlds["distilbert"], tmp_path / "out", *training, "--log_interval", "24"))
    first, *_, last = rows(tmp_path / "out")
    assert last["losses"]["ce"] < 0.7 * first["losses"]["ce"]
    assert last["losses"]["mse"] < 0.5 * first["losses"]["mse"]


@pytest.mark.parametrize(
    ("student", "kinds"),
    [("distilbert", ["position"]), ("roberta", ["position", "token_type"]), ("gpt2", ["position"])],
)
def test_frozen_embeddings_stay(worlds: dict[str, list[str]], tmp_path: Path, student: str, kinds: list[str]) -> None:
    flags = [{"position": "--freeze_pos_embs", "token_type": "--freeze_token_type_embds"}[kind] for kind in kinds]
    distiller.main(command(worlds[student], tmp_path / "start", "--learning_rate", "0"))
    distiller.main(command(worlds[student], tmp_path / "out", *flags))
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("start", "out"))
    places = {"gpt2": ["transformer.wpe"]}.get(student, [f"{student}.embeddings.{kind}_embeddings" for kind in kinds])
    frozen = {f"{place}.weight" for place in places}
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert frozen <= set(after)
    assert changed == set(after) - frozen


def results_of(output: Path) -> dict[str, bytes]:
    names = ("model.safetensors", "optimizer.safetensors", "rng.safetensors", "training_state.json")
    files = {f"checkpoint/{name}": output / "checkpoint-6" / name for name in names}
    files |= {name: output / name for name in ("model.safetensors", "train_log.jsonl")}
    return {name: path.read_bytes() for name, path in files.items()}


@pytest.mark.parametrize("student", STUDENTS)
def test_killed_and_resumed_is_the_same_bit_for_bit(
    worlds: dict[str, list[str]], tmp_path: Path, student: str
) -> None:
    flags = ["--alpha_cos", "0.5"]
    log = tmp_path / "log.txt"
    whole = command(worlds[student], tmp_path / "whole", *flags)
    assert forked.run(distiller.main, whole, log, lambda: None) == 0, log.read_text()
    argv = command(worlds[student], tmp_path / "killed", *flags)
    generator = random.Random(student)
    for kill in (
        forked.kill_at_call(Distiller, "step", generator.randint(3, 5)),
        forked.kill_at_call(loop, "prune_checkpoints", 1),
        forked.kill_at_call(Distiller, "step", 2),
    ):
        assert forked.run(distiller.main, argv, log, kill) == -signal.SIGKILL, log.read_text()
    assert forked.run(distiller.main, argv, log, lambda: None) == 0, log.read_text()
    interrupted, expected = results_of(tmp_path / "killed"), results_of(tmp_path / "whole")
    assert [name for name in expected if interrupted[name] != expected[name]] == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_saves_and_is_the_exit_status(worlds: dict[str, list[str]], tmp_path: Path, number: int) -> None:
    def stop_soon() -> None:
        signal.signal(number, signal.SIG_DFL)  # nohup ignores SIGHUP
        original = Distiller.step
        state = {"calls": 0}

        def step(self: Distiller, *inputs: object) -> bool:
            state["calls"] += 1
            if state["calls"] == 3:
                os.kill(os.getpid(), number)
            return original(self, *inputs)

        Distiller.step = step

    argv, log = command(worlds["gpt2"], tmp_path / "out"), tmp_path / "log.txt"
    assert forked.run(distiller.main, argv, log, stop_soon) == 128 + number, log.read_text()
    assert (tmp_path / "out" / "checkpoint-2").is_dir()
    assert not (tmp_path / "out" / "config.json").exists()
    assert forked.run(distiller.main, argv, log, lambda: None) == 0, log.read_text()
    assert forked.run(distiller.main, command(worlds["gpt2"], tmp_path / "whole"), log, lambda: None) == 0
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()


def test_nan_leaves_with_status_1_and_without_a_model(worlds: dict[str, list[str]], tmp_path: Path) -> None:
    argv, log = command(worlds["distilbert"], tmp_path / "out", "--learning_rate", "1e30"), tmp_path / "log.txt"
    assert forked.run(distiller.main, argv, log, lambda: None) == 1
    assert "NaN or infinite" in log.read_text() or "is nan" in log.read_text() or "is inf" in log.read_text()
    assert not (tmp_path / "out" / "model.safetensors").exists()


def status_of(flags: list[str], output: Path, processes: int, log: Path) -> int:
    # A large epsilon: Adam's first steps otherwise are the sign of gradients that rounding alone decides.
    argv = [*flags, "--dump_path", str(output), "--batch_size", str(8 // processes), "--adam_epsilon", "1e-3"]
    argv += ["--gradient_accumulation_steps", "2", "--n_epoch", "2", "--n_gpu", "0", *OFTEN]
    return forked.run(distiller.main, argv, log, forked.as_two_ranks() if processes == 2 else lambda: None)


@pytest.mark.parametrize("student", ["distilbert", "gpt2"])
def test_two_processes_equal_one_at_the_same_global_batch(tmp_path: Path, student: str) -> None:
    # 25 sequences in batches of 8: the last batch has one sequence, and none for the second process.
    flags = [*tiny_lm.prepare(tmp_path / "world", student, lines=25), "--alpha_mse", "0.1", "--alpha_cos", "0.5"]
    for name, processes in (("one", 1), ("two", 2)):
        assert status_of(flags, tmp_path / name, processes, tmp_path / "log.txt") == 0, (
            tmp_path / "log.txt"
        ).read_text()
    alone, together = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert max((alone[name] - together[name]).abs().max() for name in alone) < 1e-5
    for first, second in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert second["losses"] == pytest.approx(first["losses"], rel=1e-5)
        assert second["step"] == first["step"]


WRONG = {
    "student type": (["--student_type", "bart"], "--student_type accepts distilbert, bert, roberta, gpt2"),
    "teacher type": (["--teacher_type", "gpt2"], "--teacher_type accepts bert or distilbert"),
    "no mlm": (["--no-mlm"], "--student_type distilbert needs --mlm"),
    "clm with mlm": (["--alpha_clm", "0.5"], "--alpha_clm accepts 0 with --mlm"),
    "nothing to learn": (
        ["--alpha_ce", "0", "--alpha_mlm", "0"],
        "--alpha_ce, --alpha_mse or --alpha_mlm must be above 0",
    ),
    "shares": (["--word_mask", "0.9"], "must add up to 1, not 1.1"),
    "proportion": (["--mlm_mask_prop", "1.5"], "--mlm_mask_prop is a share"),
    "warm-up": (["--warmup_prop", "1.0"], "--warmup_prop is a share"),
    "batch size": (["--batch_size", "0"], "--batch_size accepts numbers from 1"),
    "accumulation": (["--gradient_accumulation_steps", "0"], "--gradient_accumulation_steps accepts numbers from 1"),
    "temperature": (["--temperature", "0"], "--temperature accepts numbers above 0"),
    "negative weight": (["--alpha_cos", "-1"], "--alpha_cos accepts numbers from 0"),
    "both precisions": (["--fp16", "--bf16"], "--fp16 and --bf16 exclude each other"),
    "token types": (["--freeze_token_type_embds"], "a distilbert has no token types"),
    "gpus": (["--n_gpu", "99"], "--n_gpu accepts up to"),
    "unknown flag": (["--group_by_length"], "--group_by_length"),
    "no corpus": (["--data_file", "/nowhere"], "/nowhere"),
    "no teacher": (["--teacher_name", "/nowhere/bert"], "/nowhere/bert"),
    "no config": (["--student_config", "/nowhere/config.json"], "/nowhere/config.json"),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_are_one_line_and_touch_nothing(
    worlds: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture, case: str
) -> None:
    flags, message = WRONG[case]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    assert message in refusal(command(worlds["distilbert"], tmp_path / "out", "--force", *flags), capsys)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_all_that_is_missing_is_said_at_once(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as raised:
        distiller.main([])
    lines = capsys.readouterr().err.splitlines()
    assert raised.value.code == 2
    names = ("dump_path", "data_file", "student_type", "student_config", "teacher_type", "teacher_name")
    assert [line.partition("error: ")[2] for line in lines] == [f"--{name} is required" for name in names]


def change_config(flags: list[str], folder: Path, **changes: object) -> list[str]:
    place = flags.index("--student_config") + 1
    config = json.loads(Path(flags[place]).read_text())
    (folder / "other.json").write_text(json.dumps({**config, **changes}))
    return [*flags[:place], str(folder / "other.json"), *flags[place + 1 :]]


def test_models_that_do_not_fit_are_refused(
    worlds: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    flags = worlds["distilbert"]
    wider = command(change_config(flags, tmp_path, dim=32), tmp_path / "out", "--alpha_cos", "1")
    assert "--alpha_cos compares hidden states of one size: the student's have 32" in refusal(wider, capsys)
    words = command(change_config(flags, tmp_path, vocab_size=50), tmp_path / "out")
    assert "--student_config has a vocabulary of 50" in refusal(words, capsys)
    shorter = command(change_config(flags, tmp_path, max_position_embeddings=6), tmp_path / "out")
    assert "binarize the text again with --max_length 6" in refusal(shorter, capsys)
    other = command(change_config(flags, tmp_path, model_type="gpt2"), tmp_path / "out")
    assert "is a gpt2, not a distilbert" in refusal(other, capsys)
    assert not (tmp_path / "out").exists()


def test_a_corpus_of_another_tokenizer_is_refused(
    worlds: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["extra"])
    (tmp_path / "text.txt").write_text("\n".join(tiny_lm.text_lines(9)))
    binarize(tmp_path / "text.txt", tokenizer, tmp_path / "corpus", sequence_rules(tokenizer, 3), 0, False)
    argv = command(worlds["distilbert"], tmp_path / "out", "--data_file", str(tmp_path / "corpus"))
    assert "was made with another tokenizer" in refusal(argv, capsys)


def test_a_damaged_corpus_is_refused(
    worlds: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    flags = worlds["distilbert"]
    shutil.copytree(flags[flags.index("--data_file") + 1], tmp_path / "corpus")
    tokens = bytearray((tmp_path / "corpus" / "tokens.bin").read_bytes())
    tokens[4] ^= 1
    (tmp_path / "corpus" / "tokens.bin").write_bytes(tokens)
    argv = command(flags, tmp_path / "out", "--data_file", str(tmp_path / "corpus"))
    assert "tokens.bin has changed since it was written" in refusal(argv, capsys)


def test_another_run_is_refused_and_force_removes_only_what_was_written(
    worlds: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    output = tmp_path / "out"
    distiller.main(command(worlds["distilbert"], output))
    (output / "thesis.txt").write_text("years of work")
    before = (output / "model.safetensors").read_bytes()
    other = command(worlds["distilbert"], output, "--temperature", "3")
    assert "--dump_path" in (message := refusal(other, capsys))
    assert "temperature 2.0 -> 3.0" in message
    assert "--force" in message
    assert (output / "model.safetensors").read_bytes() == before
    distiller.main([*other, "--force"])
    assert (output / "thesis.txt").read_text() == "years of work"
    assert (output / "model.safetensors").read_bytes() != before
    alone = tmp_path / "alone"
    distiller.main(command(worlds["distilbert"], alone, "--temperature", "3"))
    assert (output / "model.safetensors").read_bytes() == (alone / "model.safetensors").read_bytes()


def test_a_finished_run_started_again_stays_as_it_is(worlds: dict[str, list[str]], tmp_path: Path) -> None:
    distiller.main(command(worlds["gpt2"], tmp_path / "out"))
    before = results_of(tmp_path / "out")
    distiller.main(command(worlds["gpt2"], tmp_path / "out"))
    assert results_of(tmp_path / "out") == before


def test_a_student_starts_from_given_weights(worlds: dict[str, list[str]], tmp_path: Path) -> None:
    flags = worlds["roberta"]
    distiller.main(command(flags, tmp_path / "first"))
    start = ["--student_pretrained_weights", str(tmp_path / "first"), "--learning_rate", "0"]
    distiller.main(command(flags, tmp_path / "second", *start))
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_logging_and_checkpoints_do_not_change_the_result(worlds: dict[str, list[str]], tmp_path: Path) -> None:
    distiller.main(command(worlds["distilbert"], tmp_path / "often"))
    rarely = ["--log_interval", "500", "--checkpoint_interval", "4000"]
    distiller.main(command(worlds["distilbert"], tmp_path / "rarely", *rarely))
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("often", "rarely"))
    assert one == other


def test_help_and_program_files_are_plain() -> None:
    done = subprocess.run(
        [sys.executable, "distiller.py", "--help_all"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--mlm_smoothing" in done.stdout
    assert "--no-group_by_size" in done.stdout
