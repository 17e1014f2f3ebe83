"""One command: dense first, cut, recovery; killed in any phase, the same command ends with the same bits."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import forked
import pytest
import tiny
import torch
from faults.runs import Command, World, difference, last_lines, log_of
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

import masked_run_glue
from distiller import TaskDistiller
from emmental.architectures import encoder_linears
from emmental.patching import masked_layers
from emmental.runs.output_folder import OutputFolder
from emmental.structured.speed import LayerTimes, SpeedTable
from emmental.task_heads import Agreement
from emmental.teaching import teachers
from emmental.training.phases import CutHeadsAndNeurons

UNSTRUCTURED = ("--granularity", "unstructured")
LADDER = ("--keep", "0.5", "0.25", "--pictures")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("phases"))


@pytest.fixture(scope="module")
def structured(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed plain command."""
    return finished(world.plain(), tmp_path_factory.mktemp("structured") / "out")


@pytest.fixture(scope="module")
def unstructured(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(world.plain(*UNSTRUCTURED), tmp_path_factory.mktemp("unstructured") / "out")


@pytest.fixture(scope="module")
def ladder(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(world.plain(*LADDER), tmp_path_factory.mktemp("ladder") / "out")


def finished(command: Command, output: Path, *others: str) -> Path:
    assert command.finish(output, others) is None
    return output


def refused(command: Command, output: Path, *others: str) -> str:
    """The last line of a run that ends with status 2."""
    assert command.run(output, others=others) == 2
    return last_lines(output, 1)


def matrices(folder: Path) -> list[str]:
    """Names of the encoder's weights."""
    return [f"{name}.weight" for name in encoder_linears(AutoModelForSequenceClassification.from_pretrained(folder))]


def encoder_share(folder: Path, dense: Path) -> float:
    """Non-zero weights of the encoder's matrices against the dense model's number."""
    counts = []
    for each in (folder, dense):
        model = AutoModelForSequenceClassification.from_pretrained(each)
        counts.append(sum(int(model.get_submodule(name).weight.count_nonzero()) for name in encoder_linears(model)))
    return counts[0] / counts[1]


def test_the_plain_command_ends_with_a_small_model(structured: Path) -> None:
    assert encoder_share(structured, structured / "dense") == pytest.approx(0.25, abs=0.01)
    assert (structured / "model.safetensors").stat().st_size < (structured / "dense/model.safetensors").stat().st_size
    rows = json.loads((structured / "summary.json").read_text())["compared"]
    assert [row["name"] for row in rows] == ["dense", "25.0% kept", "bag of words"]
    assert "phase 1, dense: 20 updates at learning rate 0.0001\n" in log_of(structured).read_text()


def test_it_loads_without_this_package(structured: Path, tmp_path: Path) -> None:
    inputs = torch.tensor([[2, 7, 9, 3]])
    own = AutoModelForSequenceClassification.from_pretrained(structured).eval()(inputs).logits
    code = (
        "import sys, torch; from transformers import AutoModelForSequenceClassification as Auto\n"
        "model = Auto.from_pretrained(sys.argv[1], trust_remote_code=True).eval()\n"
        "assert 'emmental' not in sys.modules\n"
        "print(model(torch.tensor([[2, 7, 9, 3]])).logits.tolist()[0])"
    )
    variables = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, str(structured)]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == pytest.approx(own[0].tolist(), abs=1e-5)


PLACES = [
    (TaskDistiller, "step", 11),  # dense, two checkpoints written
    (OutputFolder, "save_model", 1),  # dense trained, not handed over
    (masked_run_glue, "add_model", 1),  # between the phases
    (TaskDistiller, "step", 22),  # two updates into the second training, before its first checkpoint
    (TaskDistiller, "step", 25),  # after it
    (OutputFolder, "save_model", 2),
    (masked_run_glue, "save", 1),
]


@pytest.mark.parametrize(("owner", "name", "call"), PLACES)
@pytest.mark.parametrize("flags", [(), UNSTRUCTURED], ids=["structured", "unstructured"])
def test_killed_in_any_phase_the_same_command_ends_with_the_same_bits(
    world: World, flags: tuple, owner: object, name: str, call: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    whole = request.getfixturevalue("unstructured" if flags else "structured")
    command, output = world.plain(*flags), tmp_path / "out"
    assert command.run(output, forked.kill_at_call(owner, name, call)) == -9
    finished(command, output)
    assert difference(output, whole) is None


@pytest.mark.parametrize("place", [("emmental.training.phases.cut", "prune_carefully"), ("emmental.atomic", "_fsync")])
def test_killed_while_it_cuts(world: World, structured: Path, tmp_path: Path, place: tuple[str, str]) -> None:
    command, output = world.plain(), tmp_path / "out"

    def kill() -> None:
        original = CutHeadsAndNeurons.run

        def run(*args: object) -> object:
            forked.kill_at_call(sys.modules[place[0]], place[1], 1)()
            return original(*args)

        CutHeadsAndNeurons.run = run

    assert command.run(output, kill) == -9
    finished(command, output)
    assert difference(output, structured) is None


CUT_ALONE = ("--num_train_epochs", "0", "--max_steps", "-1")


@pytest.mark.parametrize(
    ("flags", "changed", "tried"),
    [((), 0.19, [3]), ((), 0.21, [3, 6]), (CUT_ALONE, 0.04, [3]), (CUT_ALONE, 0.06, [3, 6])],
)
@pytest.mark.parametrize("granularity", [(), UNSTRUCTURED], ids=["structured", "unstructured"])
def test_more_changes_are_allowed_before_a_recovery(
    world: World, structured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, granularity: tuple,
    flags: tuple, changed: float, tried: list[int],
) -> None:  # fmt: skip
    """Twice as many rungs follow where more than a twentieth of the answers changes, a fifth before a recovery."""
    cuts, made = sys.modules["emmental.training.phases.cut"], []
    name = "prune_weights" if granularity else "prune_in_rungs"
    prune = getattr(cuts, name)

    def pruned(*given: object, rungs: int, **others: object) -> object:
        made.append(rungs)
        found = prune(*given, rungs=rungs, **others)
        return replace(found, agreement=Agreement(changed, found.agreement.divergence))

    monkeypatch.setattr(cuts, name, pruned)
    start = ("--model_name_or_path", str(structured / "dense"), "--no-dense_first")
    masked_run_glue.main(world.plain(*granularity, *flags, *start).argv(tmp_path / "out"))
    assert made == tried
    assert json.loads((tmp_path / "out" / "pruned" / "pruned.json").read_text())["changed"] == changed


def test_the_teacher_is_asked_for_the_rows_that_are_trained_on(
    world: World, structured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two updates of four rows: eight of the thirty."""
    asked, learnt = [], []
    predict, step = teachers.predict_logits, TaskDistiller.step

    def texts(batch: dict[str, torch.Tensor]) -> list[tuple[int, ...]]:
        pairs = zip(batch["input_ids"].tolist(), batch["attention_mask"].bool().tolist(), strict=True)
        return [tuple(token for token, read in zip(*pair, strict=True) if read) for pair in pairs]

    def predicted(teacher: torch.nn.Module, *others: object) -> torch.Tensor:
        handle = teacher.register_forward_pre_hook(lambda _, __, inputs: asked.extend(texts(inputs)), with_kwargs=True)
        try:
            return predict(teacher, *others)
        finally:
            handle.remove()

    def stepped(self: TaskDistiller, batch: dict[str, torch.Tensor], *others: object) -> object:
        learnt.extend(texts(batch))
        return step(self, batch, *others)

    monkeypatch.setattr(teachers, "predict_logits", predicted)
    monkeypatch.setattr(TaskDistiller, "step", stepped)
    start = ("--model_name_or_path", str(structured / "dense"), "--no-dense_first")
    short = ("--max_steps", "2", "--per_gpu_train_batch_size", "4")
    masked_run_glue.main(world.plain(*short, *start).argv(tmp_path / "out"))
    assert len(learnt) == len(set(learnt)) == 8
    assert set(asked) == set(learnt)


def test_a_damaged_cut_is_made_again(world: World, structured: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(structured.parent, tmp_path, dirs_exist_ok=True)
    for checkpoint in output.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    (output / "pruned" / "model.safetensors").write_bytes(b"")
    finished(world.plain(), output)
    assert difference(output, structured) is None


def test_a_finished_run_trains_nothing_again(world: World, structured: Path, tmp_path: Path) -> None:
    output = finished(world.plain(), tmp_path / "out")
    (output.parent / "order.jsonl").write_text("")
    finished(world.plain(), output)
    assert (output.parent / "order.jsonl").read_text() == ""
    assert difference(output, structured, ordered=False) is None


def test_the_best_engine_is_named_with_its_code(world: World, structured: Path, tmp_path: Path) -> None:
    flags = ("--engines", "--num_train_epochs", "0", "--max_steps", "-1", "--model_name_or_path")
    said = log_of(finished(world.plain(*flags, str(structured / "dense")), tmp_path / "out")).read_text()
    assert "The best engine on this machine, for 1 x 32 tokens, is " in said
    assert "times the dense model in PyTorch fp32" in said
    assert "\nsession = " in said or "\nmodel = " in said
    assert "ONNX Runtime int8: dynamic and static were tried on " in said


def test_only_finished_models_are_rounded(world: World, structured: Path, tmp_path: Path) -> None:
    output = finished(world.plain("--save_dtype", "float16"), tmp_path / "out")
    exact, rounded, dense = (load_file(each / "model.safetensors") for each in (structured, output, output / "dense"))
    assert {value.dtype for value in dense.values()} == {torch.float32}
    assert all(torch.equal(value.half(), rounded[name]) for name, value in exact.items())


def test_single_weights_end_as_exact_zeros(unstructured: Path) -> None:
    assert json.loads((unstructured / "config.json").read_text())["model_type"] == "bert"
    model = AutoModelForSequenceClassification.from_pretrained(unstructured)
    weights = [model.get_submodule(name).weight for name in encoder_linears(model)]
    total = sum(weight.numel() for weight in weights)
    assert sum(int(weight.count_nonzero()) for weight in weights) == int(0.15 * total)


def test_single_weights_without_training(world: World, unstructured: Path, tmp_path: Path) -> None:
    """The finished model is the one that was cut, to the weight."""
    flags = (
        "--keep",
        "0.1",
        "--num_train_epochs",
        "0",
        "--max_steps",
        "-1",
        "--no-dense_first",
        "--model_name_or_path",
    )
    output = finished(world.plain(*UNSTRUCTURED, *flags, str(unstructured / "dense")), tmp_path / "out")
    assert not list(output.rglob("checkpoint-*"))
    cut, model = (load_file(folder / "model.safetensors") for folder in (output / "pruned", output))
    assert all(torch.equal(cut[name], value) for name, value in model.items())
    total = sum(model[name].numel() for name in matrices(output))
    assert sum(int(model[name].count_nonzero()) for name in matrices(output)) == int(0.1 * total)


@pytest.mark.parametrize("method", ["fisher", "brain_surgeon"])
def test_the_masks_of_single_weights_stay_those_of_the_cut(
    world: World, unstructured: Path, tmp_path: Path, method: str
) -> None:
    start = ("--model_name_or_path", str(unstructured / "dense"), "--no-dense_first", "--keep", "0.1")
    command, output = world.plain(*UNSTRUCTURED, *start, "--pruning_method", method), tmp_path / "out"
    assert command.run(output, masks_are_checked) == 0, last_lines(output)
    summary = json.loads((output / "summary.json").read_text())
    assert summary["method"] == method
    assert summary["remaining"] == pytest.approx(10, abs=0.1)


def masks_are_checked() -> None:
    """In every update, the open weights must be those that are not zero."""
    make_masks = TaskDistiller._make_masks

    def checked(self: TaskDistiller, threshold: float) -> None:
        make_masks(self, threshold)
        assert all(torch.equal(layer.mask, layer.weight != 0) for layer in masked_layers(self.student).values())

    TaskDistiller._make_masks = checked


def test_single_weights_of_a_small_model(world: World, structured: Path, tmp_path: Path) -> None:
    start = ("--model_name_or_path", str(structured), "--keep", "0.5", *UNSTRUCTURED)
    output = finished(world.plain(*start), tmp_path / "out")
    before, after = (AutoModelForSequenceClassification.from_pretrained(folder) for folder in (structured, output))
    assert after.config.layer_sizes() == before.config.layer_sizes()
    assert encoder_share(output, structured) == pytest.approx(0.5, abs=0.01)


def test_two_shares_make_two_models(ladder: Path) -> None:
    output = ladder
    assert encoder_share(output / "keep-0.5", output / "dense") == pytest.approx(0.5, abs=0.01)
    assert encoder_share(output / "keep-0.25", output / "dense") == pytest.approx(0.25, abs=0.01)
    last = (output / "keep-0.25" / "model.safetensors").read_bytes()
    assert (output / "model.safetensors").read_bytes() == last
    assert "model_name_or_path" in json.loads((output / "training_args.json").read_text())
    assert (output / "pictures" / "ladder.png").is_file()
    rows = json.loads((output / "summary.json").read_text())["compared"]
    assert [row["name"] for row in rows][:3] == ["dense", "50.0% kept", "25.0% kept"]


def test_a_ladder_killed_after_its_second_cut_ends_with_the_same_bits(
    world: World, ladder: Path, tmp_path: Path
) -> None:
    """20 dense updates, 6 at one half, 4 at a quarter and a checkpoint, one more."""
    command, output = world.plain(*LADDER), tmp_path / "out"
    assert command.run(output, forked.kill_at_call(TaskDistiller, "step", 31)) == -9
    assert [folder.name for folder in output.glob("keep-0.25/checkpoint-*")] == ["checkpoint-4"]
    finished(command, output)
    assert difference(output, ladder) in (None, "pictures/ladder.png differs")  # which shows milliseconds


def test_a_ladder_of_single_weights_killed_in_its_second_cut(world: World, tmp_path: Path) -> None:
    """Three shares to the weight, each a plain model; the one that was finished is not made again."""
    shares = {"0.5": 0.5, "0.25": 0.25, "0.1": 0.1}
    command = world.plain(*UNSTRUCTURED, "--keep", *shares)
    whole, output = finished(command, tmp_path / "whole" / "out"), tmp_path / "killed" / "out"
    cuts = sys.modules["emmental.training.phases.cut"]
    assert command.run(output, forked.kill_at_call(cuts, "rows_to_prune_on", 2)) == -9
    assert (output / "keep-0.5" / "model.safetensors").is_file()
    assert not list(output.glob("keep-0.25/pruned"))
    finished(command, output)
    assert difference(output, whole) is None
    for name, share in shares.items():
        model = AutoModelForSequenceClassification.from_pretrained(whole / f"keep-{name}")
        assert model.config.model_type == "bert"
        weights = [model.get_submodule(each).weight for each in encoder_linears(model)]
        kept = sum(int(weight.count_nonzero()) for weight in weights)
        assert kept == int(share * sum(weight.numel() for weight in weights))


def test_starting_afresh_removes_what_was_written_and_no_more(world: World, tmp_path: Path) -> None:
    output = finished(world.plain("--keep", "0.5", "0.25"), tmp_path / "out")
    for folder in (output, output / "dense", output / "keep-0.5"):
        (folder / "mine.txt").write_text("mine")
    finished(world.plain(), output, "--overwrite_output_dir")
    assert (output / "mine.txt").read_text() == (output / "dense/mine.txt").read_text() == "mine"
    left = {path.relative_to(output).as_posix() for path in output.glob("keep-*/**/*") if path.is_file()}
    assert left == {"keep-0.5/mine.txt", "keep-0.5/.emmental.lock", "keep-0.25/.emmental.lock"}
    assert (output / "pruned" / "pruned.json").is_file()
    OutputFolder(output).start_afresh()
    assert not (output / "pruned").exists()


def test_no_training(world: World, structured: Path, tmp_path: Path) -> None:
    flags = ("--num_train_epochs", "0", "--max_steps", "-1")
    assert "is not; omit the flag" in refused(world.plain(*flags), tmp_path / "new" / "out")
    start = ("--model_name_or_path", str(structured / "dense"), "--no-dense_first")
    output = finished(world.plain(*flags, *start), tmp_path / "cut" / "out")
    assert not list(output.rglob("checkpoint-*"))
    assert encoder_share(output, structured / "dense") == pytest.approx(0.25, abs=0.01)


def test_evaluated_alone_the_small_model_is_what_it_was(world: World, structured: Path) -> None:
    before = json.loads((structured / "eval_results.json").read_text())
    command = world.plain("--do_eval")
    assert masked_run_glue.main(command.argv(structured)) == pytest.approx(
        {name: value for name, value in before.items() if isinstance(value, float)}, abs=1e-6
    )


def test_other_shares_in_the_same_folder_are_refused(world: World, structured: Path) -> None:
    assert "keep [0.25] -> [0.4]" in refused(world.plain("--keep", "0.4"), structured)
    assert "--speedup_length 128 is more than the 32" in refused(world.plain("--speedup", "2"), structured)


def test_a_speedup_is_measured_once(world: World, structured: Path, tmp_path: Path) -> None:
    flags = ("--speedup", "1.5", "--speedup_length", "16", "--num_train_epochs", "0", "--max_steps", "-1")
    start = ("--model_name_or_path", str(structured / "dense"), "--no-dense_first")
    command, output = world.plain(*flags, *start), tmp_path / "out"
    assert command.run(output, even_table) == 0
    table = (output / "speed.json").read_bytes()
    finished(command, output)
    assert (output / "speed.json").read_bytes() == table
    said = log_of(output).read_text()
    assert said.count("10.00 ms for the dense model, 1.00 ms of them outside") == 1
    assert "was measured on" not in said
    assert "using the pruned model of the earlier run" in said
    assert "times as fast as dense (1 x 16, PyTorch fp32), 1.5 asked" in said
    (output / "speed.json").write_text(json.dumps(json.loads(table) | {"machine": "elsewhere"}))
    finished(command, output)
    assert "speed.json was measured on another machine ('elsewhere')" in log_of(output).read_text()


def test_a_run_says_how_long_it_takes(world: World, structured: Path, tmp_path: Path) -> None:
    start = ("--model_name_or_path", str(structured / "dense"), "--no-dense_first", "--max_steps", "29")
    said = log_of(finished(world.plain(*start), tmp_path / "out")).read_text()
    assert re.search(r"about \d+ min \d\d s for the other 9 updates at this pace\n", said)
    said = log_of(finished(world.plain("--per_gpu_train_batch_size", "16"), tmp_path / "both")).read_text()
    time = r"about \d+ min \d\d s"
    assert re.search(f"{time} for the other 20 updates at this pace; {time} to the end of the whole run\n", said)


def test_a_speedup_recovers_at_the_rate_of_what_it_leaves(world: World, structured: Path, tmp_path: Path) -> None:
    """Of 10 ms the encoder takes 9: five times as fast leaves a ninth of it, and that is 15 % or less."""
    start = ("--model_name_or_path", str(structured / "dense"), "--no-dense_first")
    command, output = world.plain("--speedup", "5", "--speedup_length", "16", *start), tmp_path / "out"
    assert command.run(output, partial(even_table, forked.kill_at_call(TaskDistiller, "step", 5))) == -9
    assert list(output.glob("checkpoint-*"))
    finished(command, output)
    assert json.loads((output / "speed.json").read_text())["settled"]
    said = log_of(output).read_text()
    assert "6 updates at learning rate 5e-05, or 0.0002 if 15% or less of the encoder stay" in said
    assert "--learning_rate 5e-05" not in said
    assert said.count("of the encoder stay; learning rate of the recovery: 0.0002") == 2
    assert json.loads((output / "training_args.json").read_text())["learning_rate"] == 2e-4
    assert "learning rate 0.0002" in (output / "README.md").read_text()


def test_a_speedup_out_of_reach_is_refused_before_anything_is_trained(world: World, tmp_path: Path) -> None:
    command, output = world.plain("--speedup", "10", "--speedup_length", "16"), tmp_path / "out"
    assert command.run(output, even_table) == 2
    assert "--speedup accepts 1 to below 10, the speed-up of an empty encoder on this machine" in last_lines(output, 1)


def even_table(then: Callable[[], None] = lambda: None) -> None:
    """Put this table in the place of the measured one; times are as it says."""
    table = SpeedTable(10.0, 1.0, [LayerTimes({0: 0.0, 2: 2.25}, {0: 0.0, 32: 2.25})] * 2)
    budgets = sys.modules["emmental.training.budgets"]
    budgets.measure_speed, budgets.tuned_price = lambda *_: table, lambda *arguments, **_: arguments[-1]
    then()


def test_too_few_rows_are_refused_before_anything_is_trained(world: World, tmp_path: Path) -> None:
    tiny.write_task(tmp_path / "few", "mrpc", train=7)
    command = world.plain("--data_dir", str(tmp_path / "few"))
    assert "--granularity structured needs 8 training rows or more, not 7" in refused(command, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_engine_that_is_not_there(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emmental.training.route.why_not_timed", lambda engine: f"no {engine} here")
    flags = ("--speedup", "2", "--speedup_length", "16", "--speedup_engine", "onnx")
    with pytest.raises(SystemExit):
        masked_run_glue.main(world.plain(*flags).argv(tmp_path / "out"))
    assert "--speedup_engine onnx: no onnx here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_two_processes_cut_what_one_cuts(world: World, structured: Path, tmp_path: Path) -> None:
    """The sums of two shares of the rows are those of one process: the same gates, and weights to rounding."""
    start = ("--model_name_or_path", str(structured / "dense"), "--num_train_epochs", "0", "--max_steps", "-1")
    output = tmp_path / "out"
    command = world.plain(*start, "--no-dense_first", "--threads", "1")
    assert command.run(output, forked.as_two_ranks(partial(count_rows, tmp_path))) == 0, last_lines(output)
    alone, together = (load_file(folder / "pruned" / "model.safetensors") for folder in (structured, output))
    assert {name: value.shape for name, value in alone.items()} == {n: value.shape for n, value in together.items()}
    assert max((alone[name] - together[name]).abs().max() for name in alone) < 1e-4
    seen = [int((tmp_path / f"rows-{rank}").read_text()) for rank in (0, 1)]
    assert sum(seen) == 24  # 30 rows, of which 6 are held out for the check
    assert min(seen) > 0


def count_rows(folder: Path, rank: int) -> None:
    """Note how many rows the information of this rank comes from."""
    rungs = sys.modules["emmental.structured.rungs"]
    original = rungs.fisher_information

    def counted(model: object, batches: list, *others: object) -> object:
        (folder / f"rows-{rank}").write_text(str(sum(len(batch["input_ids"]) for batch in batches)))
        return original(model, batches, *others)

    rungs.fisher_information = counted


def test_a_rank_that_fails_while_it_cuts_ends_the_other(world: World, structured: Path, tmp_path: Path) -> None:
    def fail(rank: int) -> None:
        if rank == 1:
            sys.modules["emmental.structured.rungs"].refit = lambda *_, **__: 1 / 0

    start = ("--model_name_or_path", str(structured / "dense"), "--no-dense_first", "--threads", "1")
    output, started = tmp_path / "out", time.monotonic()
    assert world.plain(*start).run(output, forked.as_two_ranks(fail)) == 1
    assert time.monotonic() - started < 60
    assert not (output / "pruned").exists()
