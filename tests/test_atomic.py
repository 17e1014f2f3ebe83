"""Files and folders appear whole or not at all, damage is named, and nothing foreign is deleted."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from emmental import atomic
from emmental.atomic import (
    MANIFEST,
    DamagedError,
    atomic_file,
    atomic_folder,
    is_ours,
    read_manifest,
    read_object,
    remove_folder,
    remove_leftovers,
    sha256_of,
    unclaimed,
    verify_folder,
    write_json,
    write_text,
)
from emmental.errors import UserError


def test_files_are_as_readable_as_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "ordinary").touch()
    with atomic_file(tmp_path / "file") as temporary:
        save_file({"a": torch.zeros(1)}, temporary)
    with atomic_folder(tmp_path / "folder") as temporary:
        save_file({"a": torch.zeros(1)}, temporary / "model.safetensors")
    expected = (tmp_path / "ordinary").stat().st_mode
    assert (tmp_path / "file").stat().st_mode == expected
    assert (tmp_path / "folder" / "model.safetensors").stat().st_mode == expected


def run_and_die(code: str, folder: Path) -> None:
    """Run code in a process that ends itself, without any clean-up, with status 9.

    The module is loaded from its file: importing the package would import PyTorch.
    """
    program = (
        "import importlib.util, os, sys\nfrom pathlib import Path\n"
        "spec = importlib.util.spec_from_file_location('atomic', sys.argv[1])\n"
        "atomic = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(atomic)\n"
        f"folder = Path(sys.argv[2])\n{code}"
    )
    finished = subprocess.run([sys.executable, "-c", program, str(atomic.__file__), str(folder)], check=False)
    assert finished.returncode == 9


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A finished folder with two files, one of them in a folder of its own."""
    with atomic_folder(tmp_path / "checkpoint-1") as temporary:
        (temporary / "weights.bin").write_bytes(b"abc")
        (temporary / "tokenizer").mkdir()
        (temporary / "tokenizer" / "vocab.txt").write_text("a\nb\n")
    return tmp_path / "checkpoint-1"


class TestFile:
    def test_written_whole_and_nothing_beside_it(self, tmp_path):
        with atomic_file(tmp_path / "deep" / "file.txt") as temporary:
            assert not (tmp_path / "deep" / "file.txt").exists()
            temporary.write_text("new")
        assert (tmp_path / "deep" / "file.txt").read_text() == "new"
        assert names(tmp_path / "deep") == ["file.txt"]

    def test_an_error_leaves_the_old_file(self, tmp_path):
        (tmp_path / "file.txt").write_text("old")

        def interrupted() -> None:
            with atomic_file(tmp_path / "file.txt") as temporary:
                temporary.write_text("half")
                raise RuntimeError("stop")

        with pytest.raises(RuntimeError, match="stop"):
            interrupted()
        assert (tmp_path / "file.txt").read_text() == "old"
        assert names(tmp_path) == ["file.txt"]

    def test_a_killed_writer_leaves_the_old_file(self, tmp_path):
        (tmp_path / "file.txt").write_text("old")
        run_and_die(
            "with atomic.atomic_file(folder / 'file.txt') as temporary:\n"
            "    temporary.write_text('half')\n"
            "    os._exit(9)\n",
            tmp_path,
        )
        assert (tmp_path / "file.txt").read_text() == "old"
        assert len(names(tmp_path)) == 2
        remove_leftovers(tmp_path)
        assert names(tmp_path) == ["file.txt"]

    def test_text_is_utf8_with_plain_line_ends(self, tmp_path):
        write_text(tmp_path / "a.txt", "é\n")
        assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa9\n"

    def test_json_knows_no_nan(self, tmp_path):
        write_json(tmp_path / "a.json", {"loss": 0.5})
        assert json.loads((tmp_path / "a.json").read_text()) == {"loss": 0.5}
        for value in (float("nan"), float("inf")):
            with pytest.raises(ValueError, match="JSON"):
                write_json(tmp_path / "a.json", {"loss": value})
        assert json.loads((tmp_path / "a.json").read_text()) == {"loss": 0.5}


