"""Files and folders that appear whole or not at all.

A checkpoint, a feature cache or an export is written beside its final place, flushed to the disk, and renamed.
A folder carries a `manifest.json`, written last, with the size and SHA-256 of every file in it: a folder without a
manifest was not made here or is not finished, and a file that disagrees with it is damaged.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from emmental.errors import UserError

MANIFEST = "manifest.json"
_TEMPORARY = ".incomplete-"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EIO)
_CANNOT = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM, errno.ENOSYS)
"""How a file system (network, FAT, FUSE) refuses a flush or permissions that it does not have."""
_NUMBER_IN_TEXT = re.compile(r"\(os error (\d+)\)")
"""How Safetensors, which writes its files itself, reports the system's errors."""
_UMASK = os.umask(0)  # the only way to read it is to set it
os.umask(_UMASK)
_FILE_MODE = 0o666 & ~_UMASK
"""Permissions of a new file. Safetensors lets only the owner read its files, and others may have to serve them."""


class DamagedError(UserError):
    """A file or folder exists but is not what was once written there."""


def sha256_of(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: str | Path, text: str) -> None:
    """Replace `path` by a UTF-8 file with `text`. A reader sees the old file or the new one, never a part."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | Path, value: object) -> None:
    """Replace `path` by `value` as JSON.

    Raises:
        ValueError: `value` holds a NaN or an infinity, which JSON cannot hold.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_object(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file; empty if the file is missing, unreadable, or holds anything else."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


@contextmanager
def _noticing_the_disk(path: Path, written: Path) -> Iterator[None]:
    """Wrap the writing of `written`, which becomes `path` afterwards.

    Raises:
        UserError: the disk or the user's quota is full, the disk is broken, or the user may not write there.
    """
    try:
        yield
    except Exception as error:
        in_text = _NUMBER_IN_TEXT.search(str(error))
        number = int(in_text[1]) if in_text else getattr(error, "errno", None)
        if number in _REFUSED:
            raise UserError(f"{path} cannot be written: {os.strerror(number)}") from error
        if number not in _FULL:
            raise
        free = shutil.disk_usage(path.parent).free
        size = sum(file.stat().st_size for file in [written, *written.rglob("*")] if file.is_file())
        raise UserError(
            f"no space left to write {path}: {size} bytes were written so far, {free} are free; the written part "
            "was deleted. Make room, then run the same command again"
        ) from error


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`. If the block succeeds, the file written there becomes `path`."""
    path = Path(path)
    temporary = _temporary_beside(path)
    try:
        with _noticing_the_disk(path, temporary):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _set_mode(temporary)
            _fsync(temporary)
            os.replace(temporary, path)
            _fsync(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def atomic_folder(path: str | Path, damaged_too: bool = False) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`. If the block succeeds, it gets a manifest and becomes `path`.

    Args:
        path: the folder to make. One that exists is replaced if it `is_ours`.
        damaged_too: see `is_ours`.

    Raises:
        UserError: `path` exists and was not written by this function, or somebody put something into it.
    """
    path = Path(path)
    if path.exists():
        _require_ours(path, damaged_too)
    temporary = _temporary_beside(path)
    try:
        with _noticing_the_disk(path, temporary):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
            yield temporary
            _write_manifest(temporary)
            _replace_folder(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def verify_folder(folder: str | Path) -> None:
    """Check every file of a folder made by `atomic_folder` against its manifest.

    Raises:
        DamagedError: the manifest is missing or unreadable, or the named file is missing, truncated or changed.
    """
    folder = Path(folder)
    for name, entry in read_manifest(folder).items():
        try:
            _verify_file(folder / name, entry)
        except OSError as error:
            raise DamagedError(f"{folder / MANIFEST} names a file that cannot be read: {error}") from error


def verify_if_listed(folder: str | Path) -> None:
    """`verify_folder` if there is a manifest of `atomic_folder`. Other folders pass, and so do missing ones.

    Raises:
        DamagedError: a file that the manifest names is missing, truncated or changed.
    """
    try:
        read_manifest(folder)
    except DamagedError:
        return
    verify_folder(folder)


def read_manifest(folder: str | Path) -> dict[str, dict]:
    """File name -> {"size": bytes, "sha256": hex} of a folder made by `atomic_folder`.

    Raises:
        DamagedError: there is no manifest, or it cannot be read.
    """
    path = Path(folder) / MANIFEST
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        if not all(name.isprintable() for name in files):
            raise ValueError("no file of ours has such a name")
        return {name: {"size": int(e["size"]), "sha256": str(e["sha256"])} for name, e in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DamagedError(f"{path} is missing or unreadable ({type(error).__name__})") from error


def is_ours(folder: str | Path, damaged_too: bool = False) -> bool:
    """Whether `atomic_folder` made the folder, and nobody has put anything into it or replaced it by a link.

    Args:
        folder: any folder. Other programs write files called `manifest.json` too.
        damaged_too: accept a manifest that cannot be read as a damaged one of ours. For folders that this program
            named, not for those that a user names.
    """
    if Path(folder).is_symlink() or not (Path(folder) / MANIFEST).is_file():
        return False
    try:
        listed = read_manifest(folder)
    except DamagedError:
        return damaged_too
    present = (path for path in Path(folder).rglob("*") if path.is_symlink() or not path.is_dir())
    return all(
        path.name.startswith(_TEMPORARY) or path.relative_to(folder).as_posix() in {MANIFEST, *listed}
        for path in present
    )


def unclaimed(folder: str | Path) -> Path:
    """`folder` if `atomic_folder` may write it, damaged or not; else a numbered name beside it."""
    place, number = Path(folder), 1
    while place.exists() and not is_ours(place, damaged_too=True):
        number += 1
        place = Path(f"{folder}-{number}")
    return place


def remove_leftovers(folder: str | Path) -> None:
    """Delete what interrupted writes left directly inside `folder`: only files with this module's temporary names."""
    for leftover in Path(folder).glob(f"{_TEMPORARY}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def remove_folder(folder: str | Path) -> None:
    """Delete a folder made by `atomic_folder`. It is renamed first, so an interruption never leaves half of it.

    Raises:
        UserError: the folder has no manifest, or holds files that are not in it, so it may hold the user's files.
    """
    folder = Path(folder)
    _require_ours(folder, damaged_too=True)
    doomed = _temporary_beside(folder)
    move(folder, doomed)
    shutil.rmtree(doomed)


def folder_of_user() -> Path:
    """A folder in TMPDIR that only this user can read, the same in all processes; made if missing.

    Raises:
        OSError: it cannot be made, or belongs to somebody else.
    """
    folder = Path(tempfile.gettempdir()) / f"emmental-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise PermissionError(errno.EACCES, "belongs to another user", str(folder))
    return folder


def refuse_losing(
    read: Mapping[str, str | Path | Sequence[str] | None],
    lost: Iterable[str | Path],
    flag: str,
    itself: Iterable[str | Path] = (),
) -> None:
    """Check that writing takes away nothing that the same command reads.

    Files and folders are compared as the file system knows them, so links, relative paths and upper or lower case do
    not matter. A name of the Hub is no path here, and passes.

    Args:
        read: flag -> the file or folder that it names, or a list of them.
        lost: what is removed or replaced, with all that it holds.
        flag: the one that names the place to write to, with its value, for the message.
        itself: folders that lose their own files and keep what else is in them.

    Raises:
        UserError: something that is read would be lost.
    """
    gone = {_identity(path) for path in lost} - {None}
    only = {_identity(path) for path in itself} - {None}
    several = [(name, value if isinstance(value, list) else [value]) for name, value in read.items()]
    for name, value in ((name, value) for name, values in several for value in values if value):
        if (own := _identity(value)) is None:
            continue
        place = Path(os.path.abspath(value))
        if own in gone | only or any(_identity(path) in gone for path in (*place.parents, *place.resolve().parents)):
            raise UserError(f"{flag} would remove or replace {name} {value}, which is read; give another place")


def _identity(path: str | Path) -> tuple[int, int] | None:
    """Device and number of a file or folder; None if there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _require_ours(folder: Path, damaged_too: bool) -> None:
    if not is_ours(folder, damaged_too):
        raise UserError(f"{folder} holds files that this program did not write; it is left alone")


def _verify_file(file: Path, entry: dict) -> None:
    if not file.is_file():
        raise DamagedError(f"{file} is missing")
    if file.stat().st_size != entry["size"]:
        raise DamagedError(f"{file} has {file.stat().st_size} bytes, {entry['size']} were written")
    if sha256_of(file) != entry["sha256"]:
        raise DamagedError(f"{file} has changed since it was written (SHA-256 differs)")


def _write_manifest(folder: Path) -> None:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    entries = {
        file.relative_to(folder).as_posix(): {"size": file.stat().st_size, "sha256": sha256_of(file)} for file in files
    }
    for file in files:
        _set_mode(file)
        _fsync(file)
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"files": entries}, indent=1), encoding="utf-8")
    _fsync(manifest)
    _fsync(folder)


def _replace_folder(temporary: Path, path: Path) -> None:
    """Rename `temporary` to `path`. An old folder is moved aside, moved back if that fails, and deleted last."""
    former = None
    if path.exists():
        former = _temporary_beside(path)
        move(path, former)
    try:
        os.rename(temporary, path)
    except BaseException:
        if former is not None:
            move(former, path)
        raise
    _fsync(path.parent)
    if former is not None:
        shutil.rmtree(former, ignore_errors=True)


def move(path: Path, target: Path) -> None:
    """Rename a file or folder; copy it if an overlay refuses to rename what is of the image of a container (EXDEV)."""
    try:
        os.rename(path, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        if not path.is_dir():
            shutil.move(path, target)
            return
        shutil.copytree(path, target, symlinks=True)
        (path / MANIFEST).unlink(missing_ok=True)  # first, so that what an interruption leaves does not count
        shutil.rmtree(path)


def keep_beside(path: Path, suffix: str) -> Path:
    """Move a file or folder of the user out of the way, to `<name>.<suffix>-<number>` beside it; returns the place."""
    number = 1
    while os.path.lexists(kept := path.with_name(f"{path.name}.{suffix}-{number}")):
        number += 1
    move(path, kept)
    return kept


def _temporary_beside(path: Path) -> Path:
    return path.parent / f"{_TEMPORARY}{path.name}-{uuid.uuid4().hex[:12]}"


@contextmanager
def _if_it_can() -> Iterator[None]:
    """Wraps what makes a file safer or easier to share. A file system without it still holds the right bytes."""
    try:
        yield
    except OSError as error:
        if error.errno not in _CANNOT:
            raise


def _set_mode(file: Path) -> None:
    with _if_it_can():
        os.chmod(file, _FILE_MODE)


def _fsync(path: Path) -> None:
    with _if_it_can():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
