"""Which checkpoint a run goes on from, and when it is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emmental import atomic
from emmental.flags import Flags, flag, switch
from emmental.runs.resuming import checkpoint_to_resume
from emmental.runs.run import DISTILLER_FLAGS, TRAINER_FLAGS, FolderFlags, Run


def checkpoint(folder: Path, step: int, **arguments: object) -> Path:
    with atomic.atomic_folder(folder / f"checkpoint-{step}") as temporary:
        arguments["world_size"] = 1
        (temporary / "training_state.json").write_text(json.dumps({"arguments": arguments}))
    return folder / f"checkpoint-{step}"


def run_in(folder: Path, accept: bool = False, names: FolderFlags = TRAINER_FLAGS, **arguments: object) -> Run:
    """A run in a folder, whose result depends on the arguments."""
    ours = (flag(names.folder, "", changes_result=False), switch("accept_changes", "", changes_result=False))
    others = tuple(flag(name, "") for name in arguments)
    return Run(Flags({"": ours + others}, {names.folder: folder, "accept_changes": accept, **arguments}), names)


def test_nothing_to_resume(tmp_path):
    assert checkpoint_to_resume(run_in(tmp_path)) is None
    assert checkpoint_to_resume(run_in(tmp_path / "nowhere")) is None


def test_the_newest_of_the_same_run(tmp_path):
    checkpoint(tmp_path, 9, seed=42)
    checkpoint(tmp_path, 10, seed=42)
    assert checkpoint_to_resume(run_in(tmp_path, seed=42)).name == "checkpoint-10"


def test_the_one_before_a_damaged_one(tmp_path):
    checkpoint(tmp_path, 9, seed=42)
    (checkpoint(tmp_path, 10, seed=42) / "training_state.json").write_text("")
    assert checkpoint_to_resume(run_in(tmp_path, seed=42)).name == "checkpoint-9"


def test_all_damaged(tmp_path):
    (checkpoint(tmp_path, 10) / "training_state.json").unlink()
    with pytest.raises(ValueError, match=r"every checkpoint in --dump_path .* is damaged; --force starts afresh"):
        checkpoint_to_resume(run_in(tmp_path, names=DISTILLER_FLAGS))


def test_another_run_is_refused_with_all_that_differs(tmp_path):
    checkpoint(tmp_path, 3, seed=42, rate=0.1, old=1)
    identity = {"seed": 43, "rate": 0.1, "new": True}
    with pytest.raises(ValueError, match="holds another run") as caught:
        checkpoint_to_resume(run_in(tmp_path, **identity))
    message = str(caught.value)
    assert "(checkpoint-3): new None -> True; old 1 -> None; seed 42 -> 43." in message
    assert "--overwrite_output_dir" in message
    assert "--accept_changes" in message
    assert "rate" not in message
    assert checkpoint_to_resume(run_in(tmp_path, accept=True, **identity)).name == "checkpoint-3"


def test_a_flag_that_the_version_before_lacked_counts_as_its_default(tmp_path):
    checkpoint(tmp_path, 3, seed=42)
    run = run_in(tmp_path, seed=42)
    for declared in (flag("added", "", 2), flag("shown", "", 1, changes_result=False)):
        run = Run(Flags({"": (*run.flags.declared, declared)}, vars(run.flags)))
    assert checkpoint_to_resume(run).name == "checkpoint-3"
    run.added = 3
    with pytest.raises(ValueError, match=r"\(checkpoint-3\): added 2 -> 3\. Choose"):
        checkpoint_to_resume(run)


def test_a_flag_may_have_stood_for_something_else_before(tmp_path):
    checkpoint(tmp_path, 3, seed=42)
    run = run_in(tmp_path, seed=42)
    run = Run(Flags({"": (*run.flags.declared, flag("recipe", "", "auto", earlier="paper"))}, vars(run.flags)))
    with pytest.raises(
        ValueError, match=r"of an earlier version \(checkpoint-3\): recipe 'paper' -> 'auto'"
    ) as raised:
        checkpoint_to_resume(run)
    assert "or --recipe paper --accept_changes to resume anyway" in str(raised.value)
    run.recipe = "paper"
    assert checkpoint_to_resume(run).name == "checkpoint-3"


def test_the_distance_of_checkpoints_counts_where_the_best_one_is_chosen(tmp_path):
    from emmental.training.arguments import FLAGS

    def run(**given: object) -> Run:
        return Run(Flags(FLAGS, {"output_dir": tmp_path, "task_name": "rte", **given}))

    def write(of: Run) -> None:
        checkpoint(tmp_path, 3, **of.flags.of_result())

    write(run(save_steps=10))
    assert checkpoint_to_resume(run(save_steps=20)).name == "checkpoint-3"
    with pytest.raises(ValueError, match=r"another run \(checkpoint-3\): seed 42 -> 43\. Choose"):
        checkpoint_to_resume(run(seed=43))
    with pytest.raises(ValueError, match=r"load_best_model_at_end False -> True"):
        checkpoint_to_resume(run(save_steps=10, load_best_model_at_end=True))
    (tmp_path / "checkpoint-3").rename(tmp_path / "other")
    write(run(save_steps=10, load_best_model_at_end=True))
    assert checkpoint_to_resume(run(save_steps=10, load_best_model_at_end=True)).name == "checkpoint-3"
    with pytest.raises(ValueError, match=r"\(checkpoint-3\): save_steps 10 -> 20\. Choose"):
        checkpoint_to_resume(run(save_steps=20, load_best_model_at_end=True))