class TestFolder:
    def test_manifest_lists_every_file_with_size_and_digest(self, checkpoint):
        assert read_manifest(checkpoint) == {
            "tokenizer/vocab.txt": {"size": 4, "sha256": sha256_of(checkpoint / "tokenizer" / "vocab.txt")},
            "weights.bin": {
                "size": 3,
                "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            },
        }
        verify_folder(checkpoint)
        assert names(checkpoint.parent) == ["checkpoint-1"]

    def test_an_error_leaves_nothing(self, tmp_path):
        def interrupted() -> None:
            with atomic_folder(tmp_path / "checkpoint-1") as temporary:
                (temporary / "weights.bin").write_bytes(b"half")
                raise RuntimeError("stop")

        with pytest.raises(RuntimeError, match="stop"):
            interrupted()
        assert names(tmp_path) == []

    def test_an_error_leaves_the_folder_that_stood_there(self, checkpoint):
        def interrupted() -> None:
            with atomic_folder(checkpoint) as temporary:
                (temporary / "weights.bin").write_bytes(b"half")
                raise RuntimeError("stop")

        with pytest.raises(RuntimeError, match="stop"):
            interrupted()
        verify_folder(checkpoint)
        assert (checkpoint / "weights.bin").read_bytes() == b"abc"

    def test_a_folder_of_ours_is_replaced_as_a_whole(self, checkpoint):
        with atomic_folder(checkpoint) as temporary:
            (temporary / "other.bin").write_bytes(b"x")
        assert names(checkpoint) == [MANIFEST, "other.bin"]
        verify_folder(checkpoint)
        assert names(checkpoint.parent) == ["checkpoint-1"]

    def test_a_foreign_folder_is_left_alone(self, tmp_path):
        theirs = tmp_path / "checkpoint-1"
        theirs.mkdir()
        (theirs / "thesis.txt").write_text("years of work")

        entered = []

        def write() -> None:
            with atomic_folder(theirs) as temporary:
                entered.append(temporary)

        for action in (write, lambda: remove_folder(theirs)):
            with pytest.raises(UserError, match="left alone"):
                action()
        assert entered == []  # refused before anything is written
        assert (theirs / "thesis.txt").read_text() == "years of work"
        assert names(tmp_path) == ["checkpoint-1"]

    @pytest.mark.parametrize(
        "manifest", ['{"name": "a web app", "icons": []}', '{"files": {}}', "{", '{"files": {"thesis.txt": 1}}']
    )
    def test_a_manifest_of_another_program_makes_no_folder_ours(self, tmp_path, manifest):
        theirs = tmp_path / "app"
        (theirs / "source").mkdir(parents=True)
        (theirs / "source" / "thesis.txt").write_text("years of work")
        (theirs / MANIFEST).write_text(manifest)
        with pytest.raises(UserError, match="left alone"), atomic_folder(theirs):
            pass
        assert (theirs / "source" / "thesis.txt").read_text() == "years of work"
        assert names(tmp_path) == ["app"]

    def test_a_file_that_the_user_put_into_our_folder_is_never_deleted(self, checkpoint):
        assert is_ours(checkpoint)
        (checkpoint / "tokenizer" / "notes.txt").write_text("mine")
        assert not is_ours(checkpoint, damaged_too=True)
        with pytest.raises(UserError, match="left alone"), atomic_folder(checkpoint, damaged_too=True):
            pass
        with pytest.raises(UserError, match="left alone"):
            remove_folder(checkpoint)
        assert unclaimed(checkpoint).name == "checkpoint-1-2"
        assert (checkpoint / "tokenizer" / "notes.txt").read_text() == "mine"
        verify_folder(checkpoint)

    def test_a_damaged_manifest_is_ours_only_where_the_name_is(self, checkpoint):
        (checkpoint / MANIFEST).write_text('{"files": {"weights.bin"')
        assert not is_ours(checkpoint)
        assert is_ours(checkpoint, damaged_too=True)
        with atomic_folder(checkpoint, damaged_too=True) as temporary:
            (temporary / "other.bin").write_bytes(b"x")
        assert names(checkpoint) == [MANIFEST, "other.bin"]

    @pytest.mark.parametrize(
        "dies",
        [
            pytest.param(
                "with atomic.atomic_folder(folder / 'checkpoint-1') as temporary:\n"
                "    (temporary / 'weights.bin').write_bytes(b'half')\n"
                "    os._exit(9)\n",
                id="while its files are written",
            ),
            pytest.param(
                "atomic._write_manifest = lambda folder: os._exit(9)\n"
                "with atomic.atomic_folder(folder / 'checkpoint-1') as temporary:\n"
                "    (temporary / 'weights.bin').write_bytes(b'abc')\n",
                id="before the manifest",
            ),
            pytest.param(
                "atomic._replace_folder = lambda temporary, path: os._exit(9)\n"
                "with atomic.atomic_folder(folder / 'checkpoint-1') as temporary:\n"
                "    (temporary / 'weights.bin').write_bytes(b'abc')\n",
                id="before the rename",
            ),
        ],
    )
    def test_a_killed_writer_leaves_nothing_under_the_final_name(self, tmp_path, dies):
        run_and_die(dies, tmp_path)
        assert not (tmp_path / "checkpoint-1").exists()
        assert len(names(tmp_path)) == 1
        remove_leftovers(tmp_path)
        assert names(tmp_path) == []

    def test_a_killed_remover_leaves_no_half_folder_under_the_name(self, checkpoint):
        run_and_die("atomic.shutil.rmtree = lambda *_, **__: os._exit(9)\natomic.remove_folder(folder)\n", checkpoint)
        assert not checkpoint.exists()
        remove_leftovers(checkpoint.parent)
        assert names(checkpoint.parent) == []

    def test_removal(self, checkpoint):
        remove_folder(checkpoint)
        assert names(checkpoint.parent) == []


class TestLeftovers:
    def test_only_names_that_this_module_gives_are_removed(self, tmp_path):
        (tmp_path / ".incomplete-a-0123").mkdir()
        (tmp_path / ".incomplete-b-4567").write_text("half")
        (tmp_path / "incomplete-thesis").mkdir()
        (tmp_path / ".hidden").write_text("theirs")
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / ".incomplete-c").write_text("deeper")
        remove_leftovers(tmp_path)
        assert names(tmp_path) == [".hidden", "folder", "incomplete-thesis"]
        assert names(tmp_path / "folder") == [".incomplete-c"]

    def test_a_missing_folder_has_none(self, tmp_path):
        remove_leftovers(tmp_path / "nowhere")
        assert names(tmp_path) == []


