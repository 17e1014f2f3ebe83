"""Hidden-state distillation in fine-pruning, and teachers of other types."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import forked
import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

import masked_run_glue
from distiller import TaskDistiller
from emmental.data import FeatureDataset, load_features
from emmental.runs.precision import Precision
from emmental.tasks import resolve_task
from emmental.teaching import teachers
from emmental.teaching.hidden_states import (
    HiddenStateMatch,
    compared_layers,
    layer_map,
    projection_between,
)

HIDDEN = ["--alpha_hidden_cos", "0.5", "--alpha_hidden_mse", "2.0"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of two layers, and teachers: deeper and wider, of another type, and masked."""
    folder = tmp_path_factory.mktemp("world")
    tiny.write_task(folder / "mrpc", "mrpc", train=29, dev=9)
    tiny.save_bert(folder / "student")
    tiny.save_bert(folder / "deep", seed=3, num_hidden_layers=4)
    tiny.save_bert(folder / "wide", seed=4, num_hidden_layers=4, hidden_size=24)
    torch.manual_seed(5)
    vocabulary = len(tiny.SPECIAL) + len(tiny.WORDS)
    shape = {"vocab_size": vocabulary, "dim": 16, "hidden_dim": 32, "n_heads": 2, "n_layers": 3}
    distilbert = DistilBertForSequenceClassification(DistilBertConfig(max_position_embeddings=32, **shape))
    distilbert.save_pretrained(folder / "distilbert")
    tiny.tokenizer().save_pretrained(folder / "distilbert")
    return folder


def command(world: Path, output: Path, teacher: str, *others: str, cache: Path | None = None) -> list[str]:
    return [
        *("--data_dir", str(world / "mrpc"), "--task_name", "mrpc", "--model_name_or_path", str(world / "student")),
        *("--output_dir", str(output), "--feature_cache_dir", str(cache or world / "cache"), "--max_seq_length", "32"),
        *("--max_steps", "6", "--warmup_steps", "1", "--save_steps", "3", "--logging_steps", "2", "--no-pictures"),
        *(
            "--recipe",
            "paper",
            "--learning_rate",
            "1e-3",
            "--no_cuda",
            "--teacher_name_or_path",
            str(world / teacher),
            *others,
        ),
    ]


def rows(output: Path) -> list[dict]:
    lines = [json.loads(line) for line in (output / "train_log.jsonl").read_text().splitlines()]
    return [line for line in lines if "losses" in line]


def features(world: Path) -> FeatureDataset:
    cache = world / "cache"
    return load_features(resolve_task("mrpc"), world / "mrpc", "train", tiny.tokenizer(), 32, cache, False, False)


def test_layers_are_spread_so_that_the_last_imitates_the_last() -> None:
    assert layer_map(6, 12) == [2, 4, 6, 8, 10, 12]
    assert layer_map(2, 5) == [2, 5]
    assert layer_map(4, 2) == [1, 1, 2, 2]
    assert layer_map(3, 3) == [1, 2, 3]
    assert layer_map(3, 12, [0, 0, 12]) == [0, 0, 12]
    assert compared_layers([0, 9, 3, 9]) == [3, 9]


@pytest.mark.parametrize(
    ("by_hand", "message"), [([1], "takes 2 numbers"), ([1, 5], "1 to 4"), ([0, 0], r"not all of them.*not 0, 0")]
)
def test_impossible_layers_are_refused(by_hand: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer_map(2, 4, by_hand)


class Given:
    """Hidden states known beforehand."""

    def __init__(self, *states: torch.Tensor) -> None:
        self.states = list(states)

    def of(self, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        return self.states


def test_losses_by_hand() -> None:
    batch = {"attention_mask": torch.tensor([[1, 1], [1, 0]])}
    first, second = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[3.0, 4.0], [9.0, 9.0]]]), torch.ones(2, 2, 2)
    known = torch.tensor([[[0.0, 1.0], [0.0, 2.0]], [[3.0, 4.0], [0.0, 0.0]]])
    match = HiddenStateMatch(Given(known), [7, 0], torch.nn.Identity())
    losses = match.losses([torch.zeros(2, 2, 2), first, second], batch)
    # Row 0: one token at a right angle (squared distance 1 a dimension) and one equal; row 1: its one token is equal.
    assert losses["hidden_cos"].tolist() == pytest.approx([0.5, 0.0], abs=1e-6)
    assert losses["hidden_mse"].tolist() == pytest.approx([0.5, 0.0])
    both = HiddenStateMatch(Given(known, torch.zeros(2, 2, 2)), [3, 5], torch.nn.Identity())
    assert both.losses([first, first, second], batch)["hidden_mse"].tolist() == pytest.approx([0.75, 0.5])


