"""File systems that lack something, commands that would overwrite what they read, and users without a home."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

import visualizing_image
from emmental import atomic
from emmental.cascade import __main__ as cascade
from emmental.command_line import OneLineParser, _ensure_home
from emmental.data import cache_folder as caches
from emmental.errors import UserError
from emmental.export import bertarize, shrink
from emmental.export import onnx as onnx_command
from emmental.inference import predict
from emmental.language_models import corpus, student_init
from emmental.runs.output_folder import OutputFolder


def refuse(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, number: int, folders: bool = False) -> None:
    """Let a call fail; with `folders`, only for folders."""
    original = getattr(owner, name)

    def refusing(place: object, *args: object, **kwargs: object) -> object:
        if folders and not stat.S_ISDIR(os.stat(place).st_mode):
            return original(place, *args, **kwargs)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(owner, name, refusing)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_run_goes_on_without_locks_and_says_so(tmp_path, monkeypatch, caplog, number):
    refuse(monkeypatch, fcntl, "flock", number)
    OutputFolder(tmp_path / "out").close()
    assert f"no locks there ({os.strerror(number)}), so start no second run in it" in caplog.text


def test_a_lock_that_is_held_still_refuses(tmp_path, monkeypatch):
    refuse(monkeypatch, fcntl, "flock", errno.EWOULDBLOCK)
    with pytest.raises(UserError, match="in use by another run"):
        OutputFolder(tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "number", "folders"),
    [
        *[("fsync", number, True) for number in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)],
        ("fsync", errno.ENOSYS, False),
        *[("chmod", number, False) for number in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)],
        ("rename", errno.EXDEV, True),
    ],
)
def test_files_and_folders_are_written_without(tmp_path, monkeypatch, name, number, folders):
    def write(text: str) -> None:
        atomic.write_text(tmp_path / "file", text)
        with atomic.atomic_folder(tmp_path / "folder") as temporary:
            (temporary / "part").write_text(text)

    write("before")
    if name == "rename":  # the folder of a container's image cannot be renamed, a new one can
        original = os.rename
        image = (tmp_path / "folder").stat().st_ino

        def rename(source: object, target: object) -> None:
            if os.stat(source).st_ino == image:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            original(source, target)

        monkeypatch.setattr(os, "rename", rename)
    else:
        refuse(monkeypatch, os, name, number, folders)
    write("after")
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "part").read_text() == "after"
    atomic.verify_folder(tmp_path / "folder")
    atomic.remove_folder(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_failing_disk_is_no_courtesy(tmp_path, monkeypatch, number):
    refuse(monkeypatch, os, "fsync", number)
    with pytest.raises(UserError):
        atomic.write_text(tmp_path / "file", "x")
    assert list(tmp_path.iterdir()) == []


def test_what_is_lost_is_seen_through_links_and_upper_case(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").touch()
    (tmp_path / "link").symlink_to("a/b")
    for read in ("a/b/file", "link/file", "./a/../link", "a/b", str(tmp_path / "a" / "b")):
        with pytest.raises(UserError, match=rf"^--out x would remove or replace --in {read}, which is read"):
            atomic.refuse_losing({"--in": ["a", read]}, ["a/b"], "--out x")
        atomic.refuse_losing({"--in": read}, ["a/c"], "--out x")
    atomic.refuse_losing({"--in": "a/b/file", "--other": None, "--hub": "a/no-such"}, [], "--out x", itself=["a/b"])
    # On a disk that does not tell cases apart, A/B is the same folder: it has the same device and number.
    stat_of = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **options: stat_of(str(path).replace("A/B", "a/b"), **options))
    with pytest.raises(UserError, match="--in A/B,"):
        atomic.refuse_losing({"--in": "A/B"}, ["a/b"], "--out x")


def one_line(main: object, argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as left:
        main(argv)
    assert left.value.code == 2
    return capsys.readouterr().err.splitlines()[-1].partition("error: ")[2]


@pytest.mark.parametrize(
    ("main", "flags"),
    [
        (shrink.main, ["--model_name_or_path", "link/m", "--output", "m"]),
        (bertarize.main, ["--model_name_or_path", "m", "--output", "link/m"]),
        (onnx_command.main, ["--model_name_or_path", "m/", "--output", "m"]),
        (student_init.main, ["--model_name_or_path", "m", "--output", "m"]),
        (corpus.main, ["binarize", "--model_name_or_path", "m", "--output", "m", "--file_path", "answers"]),
        (cascade.main, ["--models", "served/stage", "m", "--texts", "answers", "--output", "served"]),
        (cascade.main, ["--predict", "answers", "--output", "./answers"]),
        (predict.main, ["--input", "link/answers", "--output", "answers", "--model_name_or_path", "m"]),
        (visualizing_image.main, ["--image", "i.png", "--boxes", "boxes.json", "--output", "link/i.png"]),
    ],
)
def test_tools_do_not_replace_what_they_read(tmp_path, monkeypatch, capsys, main, flags):
    monkeypatch.chdir(tmp_path)
    with atomic.atomic_folder(tmp_path / "m") as temporary:  # marked as what each of these commands makes
        tiny.save_bert(temporary)
        (temporary / "onnx").mkdir()
        (temporary / "onnx" / "model.onnx").touch()
        (temporary / "README.md").write_text(bertarize._MARK + shrink._MARK)
    tiny.save_bert(tmp_path / "served" / "stage")
    (tmp_path / "answers").write_text("kasa lote\n")
    (tmp_path / "boxes.json").write_text('{"boxes": []}')
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "i.png")
    (tmp_path / "link").symlink_to(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    line = one_line(main, flags, capsys)
    assert line.startswith(f"--output {flags[flags.index('--output') + 1]} would remove or replace --")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


class TestNoHome:
    @pytest.fixture(autouse=True)
    def _anew(self, tmp_path, monkeypatch):
        (tmp_path / "tmp").mkdir()
        monkeypatch.setattr(atomic.tempfile, "tempdir", str(tmp_path / "tmp"))
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        caches._usual_folder.cache_clear()
        yield
        caches._usual_folder.cache_clear()

    def test_a_folder_of_the_user_stands_in(self, tmp_path, monkeypatch, capsys):
        def none(path: Path) -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "home", classmethod(none))
        environment = {}
        _ensure_home(environment)
        own = tmp_path / "tmp" / f"emmental-{os.getuid()}"
        assert environment == {"HOME": str(own)}
        assert stat.S_IMODE(own.stat().st_mode) == 0o700
        assert capsys.readouterr().err == f"there is no home folder: {own} is used instead\n"

    @pytest.mark.parametrize("home", ["none", "a-file"])
    def test_a_home_that_is_no_folder(self, tmp_path, monkeypatch, home):
        (tmp_path / "a-file").touch()
        monkeypatch.setenv("HOME", str(tmp_path / home))
        OneLineParser("").parse_args([])
        assert os.environ["HOME"] == str(tmp_path / "tmp" / f"emmental-{os.getuid()}")

    @pytest.mark.parametrize("place", ["a-file", "read-only"])
    def test_a_cache_that_cannot_be_written(self, tmp_path, monkeypatch, caplog, place):
        (tmp_path / "a-file").touch()
        (tmp_path / "read-only").mkdir()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / place))
        if place == "read-only":
            monkeypatch.setattr(os, "access", lambda *_: False)  # permissions do not bind root
        own = tmp_path / "tmp" / f"emmental-{os.getuid()}"
        assert [caches.cache_folder(), caches.cache_folder("")] == [own, own]
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert record.getMessage().startswith(f"caches go to {own} (")
        assert caches.cache_folder("asked") == Path("asked")

    def test_somebody_else_there_is_one_line(self, tmp_path, monkeypatch):
        (tmp_path / "a-file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a-file"))
        (tmp_path / "tmp" / f"emmental-{os.getuid()}").symlink_to(tmp_path)
        with pytest.raises(
            UserError, match=r"no folder for caches \(.*belongs to another user.*give --feature_cache_dir"
        ):
            caches.cache_folder()


def test_a_tilde_after_an_equals_sign_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    parser = OneLineParser("")
    for name in ("--output", "--input", "--delimiter"):
        parser.add_argument(name)
    args = parser.parse_args(["--output=~/x", "--input", "~/y", "--delimiter", "~"])
    assert (args.output, args.input, args.delimiter) == (f"{tmp_path}/x", f"{tmp_path}/y", "~")
