"""The output folder: one run at a time, and nothing is removed but what the program wrote."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import tiny
import torch
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

from emmental import atomic
from emmental.runs.checkpoints import prune_checkpoints
from emmental.runs.output_folder import LOCK, WRITTEN_FILE, OutputFolder


@pytest.fixture
def output(tmp_path: Path):
    folder = OutputFolder(tmp_path / "out")
    yield folder
    folder.close()


def contents(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")} - {LOCK}


class TestLock:
    def test_a_second_run_is_refused_until_the_first_ends(self, output):
        with pytest.raises(ValueError, match=r"--output_dir .*out is in use by another run"):
            OutputFolder(output.path)
        output.close()
        OutputFolder(output.path).close()
        assert (output.path / LOCK).exists()

    def test_a_process_that_dies_gives_the_lock_up(self, tmp_path):
        child = os.fork()
        if child == 0:
            OutputFolder(tmp_path / "out")
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        OutputFolder(tmp_path / "out").close()
        assert (tmp_path / "out" / LOCK).exists()

    def test_a_forked_helper_that_outlives_a_run_does_not_hold_its_lock(self, output):
        ready, begun = os.pipe()
        helper = os.fork()
        if helper == 0:
            os.write(begun, b"1")
            time.sleep(30)
            os._exit(0)
        assert os.read(ready, 1) == b"1"
        output.close()
        OutputFolder(output.path).close()
        os.kill(helper, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(helper, 0)[1]) == -signal.SIGKILL

    def test_a_file_in_the_way(self, tmp_path):
        (tmp_path / "out").write_text("")
        with pytest.raises(ValueError, match=r"--output_dir .*out cannot be written to"):
            OutputFolder(tmp_path / "out")
        with pytest.raises(ValueError, match=r"--dump_path .*out cannot be written to"):
            OutputFolder(tmp_path / "out", "--dump_path")

    def test_parents_are_made_and_leftovers_of_a_killed_run_removed(self, tmp_path):
        folder = tmp_path / "a" / "b"
        OutputFolder(folder).close()
        (folder / ".incomplete-checkpoint-3-abc").mkdir()
        OutputFolder(folder).close()
        assert contents(folder) == set()

    def test_leftovers_beside_recorded_files_go_and_others_stay(self, output):
        output.write_text("evaluations/checkpoint-4/eval_results.txt", "")
        output.close()
        leftover = output.path / "evaluations" / "checkpoint-4" / ".incomplete-eval_results.json-abc"
        leftover.touch()
        theirs = output.path / "caches" / ".incomplete-features-abc"
        theirs.mkdir(parents=True)
        OutputFolder(output.path).close()
        assert not leftover.exists()
        assert theirs.exists()


class TestWhatTheUserPutThere:
    def test_a_file_under_a_name_of_ours_is_kept_under_another(self, output):
        (output.path / "README.md").write_text("mine")
        (output.path / "README.md.kept-1").write_text("mine too")
        output.write_text("README.md", "card 1")
        output.write_text("README.md", "card 2")
        assert (output.path / "README.md.kept-2").read_text() == "mine"
        output.start_afresh()
        assert contents(output.path) == {"README.md.kept-1", "README.md.kept-2"}

    def test_a_run_whose_record_was_deleted_knows_its_own_files(self, output):
        output.write_text("train_log.jsonl", "rows")
        with atomic.atomic_folder(output.path / "checkpoint-3") as temporary:
            (temporary / "weights").write_bytes(b"x")
        (output.path / WRITTEN_FILE).unlink()
        output.close()
        again = OutputFolder(output.path)
        again.record("train_log.jsonl")
        again.close()
        assert contents(output.path) >= {"train_log.jsonl", WRITTEN_FILE}
        assert not list(output.path.glob("*.kept-*"))

    def test_a_checkpoint_with_notes_in_it_is_kept_under_another_name(self, output):
        for step in (3, 6):
            with atomic.atomic_folder(output.path / f"checkpoint-{step}") as temporary:
                (temporary / "weights").write_bytes(b"x")
        (output.path / "checkpoint-3" / "notes.txt").write_text("mine")
        prune_checkpoints(output.path, 1, None, 6)
        assert (output.path / "checkpoint-3.not-verified-1" / "notes.txt").read_text() == "mine"
        (output.path / "checkpoint-6" / "notes.txt").write_text("mine")
        output.start_afresh()
        assert (output.path / "checkpoint-6.not-verified-1" / "notes.txt").read_text() == "mine"

    def test_links_in_the_place_of_checkpoints_are_kept_and_not_followed(self, output, tmp_path):
        for step in (3, 6):
            with atomic.atomic_folder(tmp_path / "elsewhere" / f"checkpoint-{step}") as temporary:
                (temporary / "weights").write_bytes(b"x")
            (output.path / f"checkpoint-{step}").symlink_to(tmp_path / "elsewhere" / f"checkpoint-{step}")
        prune_checkpoints(output.path, 1, None, 6)
        assert (output.path / "checkpoint-3.not-verified-1").is_symlink()
        assert (tmp_path / "elsewhere" / "checkpoint-3" / "weights").read_bytes() == b"x"
        assert (output.path / "checkpoint-6" / "weights").read_bytes() == b"x"


class TestStartAfresh:
    def test_ours_goes_and_theirs_stays(self, output):
        output.write_json("training_args.json", {})
        output.write_text("evaluations/checkpoint-3/eval_results.txt", "acc = 1\n")
        output.write_text("pictures/overview-3.png", "")
        with atomic.atomic_folder(output.path / "checkpoint-3") as temporary:
            (temporary / "weights").write_bytes(b"x")
        theirs = ("thesis.txt", "pictures/holiday.png", "checkpoint-4/notes.txt", "checkpoint-best/model.bin")
        for name in theirs:
            (output.path / name).parent.mkdir(exist_ok=True)
            (output.path / name).write_text("mine")
        output.start_afresh()
        assert contents(output.path) == {*theirs, "pictures", "checkpoint-4", "checkpoint-best"}

    def test_an_empty_folder_stays_empty(self, output):
        output.start_afresh()
        assert contents(output.path) == set()

    def test_recorded_files_that_are_gone_do_not_matter(self, output):
        output.write_text("a.txt", "")
        output.record("never/written.txt")
        (output.path / "a.txt").unlink()
        output.start_afresh()
        assert contents(output.path) == set()

    @pytest.mark.parametrize("name", ["../thesis.txt", "/etc/hosts", "a/../../thesis.txt", ".", ""])
    def test_a_record_that_points_outside_is_refused(self, output, name):
        (output.path.parent / "thesis.txt").write_text("mine")
        (output.path / WRITTEN_FILE).write_text(json.dumps({"written": [name]}))
        with pytest.raises(ValueError, match="names files outside the output folder"):
            output.start_afresh()
        assert (output.path.parent / "thesis.txt").exists()

    def test_a_record_that_leads_outside_through_a_link_is_refused(self, output):
        (output.path.parent / "thesis.txt").write_text("mine")
        (output.path / "link").symlink_to(output.path.parent)
        (output.path / WRITTEN_FILE).write_text(json.dumps({"written": ["link/thesis.txt"]}))
        with pytest.raises(ValueError, match="names files outside the output folder"):
            output.start_afresh()
        assert (output.path.parent / "thesis.txt").read_text() == "mine"

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"wrote": []}', "\udcff"])
    def test_a_damaged_record_is_named(self, output, text):
        (output.path / WRITTEN_FILE).write_text(text, errors="surrogateescape")
        with pytest.raises(ValueError, match=r"\.emmental\.json is damaged; delete it to go on"):
            output.start_afresh()
        assert (output.path / WRITTEN_FILE).exists()


class TestWriting:
    def test_every_file_is_recorded_once(self, output):
        for _ in range(2):
            output.write_text("b.txt", "x")
            output.write_json("sub/a.json", {"acc": 1.0})
        assert json.loads((output.path / WRITTEN_FILE).read_text()) == {"written": ["b.txt", "sub/a.json"]}
        assert json.loads((output.path / "sub" / "a.json").read_text()) == {"acc": 1.0}

    def test_nan_never_reaches_a_file(self, output):
        with pytest.raises(ValueError, match="JSON"):
            output.write_json("eval_results.json", {"acc": float("nan")})
        assert not (output.path / "eval_results.json").exists()


class TestSaveModel:
    MODEL = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")

    @pytest.fixture
    def model(self, bert_dir) -> BertForSequenceClassification:
        return BertForSequenceClassification.from_pretrained(bert_dir).eval()

    def test_model_and_tokenizer_stand_in_the_folder_and_are_recorded(self, output, model):
        output.save_model(model, tiny.tokenizer())
        assert contents(output.path) == {*self.MODEL, WRITTEN_FILE}
        assert json.loads((output.path / WRITTEN_FILE).read_text())["written"] == sorted(self.MODEL)
        reloaded = AutoModelForSequenceClassification.from_pretrained(output.path).eval()
        ids = torch.tensor([[2, 7, 3]])
        with torch.no_grad():
            assert torch.allclose(reloaded(ids).logits, model(ids).logits, atol=1e-6)
        output.start_afresh()
        assert contents(output.path) == set()

    def test_a_second_model_replaces_the_first(self, output, model):
        output.save_model(model, tiny.tokenizer())
        with torch.no_grad():
            model.classifier.bias.fill_(3.0)
        output.save_model(model, None)
        reloaded = AutoModelForSequenceClassification.from_pretrained(output.path)
        assert reloaded.classifier.bias.tolist() == [3.0, 3.0]

    @pytest.mark.parametrize("moves", [0, 1, 2, 3])
    def test_half_a_model_is_none(self, output, model, monkeypatch, moves):
        output.save_model(model, tiny.tokenizer())
        made = []
        replace = Path.replace

        def interrupted(self: Path, target: Path) -> Path:
            if len(made) == moves:
                raise KeyboardInterrupt
            made.append(self.name)
            return replace(self, target)

        monkeypatch.setattr(Path, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            output.save_model(model, tiny.tokenizer())
        assert "config.json" not in made
        assert not (output.path / "config.json").exists()
        monkeypatch.setattr(Path, "replace", replace)
        output.save_model(model, tiny.tokenizer())
        assert contents(output.path) == {*self.MODEL, WRITTEN_FILE}
