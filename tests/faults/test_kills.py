"""Kill runs anywhere, start the same command again: the same bits come out."""

from __future__ import annotations

import signal
from pathlib import Path

import forked
import pytest
from faults import kills
from faults.injection import KILLS
from faults.kills import Uninterrupted
from faults.runs import World, difference, evidence, log_of

import distiller
from distiller import TaskDistiller


@pytest.fixture(scope="module")
def commands(world: World) -> list:
    return kills.all_commands(world)


@pytest.mark.parametrize("kind", KILLS)
def test_kills_inside_saves(commands: list, kind: str, known: Uninterrupted, tmp_path: Path) -> None:
    tally = kills.at_save_calls(commands, kind, 4, known, tmp_path, seed=1)
    assert tally.lost == []
    assert tally.survived >= 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_to_stop_saves(world: World, known: Uninterrupted, tmp_path: Path, number: int) -> None:
    def terminate_in_update_six() -> None:
        signal.signal(number, signal.SIG_DFL)  # nohup ignores SIGHUP
        original = TaskDistiller.step

        def step(self: TaskDistiller, *args: object) -> bool:
            if self.global_step == 5:
                signal.raise_signal(number)
            return original(self, *args)

        TaskDistiller.step = step

    command, output = world.trainer("movement"), tmp_path / "out"
    assert command.run(output, terminate_in_update_six) == 128 + number
    assert (output / "checkpoint-6").is_dir()
    assert command.finish(output) is None
    assert difference(output, known.of(command)[0], stopped=True) is None


def test_a_finished_run_started_again_trains_nothing_and_keeps_its_result(
    world: World, known: Uninterrupted, tmp_path: Path
) -> None:
    for command in (world.trainer("accumulation"), world.distiller("gpt2")):
        output = tmp_path / command.name / "out"
        assert command.finish(output) is None
        (output.parent / "order.jsonl").unlink()
        assert command.finish(output) is None
        assert not (output.parent / "order.jsonl").exists()
        assert evidence(output) == evidence(known.of(command)[0])


def test_a_checkpoint_that_lost_its_manifest_is_set_aside_and_kept(
    world: World, known: Uninterrupted, tmp_path: Path
) -> None:
    command, output = world.trainer("movement"), tmp_path / "out"
    assert command.finish(output) is None
    (output / "checkpoint-16" / "manifest.json").unlink()
    assert command.finish(output) is None
    assert (output / "checkpoint-16.not-verified-1" / "model.safetensors").is_file()
    assert "checkpoint-16 is damaged and not used" in log_of(output).read_text()


def test_the_comparison_sees_every_difference(world: World, known: Uninterrupted, tmp_path: Path) -> None:
    """The harness itself: another seed, a missing file, a new file and another order are found."""
    command, output = world.trainer("movement"), tmp_path / "out"
    whole = known.of(command)[0]
    assert command.run(output, others=("--seed", "7")) == 0
    found = difference(output, whole)
    for name in ("model.safetensors differs", "train_log.jsonl differs", "the order of the data differs"):
        assert name in found
    again = tmp_path / "again" / "out"
    assert command.finish(again) is None
    (again / "README.md").unlink()
    (again / "new.txt").touch()
    assert difference(again, whole) == "README.md is missing; new.txt is new"


def test_a_child_killed_at_a_call(tmp_path: Path) -> None:
    kill = forked.kill_at_call(distiller, "main", 2)
    log = tmp_path / "log.txt"
    assert forked.run(lambda argv: None, [], log, kill) == 0
    assert forked.run(lambda argv: [distiller.main(), distiller.main()], [], log, kill) != 0
