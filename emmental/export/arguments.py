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
from emmental.export.tokenizer import fitted_tokenizer_files, read_tokenizer_files
from emmental.methods import PRUNING_METHODS


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
        choices=(*PRUNING_METHODS, "sigmoid_threshold"),
        help="replaces the method that the model records",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        help="replaces the threshold that the model records. topK, magnitude and fisher: the fraction of weights that "
        "stay, 0 to 1. threshold and sigmoied_threshold: the score above which they stay",
    )
    args = parser.parse_args(argv)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return args


def folders(args: argparse.Namespace) -> tuple[Path, Path]:
    """(folder of the model, folder to write), for the flags of a `folder_parser`."""
    source = Path(args.model_name_or_path)
    return source, Path(args.output or source.resolve().parent / f"{args.prefix}_{source.resolve().name}")


def refuse_foreign(target: Path, mark: str) -> None:
    """Refuse to replace a folder that has no card with this `mark`: a checkpoint has a manifest too."""
    card = target / "README.md"
    ours = (target / atomic.MANIFEST).is_file() and card.is_file() and mark in card.read_text("utf-8", "replace")
    if target.exists() and not ours:
        raise UserError(f"--output {target} exists and was not made by this command; it is left alone")


def write_model(model: PreTrainedModel, source: Path, target: Path, card: str) -> None:
    """Write `model`, the tokenizer of `source` and the card README.md to `target`, whole or not at all."""
    with atomic.atomic_folder(target) as temporary:
        model.save_pretrained(temporary, max_shard_size="1TB")
        for name, text in fitted_tokenizer_files(read_tokenizer_files(source), model.config).items():
            atomic.write_text(temporary / name, text)
        atomic.write_text(temporary / "README.md", card)
