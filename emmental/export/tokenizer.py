"""The tokenizer that belongs to a model: of its folder, or of the package it was stored in."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from emmental.atomic import write_text
from emmental.errors import UserError
from emmental.export.package import TOKENIZER_FILES, read_package


def read_tokenizer_files(folder: str | Path) -> dict[str, str]:
    """Name -> text of the tokenizer's files in a folder; empty where there are none.

    Raises:
        UserError: a file that is not UTF-8.
    """
    files = {}
    for path in (Path(folder) / name for name in TOKENIZER_FILES):
        if not path.is_file():
            continue
        try:
            files[path.name] = path.read_bytes().decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text") from error
    return files


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model's folder or of a package.

    Raises:
        UserError: there is none, or it is damaged, or it asks for code of its own; one line that names the path.
    """
    path = Path(path)
    files = read_package(path).tokenizer if path.is_file() else read_tokenizer_files(path)
    if not files:
        raise UserError(f"{path} holds no tokenizer ({', '.join(TOKENIZER_FILES[:2])})")
    _refuse_code(files, path)
    try:
        with tempfile.TemporaryDirectory() as folder:
            # Of the model's own type, not of whatever the settings beside it may say.
            write_text(Path(folder) / "config.json", '{"model_type": "bert"}')
            for name, text in files.items():
                write_text(Path(folder) / name, text)
            tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # a damaged tokenizer fails in many ways
        message = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path}: its tokenizer is damaged ({message})") from error
    tokenizer.name_or_path = str(path)
    return tokenizer


def _refuse_code(files: Mapping[str, str], path: Path) -> None:
    for name, text in files.items():
        if not name.endswith(".json"):
            continue
        try:
            settings = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: its {name} is no JSON") from error
        if not isinstance(settings, dict) or "auto_map" in settings:
            raise UserError(f"{path}: its {name} is none, or asks for code of its own, which is never run")
