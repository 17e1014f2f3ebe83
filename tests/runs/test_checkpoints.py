"""Checkpoints: everything comes back bit for bit, damage is passed over, only our own folders are removed."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from emmental import MaskedBertConfig, MaskedBertForSequenceClassification
from emmental.runs import checkpoints
from emmental.runs.checkpoints import (
    check_form,
    checkpoints_in,
    last_written,
    load_checkpoint,
    newest_good_checkpoint,
    prune_checkpoints,
    read_state,
    save_checkpoint,
)
from emmental.runs.optimization import adamw, parameter_groups
from emmental.runs.processes import Processes

FILES = {
    "config.json",
    "manifest.json",
    "model.safetensors",
    "optimizer.safetensors",
    "rng.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "training_state.json",
}


class Run:
    """A masked model, its optimizer, and updates on random data."""

    def __init__(self, bert_dir: Path, seed: int = 0, **masking: object) -> None:
        torch.manual_seed(seed)
        config = MaskedBertConfig.from_dense(
            AutoConfig.from_pretrained(bert_dir), mask_init="kaiming", threshold=0.3, **masking
        )
        self.model = MaskedBertForSequenceClassification.from_pretrained(bert_dir, config=config).train()
        self.optimizer = adamw(parameter_groups(self.model, 1e-2, 0.1, 1e-1), 1e-8)

    def update(self) -> None:
        ids = torch.randint(5, 41, (4, 6))
        labels = torch.tensor(np.random.randint(0, 2, 4) ^ random.getrandbits(1))
        self.model(input_ids=ids, labels=labels).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def save(self, folder: Path, step: int, **state: object) -> Path:
        return save_checkpoint(folder, step, self.model, tiny.tokenizer(), self.optimizer, state, Processes())

    def load(self, path: Path) -> dict:
        return load_checkpoint(path, self.model, self.optimizer, Processes())

    def tensors(self) -> dict[str, torch.Tensor]:
        names = dict(self.model.named_parameters())
        states = {f"{name}/{k}": v for name, p in names.items() for k, v in self.optimizer.state.get(p, {}).items()}
        return {**{name: p.detach() for name, p in names.items()}, **states}


def assert_same(one: Run, other: Run) -> None:
    ours, theirs = one.tensors(), other.tensors()
    assert set(ours) == set(theirs)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def seed(value: int) -> None:
    torch.manual_seed(value)
    np.random.seed(value)
    random.seed(value)


class TestRoundTrip:
    def test_a_loaded_run_goes_on_bit_for_bit(self, bert_dir, tmp_path):
        run = Run(bert_dir)
        seed(1)
        for _ in range(3):
            run.update()
        path = run.save(tmp_path, 3, note="kept", loss=0.1)
        for _ in range(3):
            run.update()
        other = Run(bert_dir, seed=9)
        seed(77)
        assert other.load(path) == {"note": "kept", "loss": 0.1}
        for _ in range(3):
            other.update()
        assert_same(run, other)

    def test_generators_continue_where_they_stood(self, bert_dir, tmp_path):
        """Half of a pair of normal numbers is kept back by Python and by NumPy; that half counts too."""

        def draw() -> list[float]:
            return [random.gauss(0, 1), random.random(), np.random.randn(), np.random.rand(), float(torch.randn(1))]

        run = Run(bert_dir)
        seed(5)
        draw()
        path = run.save(tmp_path, 1)
        expected = [draw() for _ in range(3)]
        seed(6)
        run.load(path)
        assert [draw() for _ in range(3)] == expected

    def test_saving_changes_nothing(self, bert_dir, tmp_path):
        run, untouched = Run(bert_dir), Run(bert_dir)
        for each, folder in ((run, tmp_path), (untouched, None)):
            seed(2)
            each.update()
            if folder is not None:
                each.save(folder, 1)
            each.update()
        assert_same(run, untouched)

    def test_before_the_first_update_there_is_no_optimizer_state(self, bert_dir, tmp_path):
        run = Run(bert_dir)
        path = run.save(tmp_path, 0)
        run.update()
        run.load(path)
        assert len(run.optimizer.state) == 0

    def test_the_folder_holds_a_model_and_no_pickle(self, bert_dir, tmp_path):
        run = Run(bert_dir)
        path = run.save(tmp_path, 12)
        assert path == tmp_path / "checkpoint-12"
        assert {file.name for file in path.iterdir()} == FILES
        reloaded = AutoModelForSequenceClassification.from_pretrained(path)
        ids = torch.tensor([[2, 7, 3]])
        with torch.no_grad():
            assert torch.allclose(reloaded.eval()(ids).logits, run.model.eval()(ids).logits, atol=1e-6)

    def test_state_must_be_json(self, bert_dir, tmp_path):
        with pytest.raises(ValueError, match="JSON"):
            Run(bert_dir).save(tmp_path, 1, loss=float("nan"))
        assert list(tmp_path.iterdir()) == []

    def test_state_alone(self, bert_dir, tmp_path):
        path = Run(bert_dir).save(tmp_path, 1, arguments={"seed": 42})
        assert read_state(path) == {"arguments": {"seed": 42}}


class TestMisfits:
    def test_another_architecture(self, bert_dir, tmp_path):
        path = Run(bert_dir).save(tmp_path / "run", 1)
        other = Run(tiny.save_bert(tmp_path / "bert", hidden_size=32))
        with pytest.raises(ValueError, match=r"checkpoint-1 does not fit this run"):
            other.load(path)

    def test_another_pruning_method(self, bert_dir, tmp_path):
        path = Run(bert_dir, pruning_method="magnitude").save(tmp_path, 1)
        with pytest.raises(ValueError, match="12 parameters differ"):
            Run(bert_dir).load(path)

    def test_more_processes_than_it_was_saved_by(self, bert_dir, tmp_path):
        run = Run(bert_dir)
        path = run.save(tmp_path, 1)
        with pytest.raises(ValueError, match="does not fit this run"):
            load_checkpoint(path, run.model, run.optimizer, Processes(rank=1, world_size=2))

    def test_a_model_that_is_not_ours(self, bert_dir, tmp_path):
        path = Run(bert_dir).save(tmp_path, 1)
        layer = nn.Linear(2, 2)
        with pytest.raises(ValueError, match="does not fit this run"):
            load_checkpoint(path, layer, torch.optim.SGD(layer.parameters(), lr=1.0), Processes())

    def test_an_optimizer_of_other_shapes(self, bert_dir, tmp_path):
        run = Run(bert_dir)
        run.update()
        path = run.save(tmp_path, 1)
        tensors = load_file(path / "optimizer.safetensors")
        name = next(name for name in tensors if name.endswith("weight/exp_avg"))
        save_file({**tensors, name: torch.zeros(3, 5)}, path / "optimizer.safetensors")
        with pytest.raises(ValueError, match=rf"does not fit this run: its optimizer.safetensors has {name}"):
            run.load(path)

    def test_a_bug_of_ours_is_not_called_a_misfit(self, bert_dir, tmp_path, monkeypatch):
        run = Run(bert_dir)
        path = run.save(tmp_path, 1)
        monkeypatch.setattr(checkpoints, "_parameters", lambda *_: {}["a bug"])
        with pytest.raises(KeyError, match="a bug"):
            run.load(path)

    @pytest.mark.parametrize(
        ("found", "why"),
        [
            (1, "its state is of type int, not dict"),
            ({"updates": {}}, r"its state\['updates'\] has no 'step'"),
            ({"updates": {"step": "1"}}, r"its state\['updates'\]\['step'\] is of type str, not int"),
            ({"updates": {"step": True}}, r"\['step'\] is of type bool, not int"),
            ({"updates": {"step": 1}, "sums": [1.5]}, r"its state\['sums'\] has 1 entries, not 2"),
            (
                {"updates": {"step": 1}, "sums": [1.5, None]},
                r"an entry of its state\['sums'\] is of type NoneType",
            ),
        ],
    )
    def test_a_state_of_another_form(self, found, why):
        own = {"updates": {"step": 7}, "sums": [0.0, 0.0], "best": None, "names": []}
        with pytest.raises(ValueError, match=f"checkpoint run/checkpoint-1 does not fit this run: .*{why}"):
            check_form(Path("run/checkpoint-1"), found, own)
        fitting = {"updates": {"step": 1, "more": 2}, "sums": [1.5, 2.5], "best": [3], "names": ["a", "b"]}
        check_form(Path("run/checkpoint-1"), fitting, own)


@pytest.fixture
def folder(bert_dir, tmp_path) -> Path:
    """Checkpoints 2, 10 and 12 beside things that only look like checkpoints."""
    run = Run(bert_dir)
    for step in (2, 10, 12):
        run.save(tmp_path, step)
    (tmp_path / "checkpoint-99").mkdir()  # unfinished, or somebody else's
    (tmp_path / "checkpoint-final").mkdir()
    (tmp_path / "my-checkpoint-7").mkdir()
    (tmp_path / "checkpoint-50").write_text("a file")
    return tmp_path


def steps(folder: Path) -> list[str]:
    return [path.name for path in checkpoints_in(folder)]


class TestFinding:
    def test_in_numeric_order(self, folder):
        assert steps(folder) == ["checkpoint-2", "checkpoint-10", "checkpoint-12"]

    def test_the_folders_own_name_does_not_matter(self, folder, tmp_path):
        moved = tmp_path / "checkpoint-2020" / "checkpoint"
        moved.mkdir(parents=True)
        shutil.copytree(folder / "checkpoint-2", moved / "checkpoint-2")
        assert steps(moved) == ["checkpoint-2"]
        assert newest_good_checkpoint(moved).name == "checkpoint-2"

    def test_none(self, tmp_path):
        assert checkpoints_in(tmp_path) == checkpoints_in(tmp_path / "nowhere") == []
        assert newest_good_checkpoint(tmp_path) is None

    @pytest.mark.parametrize("file", sorted(FILES - {"manifest.json"}))
    def test_the_newest_that_is_whole(self, folder, caplog, file):
        assert newest_good_checkpoint(folder).name == "checkpoint-12"
        damaged = folder / "checkpoint-12" / file
        damaged.write_bytes(damaged.read_bytes()[:-1])
        assert newest_good_checkpoint(folder).name == "checkpoint-10"
        # `checkpoint-99` is no checkpoint of ours: each of the two searches says so.
        assert [record.args[0] for record in caplog.records] == ["checkpoint-99", "checkpoint-99", "checkpoint-12"]
        assert f"checkpoint-12 is damaged and not used: {damaged} has" in caplog.text

    def test_damage_of_all_is_named_one_by_one(self, folder, caplog):
        for path in checkpoints_in(folder):
            (path / "model.safetensors").unlink()
        assert newest_good_checkpoint(folder) is None
        assert [record.args[0] for record in caplog.records][1:] == ["checkpoint-12", "checkpoint-10", "checkpoint-2"]

    def test_a_changed_bit_is_damage(self, folder):
        weights = folder / "checkpoint-12" / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-5] ^= 1
        weights.write_bytes(content)
        assert newest_good_checkpoint(folder).name == "checkpoint-10"


class TestPruning:
    @pytest.mark.parametrize(
        ("newest", "best", "left"),
        [
            (None, None, [2, 10, 12]),
            (1, None, [12]),
            (2, None, [10, 12]),
            (5, None, [2, 10, 12]),
            (1, 2, [2, 12]),
            (1, 12, [12]),
            (2, 2, [2, 10, 12]),
        ],
    )
    def test_the_newest_and_the_best_stay(self, folder, newest, best, left):
        prune_checkpoints(folder, newest, best, step=12)
        assert steps(folder) == [f"checkpoint-{step}" for step in left]
        assert (folder / "checkpoint-99").is_dir()
        assert (folder / "checkpoint-final").is_dir()

    def test_damaged_ones_of_later_updates_neither_count_nor_go(self, folder):
        prune_checkpoints(folder, 1, None, step=10)
        assert [name for name in steps(folder) if name != "checkpoint-2"] == ["checkpoint-10", "checkpoint-12"]
        assert "checkpoint-2" not in steps(folder)

    def test_a_checkpoint_is_replaced_by_one_of_the_same_step(self, folder, bert_dir):
        Run(bert_dir).save(folder, 10, again=True)
        assert json.loads((folder / "checkpoint-10" / "training_state.json").read_text()) == {"again": True}
        assert steps(folder) == ["checkpoint-2", "checkpoint-10", "checkpoint-12"]


def test_the_last_checkpoint_may_lie_in_a_phase(bert_dir: Path, tmp_path: Path) -> None:
    assert last_written(tmp_path / "none") is None
    run = Run(bert_dir)
    own, phase = run.save(tmp_path, 7), run.save(tmp_path / "dense", 3)
    assert last_written(tmp_path) == phase
    os.utime(own / "manifest.json", (2**31, 2**31))
    assert last_written(tmp_path) == own
