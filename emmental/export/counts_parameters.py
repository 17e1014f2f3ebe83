"""Counts the weights that remain: of each matrix, of the encoder, with the embeddings, and of the whole model.

python -m emmental.export.counts_parameters --model_name_or_path out --picture remaining.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from emmental.architectures import encoder_linears, encoder_room
from emmental.command_line import OneLineParser, user_mistakes
from emmental.errors import UserError
from emmental.export.arguments import read_arguments
from emmental.export.model_folder import read_model
from emmental.export.storage import load_package
from emmental.patching import masked_layers
from emmental.pictures.canvas import picture_suffix
from emmental.pictures.heat import overview
from emmental.pruning import masks_of


@dataclass(frozen=True)
class Count:
    """Remaining weights, and all weights."""

    remaining: int
    total: int

    @property
    def percent(self) -> float:
        """Share that remains, in %; 100 if there are no weights."""
        return 100.0 * self.remaining / self.total if self.total else 100.0

    def __add__(self, other: Count) -> Count:
        return Count(self.remaining + other.remaining, self.total + other.total)


@dataclass(frozen=True)
class ModelCounts:
    """Counts of a model.

    Attributes:
        matrices: dotted module name -> count, of each weight matrix of the encoder.
        encoder_matrices: the sum of all these, as training reports it.
        encoder: with the encoder's biases and LayerNorms, which are never pruned.
        encoder_and_embeddings: with the embeddings and their LayerNorm.
        model: with pooler and head. Mask scores are never counted.
    """

    matrices: dict[str, Count]
    encoder_matrices: Count
    encoder: Count
    encoder_and_embeddings: Count
    model: Count

    def sums(self) -> dict[str, Count]:
        """Heading -> count, from the narrowest to the whole."""
        return {
            "encoder matrices": self.encoder_matrices,
            "encoder": self.encoder,
            "encoder and embeddings": self.encoder_and_embeddings,
            "model": self.model,
        }


def count_parameters(model: PreTrainedModel) -> ModelCounts:
    """Count what remains: by the masks of masked layers, by exact zeros in other layers of the encoder.

    Raises:
        UserError: the model has no encoder.
    """
    matrices, encoder_part = _count_matrices(model), encoder_room(model.config)
    if not matrices:
        raise UserError(f"{type(model).__name__} has no encoder whose weights could be counted")
    encoder_matrices = sum(matrices.values(), Count(0, 0))
    pruned = {f"{name}.weight" for name in matrices}
    unpruned = {encoder_part: 0, "embeddings": 0, "": 0}
    for name, parameter in model.named_parameters():
        if name not in pruned and not name.endswith(".mask_scores"):
            room = next((part for part in name.split(".")[:2] if part in unpruned), "")
            unpruned[room] += parameter.numel()
    kept = {room: Count(number, number) for room, number in unpruned.items()}
    encoder = encoder_matrices + kept[encoder_part]
    with_embeddings = encoder + kept["embeddings"]
    return ModelCounts(matrices, encoder_matrices, encoder, with_embeddings, with_embeddings + kept[""])


def read_any(path: str | Path, pruning_method: str | None = None, threshold: float | None = None) -> PreTrainedModel:
    """The model of a folder, masked or plain, or of a package.

    Raises:
        UserError: as `read_model` and `load_package`; flags about masks for a package.
    """
    if not Path(path).is_file():
        return read_model(path, pruning_method, threshold)
    if pruning_method is not None or threshold is not None:
        raise UserError(f"{path} is a package: --pruning_method and --threshold are for masked models")
    return load_package(path)


@torch.no_grad()
def _count_matrices(model: PreTrainedModel) -> dict[str, Count]:
    if masked_layers(model):
        kept = masks_of(model)
    else:
        kept = {name: model.get_submodule(name).weight != 0 for name in encoder_linears(model)}
    return {name: Count(int(torch.count_nonzero(mask)), mask.numel()) for name, mask in kept.items()}


def _table(counts: ModelCounts) -> str:
    rows = {**counts.matrices, **counts.sums()}
    width = max(len(name) for name in rows)
    lines = [f"{'':{width}}  {'remaining':>12}  {'of':>12}  {'%':>7}"]
    for name, count in rows.items():
        lines.append(f"{name:{width}}  {count.remaining:12,}  {count.total:12,}  {count.percent:7.2f}")
    return "\n".join(lines)


def _as_json(counts: ModelCounts) -> str:
    def row(count: Count) -> dict[str, float]:
        return {"remaining": count.remaining, "total": count.total, "percent": count.percent}

    sums = {name.replace(" ", "_"): row(count) for name, count in counts.sums().items()}
    return json.dumps({**sums, "matrices": {name: row(count) for name, count in counts.matrices.items()}}, indent=2)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser("Count the weights that remain of a masked, bertarized or packed model.")
    parser.add_argument("--model_name_or_path", required=True, help="folder of a model, or a package's file")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument(
        "--output", "--picture", dest="output", help="heat map to write, one row for each layer; .png, .pdf, ..."
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Count what the command line names; a mistake is one line on stderr and exit status 2."""
    args = read_arguments(_parser(), argv)
    with user_mistakes():
        if args.output is not None:
            picture_suffix(args.output)
        counts = count_parameters(read_any(args.model_name_or_path, args.pruning_method, args.threshold))
        if args.output is not None:
            densities = {name: count.remaining / count.total for name, count in counts.matrices.items()}
            sizes = {name: count.total for name, count in counts.matrices.items()}
            overview(densities, Path(args.model_name_or_path).resolve().name, sizes).save(args.output)
    print(_as_json(counts) if args.json else _table(counts))


if __name__ == "__main__":
    main()