def test_a_projection_is_learned_only_between_widths() -> None:
    assert list(projection_between(16, 16, 0).parameters()) == []
    one, same, other = (projection_between(16, 24, seed).weight for seed in (1, 1, 2))
    assert one.shape == (24, 16)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("teacher", ["deep", "wide", "distilbert"])
def test_hidden_states_of_deeper_wider_and_other_teachers(world: Path, tmp_path: Path, teacher: str) -> None:
    masked_run_glue.main(command(world, tmp_path / "out", teacher, *HIDDEN))
    log = rows(tmp_path / "out")
    assert {"ce", "distil", "hidden_cos", "hidden_mse"} == set(log[0]["losses"])
    weights = {"ce": 0.5, "distil": 0.5, "hidden_cos": 0.5, "hidden_mse": 2.0}
    for row in log:
        assert row["loss"] == pytest.approx(sum(weights[name] * value for name, value in row["losses"].items()))
        assert 0 < row["losses"]["hidden_cos"] < 2
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert not [name for name in saved if "projection" in name or name.startswith("student.")]
    assert (tmp_path / "out" / "checkpoint-6" / "companion.safetensors").exists() == (teacher == "wide")
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")


def test_hidden_states_come_closer(world: Path, tmp_path: Path) -> None:
    longer = ["--max_steps", "60", "--learning_rate", "1e-2", "--logging_steps", "6", "--model_type", "bert"]
    only = ["--alpha_ce", "0", "--alpha_distil", "0", "--alpha_hidden_mse", "1"]
    masked_run_glue.main(command(world, tmp_path / "out", "wide", *longer, *only))
    log = rows(tmp_path / "out")
    assert log[-1]["losses"]["hidden_mse"] < 0.5 * log[0]["losses"]["hidden_mse"]


def test_a_masked_teacher_is_asked_with_its_masks(world: Path, tmp_path: Path) -> None:
    masked_run_glue.main(command(world, tmp_path / "teacher", "deep", "--do_train", "--final_threshold", "0.3"))
    flags = ["--teacher_type", "masked_bert", *HIDDEN]
    argv = command(world, tmp_path / "out", "deep", *flags)
    argv[argv.index(str(world / "deep"))] = str(tmp_path / "teacher")
    masked_run_glue.main(argv)
    assert rows(tmp_path / "out")[-1]["losses"]["hidden_mse"] > 0


def test_weights_of_zero_change_nothing(world: Path, tmp_path: Path) -> None:
    masked_run_glue.main(command(world, tmp_path / "plain", "deep"))
    masked_run_glue.main(
        command(world, tmp_path / "zero", "deep", "--alpha_hidden_cos", "0", "--alpha_hidden_mse", "0")
    )
    plain, zero = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "zero"))
    assert plain == zero