class TestDamage:
    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda f: (f / "weights.bin").unlink(), "weights.bin is missing"),
            (lambda f: (f / "weights.bin").write_bytes(b"ab"), "weights.bin has 2 bytes, 3 were written"),
            (lambda f: (f / "weights.bin").write_bytes(b"abd"), "weights.bin has changed"),
            (lambda f: (f / "tokenizer" / "vocab.txt").write_text("a\nc\n"), "vocab.txt has changed"),
            (lambda f: (f / MANIFEST).unlink(), "manifest.json is missing or unreadable"),
            (lambda f: (f / MANIFEST).write_text(""), "manifest.json is missing or unreadable"),
            (lambda f: (f / MANIFEST).write_text('{"files": {"weights.bin"'), "missing or unreadable"),
            (lambda f: (f / MANIFEST).write_text("[]"), "missing or unreadable"),
            (lambda f: (f / MANIFEST).write_text('{"files": []}'), "missing or unreadable"),
            (lambda f: (f / MANIFEST).write_text('{"files": {"a": {"size": 3}}}'), "missing or unreadable"),
            (lambda f: (f / MANIFEST).write_text('{"files": {"a": {"size": "x", "sha256": ""}}}'), "unreadable"),
            (lambda f: (f / MANIFEST).write_bytes(b"\xff\xfe\x00"), "missing or unreadable"),
            (lambda f: (f / MANIFEST).write_text("[" * 100_000), "missing or unreadable"),
            (
                lambda f: (f / MANIFEST).write_text('{"files": {"%s": {"size": 1, "sha256": ""}}}' % ("a" * 300)),
                "too long",
            ),
            (lambda f: (f / MANIFEST).write_text('{"files": {"a": {"size": 1e999, "sha256": ""}}}'), "unreadable"),
        ],
        ids=range(15),
    )
    def test_damage_is_named(self, checkpoint, damage, message):
        damage(checkpoint)
        with pytest.raises(DamagedError, match=message):
            verify_folder(checkpoint)

    def test_a_file_that_was_added_is_no_damage(self, checkpoint):
        (checkpoint / "notes.txt").write_text("mine")
        verify_folder(checkpoint)
        assert "notes.txt" not in read_manifest(checkpoint)

    def test_digest_of_known_bytes(self, tmp_path):
        (tmp_path / "empty").write_bytes(b"")
        assert sha256_of(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


class TestReplacing:
    def test_the_former_folder_comes_back_when_the_new_one_cannot_take_its_place(self, checkpoint, monkeypatch):
        before = read_manifest(checkpoint)
        rename = atomic.os.rename

        def fail_once(source, target):
            if str(target) == str(checkpoint) and (Path(source) / "new.bin").exists():
                raise OSError("no space")
            rename(source, target)

        monkeypatch.setattr(atomic.os, "rename", fail_once)

        def replace() -> None:
            with atomic_folder(checkpoint) as temporary:
                (temporary / "new.bin").write_bytes(b"new")

        with pytest.raises(OSError, match="no space"):
            replace()
        assert read_manifest(checkpoint) == before
        assert names(checkpoint.parent) == ["checkpoint-1"]

    def test_what_is_not_ours_gets_a_numbered_neighbour(self, checkpoint):
        assert unclaimed(checkpoint) == checkpoint
        assert unclaimed(checkpoint.parent / "none") == checkpoint.parent / "none"
        (checkpoint / MANIFEST).unlink()
        assert unclaimed(checkpoint).name == "checkpoint-1-2"
        (checkpoint.parent / "checkpoint-1-2").mkdir()
        assert unclaimed(checkpoint).name == "checkpoint-1-3"


class TestFullDisk:
    @pytest.mark.parametrize(
        "error",
        [
            OSError(errno.ENOSPC, "No space left on device"),
            OSError(errno.EDQUOT, "Disk quota exceeded"),
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        ],
        ids=["full", "quota", "safetensors"],
    )
    def test_one_line_with_path_and_bytes_and_nothing_left(self, tmp_path, error):
        for make, name in ((atomic.atomic_folder, "folder"), (atomic.atomic_file, "file")):
            with pytest.raises(UserError, match=rf"no space left to write .*{name}: 5 bytes .* are free") as caught:
                self.write_five_bytes(make, tmp_path / name, error)
            assert "\n" not in str(caught.value)
            assert list(tmp_path.iterdir()) == []

    @staticmethod
    def write_five_bytes(make, path, error):
        with make(path) as temporary:
            (temporary / "part" if temporary.is_dir() else temporary).write_bytes(b"12345")
            raise error

    @pytest.mark.parametrize(
        "error",
        [OSError(errno.EIO, "Input/output error"), SafetensorError("I/O error: Input/output error (os error 5)")],
        ids=["system", "safetensors"],
    )
    def test_a_broken_disk_is_one_line_too(self, tmp_path, error):
        with pytest.raises(UserError, match=r"folder cannot be written: Input/output error$"):
            self.write_five_bytes(atomic.atomic_folder, tmp_path / "folder", error)
        assert list(tmp_path.iterdir()) == []

    def test_another_error_stays_what_it_is(self, tmp_path):
        with pytest.raises(OSError, match="is a bug"):
            self.write_five_bytes(atomic.atomic_folder, tmp_path / "folder", OSError(errno.EINVAL, "is a bug"))


@pytest.mark.parametrize("content", [None, b"", b'{"a": 1', b"[1]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json_object_reads_as_an_empty_one(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "facts.json"
    if content is not None:
        file.write_bytes(content)
    assert read_object(file) == {}
    assert read_object(tmp_path) == read_object(file / "inside") == {}
    write_json(file, {"a": [1, None]})
    assert read_object(file) == {"a": [1, None]}
