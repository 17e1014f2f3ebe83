"""Shared by the commands for finished models: flags, and the writing of a model folder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import transformers
from transformers import PreTrainedModel

from emmental import atomic
from emmental.command_line import OneLineParser
from emmental.errors import UserError
from emmental.export.tokenizer import check_vocabulary, fitted_tokenizer_files, read_tokenizer_files
from emmental.methods import METHODS, PRUNING_METHODS


def folder_parser(description: str, accepts: str, prefix: str) -> OneLineParser:
    """The parser of a command that makes a model folder from another; default: `<prefix>_<name>` beside it."""
    parser = OneLineParser(description)
    parser.add_argument("--model_name_or_path", required=True, help=f"folder of the model, {accepts}")
    parser.add_argument(
        "--output",
        "--target_model_path",
        dest="output",
        help=f"folder to write; default: {prefix}_<name> beside the model",
    )
    parser.set_defaults(prefix=prefix)
    return parser


def read_arguments(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Add the flags that replace settings of a masked model, parse, and silence Transformers."""
    parser.add_argument(
        "--pruning_method",
        choices=(*PRUNING_METHODS, *(other for name in PRUNING_METHODS for other in METHODS[name].spellings)),
        help="replaces the method that the model records",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        help=f"replaces the threshold that the model records. {_names('by_share')}: the fraction of weights that "
        f"stay, 0 to 1. {_names('by_score')}: the score above which they stay",
    )
    args = parser.parse_args(argv)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return args


def _names(what: str) -> str:
    """The methods of masked models for which a property of `Method` holds."""
    *first, last = (name for name in PRUNING_METHODS if getattr(METHODS[name], what))
    return f"{', '.join(first)} and {last}"


def folders(args: argparse.Namespace) -> tuple[Path, Path]:
    """(folder of the model, folder to write), for the flags of a `folder_parser`."""
    source = Path(args.model_name_or_path)
    return source, Path(args.output or source.resolve().parent / f"{args.prefix}_{source.resolve().name}")


def refuse_foreign(target: Path, is_ours: bool, source: Path) -> None:
    """Refuse to replace the `source`, or what the command did not make. Checkpoints have manifests too."""
    if target.exists() and not is_ours:
        raise UserError(f"--output {target} exists and was not made by this command; it is left alone")
    atomic.refuse_losing({"--model_name_or_path": source}, [target], f"--output {target}")


def has_card(folder: Path, mark: str) -> bool:
    """Whether the folder was written with a card that has this `mark`."""
    card = folder / "README.md"
    return (folder / atomic.MANIFEST).is_file() and card.is_file() and mark in card.read_text("utf-8", "replace")


def write_model(model: PreTrainedModel, source: Path, target: Path, card: str) -> None:
    """Write `model`, the tokenizer of `source` and the card README.md to `target`, whole or not at all."""
    check_vocabulary(read_tokenizer_files(source), model.config.vocab_size, source)
    with atomic.atomic_folder(target) as temporary:
        model.save_pretrained(temporary, max_shard_size="1TB")
        for name, text in fitted_tokenizer_files(read_tokenizer_files(source), model.config).items():
            atomic.write_text(temporary / name, text)
        atomic.write_text(temporary / "README.md", card)