REFUSED = {
    "layers": (["--teacher_layers", "1,2,3"], "--teacher_layers takes 2 numbers"),
    "depth": (["--teacher_layers", "1,9"], "--teacher_layers accepts 1 to 4"),
    "letters": (["--teacher_layers", "a,b"], "--teacher_layers accepts numbers with commas"),
    "negative": (["--alpha_hidden_mse", "-1"], "--alpha_hidden_mse accepts numbers from 0"),
    "no weight": (
        ["--alpha_hidden_cos=0", "--alpha_hidden_mse=0", "--teacher_layers=1,2"],
        "--teacher_layers does nothing",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_are_one_line(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture, case: str) -> None:
    flags, message = REFUSED[case]
    with pytest.raises(SystemExit) as raised:
        masked_run_glue.main(command(world, tmp_path / "out", "deep", *HIDDEN, *flags))
    errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert raised.value.code == 2
    assert len(errors) == 1
    assert message in errors[0]


def test_hidden_states_need_a_teacher(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    argv = command(world, tmp_path / "out", "deep", *HIDDEN)
    place = argv.index("--teacher_name_or_path")
    with pytest.raises(SystemExit):
        masked_run_glue.main([*argv[:place], *argv[place + 2 :]])
    assert "need a teacher" in capsys.readouterr().err


def test_a_teacher_that_cuts_texts_in_another_way_is_refused(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    tiny.save_bert(tmp_path / "cased")
    definition = json.loads((tmp_path / "cased" / "tokenizer.json").read_text())
    definition["normalizer"]["lowercase"] = False
    definition["model"]["vocab"] = tiny.tokenizer().get_vocab()
    definition["post_processor"] = None
    (tmp_path / "cased" / "tokenizer.json").write_text(json.dumps(definition))
    argv = command(world, tmp_path / "out", "deep")
    argv[argv.index(str(world / "deep"))] = str(tmp_path / "cased")
    with pytest.raises(SystemExit):
        masked_run_glue.main(argv)
    assert "splits texts differently" in capsys.readouterr().err


def test_killed_and_resumed_is_the_same_bit_for_bit(world: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    whole = command(world, tmp_path / "whole", "wide", *HIDDEN)
    assert forked.run(masked_run_glue.main, whole, log, lambda: None) == 0, log.read_text()
    killed = command(world, tmp_path / "killed", "wide", *HIDDEN)
    kill = forked.kill_at_call(TaskDistiller, "step", 5)
    assert forked.run(masked_run_glue.main, killed, log, kill) == -signal.SIGKILL
    assert forked.run(masked_run_glue.main, killed, log, lambda: None) == 0, log.read_text()
    for name in ("model", "optimizer", "companion", "rng"):
        file = f"checkpoint-6/{name}.safetensors"
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_two_processes_equal_one(world: Path, tmp_path: Path) -> None:
    saved = {}
    for processes, before in ((1, lambda: None), (2, forked.as_two_ranks())):
        output, log = tmp_path / str(processes), tmp_path / f"{processes}.txt"
        argv = command(world, output, "wide", *HIDDEN, cache=output / "cache")
        argv += ["--per_gpu_train_batch_size", str(8 // processes), "--adam_epsilon", "1e-3"]
        assert forked.run(masked_run_glue.main, argv, log, before) == 0, log.read_text()
        checkpoint = output / "checkpoint-6"
        saved[processes] = {
            **load_file(checkpoint / "model.safetensors"),
            **load_file(checkpoint / "companion.safetensors"),
        }
    assert max((saved[1][name] - saved[2][name]).abs().max() for name in saved[1]) < 1e-5


def test_a_dense_teacher_of_the_same_shape_is_imitated_exactly(world: Path) -> None:
    student = BertForSequenceClassification.from_pretrained(world / "deep").eval()
    states = teachers.TeacherStates(student, [1, 2, 3, 4], Precision(torch.device("cpu")))
    batch = features(world).batch([0, 1, 2])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    hidden = student(**inputs, output_hidden_states=True).hidden_states
    losses = HiddenStateMatch(states, [1, 2, 3, 4], torch.nn.Identity()).losses(hidden, batch)
    assert isinstance(student.config, BertConfig)
    assert losses["hidden_mse"].tolist() == pytest.approx([0.0] * 3, abs=1e-12)
    assert losses["hidden_cos"].tolist() == pytest.approx([0.0] * 3, abs=1e-6)
