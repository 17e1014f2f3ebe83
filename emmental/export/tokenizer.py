"""Reads the tokenizer of a model: from its folder, or from its package."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from emmental.architectures import longest_input
from emmental.atomic import write_text
from emmental.data.tokenization import check_ids, load_tokenizer
from emmental.errors import UserError
from emmental.export.package import TOKENIZER_FILES, read_package


def read_tokenizer_files(folder: str | Path) -> dict[str, str]:
    """Name -> text of the tokenizer's files in a folder; empty if there are none.

    Raises:
        UserError: a file is not UTF-8.
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


def check_vocabulary(files: Mapping[str, str], size: int, source: str | Path) -> None:
    """Refuse files (name -> text) of a tokenizer with an id that is not below `size`, the rows of the embeddings.

    Only a tokenizer.json is read. One that is damaged passes: it is written as it is, and `tokenizer_of` refuses it.

    Raises:
        UserError: it names the id and the token.
    """
    try:
        vocabulary = Tokenizer.from_str(files["tokenizer.json"]).get_vocab() if "tokenizer.json" in files else {}
    except Exception:  # the library raises nothing more specific
        return
    check_ids(vocabulary, size, f"--model_name_or_path {source}", "its model")


def fitted_tokenizer_files(files: Mapping[str, str], config: PreTrainedConfig) -> dict[str, str]:
    """The files of a tokenizer that cuts texts to the model's longest input, if it is told to cut them.

    Args:
        files: name -> text, see `read_tokenizer_files`; without any, none are made.
        config: of the model.
    """
    name = "tokenizer_config.json"
    try:
        settings = json.loads(files.get(name, "{}"))
    except (ValueError, RecursionError):
        return dict(files)  # whoever loads it is told
    if not files or not isinstance(settings, dict):
        return dict(files)
    longest, said = longest_input(config), settings.get("model_max_length")
    if isinstance(said, int | float) and 0 < said <= longest:
        return dict(files)
    return {**files, name: json.dumps({**settings, "model_max_length": longest}, indent=2, ensure_ascii=False) + "\n"}


def tokenizer_of(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model's folder or of a package.

    Raises:
        UserError: there is none, or it is damaged, or it needs code of its own. The message names the path.
    """
    path = Path(path)
    package = read_package(path) if path.is_file() else None
    files = read_tokenizer_files(path) if package is None else package.tokenizer
    if not files:
        raise UserError(f"{path} holds no tokenizer ({', '.join(TOKENIZER_FILES[:2])})")
    _refuse_code(files, path)
    try:
        if package is None:
            return load_tokenizer(path)
        with tempfile.TemporaryDirectory() as folder:
            for name, text in files.items():
                write_text(Path(folder) / name, text)
            write_text(Path(folder) / "config.json", json.dumps({"model_type": package.config.get("model_type")}))
            tokenizer = load_tokenizer(folder)
    except UserError as error:
        raise UserError(f"{path}: its tokenizer is damaged ({error})") from error
    tokenizer.name_or_path = str(path)
    return tokenizer


def _refuse_code(files: Mapping[str, str], path: Path) -> None:
    for name, text in files.items():
        if not name.endswith(".json"):
            continue
        try:
            settings = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: its {name} is not JSON") from error
        if not isinstance(settings, dict) or "auto_map" in settings:
            raise UserError(f"{path}: its {name} is not an object, or needs its own code, which is never run")
