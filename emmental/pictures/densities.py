"""The numbers behind the pictures of pruning: names of matrices, densities, tiles, attention heads.

A mask is a (out, in) array of bool: True where the weight stays. A density is the share of True, in [0, 1].
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from emmental.architectures import ARCHITECTURES, DOWN, HEAD_ROLES, KEY, OUTPUT, QKV, QUERY, UP, VALUE
from emmental.errors import UserError
from emmental.pictures.inputs import to_array

MOST_TILES = 256
MatrixKey = tuple[int | str, str]

_ROLES = {path: role for entry in ARCHITECTURES.values() for role, path in entry.roles.items()}
_JOINT = tuple(path for path, role in _ROLES.items() if role == QKV)
_ROLES |= {f"{path}.{role}": role for path in _JOINT for role in (QUERY, KEY, VALUE)}
_HEADING_OF_ROLE = {OUTPUT: "attn.\noutput", UP: "FFN\nin", DOWN: "FFN\nout", QKV: "query,\nkey, value"}
HEADINGS = {path: _HEADING_OF_ROLE.get(role, role.replace("_", "\n")) for path, role in _ROLES.items()}
"""The part of a matrix' name after the layer's number -> heading of its column, in the order of the columns."""
_GROUPED = "|".join(re.escape(inner) for entry in ARCHITECTURES.values() for inner in entry.layers.split(".*")[1:-1])
_NUMBERED = re.compile(rf"^(?:.*?\.)?(\d+)(?:(?:{_GROUPED})\.(\d+))?\.(.+)$")
"""A layer's number, its number in its group if layers are in groups (ALBERT), and the name inside the layer."""


@dataclass(frozen=True)
class Block:
    """Rows or columns `start` to `stop` (exclusive) of a mask and the share of their weights that remains."""

    start: int
    stop: int
    density: float


def matrix_key(name: str) -> MatrixKey:
    """(layer, matrix) of a module name: `bert.encoder.layer.3.output.dense` -> (3, "output.dense").

    A name without a number gets its own row: `head.dense` -> ("head", "dense"). In ALBERT, a layer that is not the
    first of its group is named by two numbers.
    """
    found = _NUMBERED.match(name)
    if found:
        return f"{found[1]}.{found[2]}" if int(found[2] or 0) else int(found[1]), found[3]
    layer, _, matrix = name.rpartition(".")
    return layer or "model", matrix


def heading(matrix: str) -> str:
    """Heading of a column of the overview."""
    return HEADINGS.get(matrix, matrix)


def head_axis(matrix: str) -> int | None:
    """The axis of a mask along which its attention heads lie: 0 rows, 1 columns, None without heads.

    A matrix that holds query, key and value has no such axis: see `separated`.
    """
    role = _ROLES.get(matrix)
    return 1 if role == OUTPUT else 0 if role in HEAD_ROLES and role != QKV else None


def separated(masks: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Split masks that hold query, key and value: `attn.Wqkv` -> `attn.Wqkv.query`, `.key` and `.value`."""
    apart: dict[str, np.ndarray] = {}
    for name, mask in masks.items():
        if name.endswith(_JOINT):
            parts = zip((QUERY, KEY, VALUE), np.split(np.asarray(mask), 3), strict=True)
            apart |= {f"{name}.{role}": part for role, part in parts}
        else:
            apart[name] = mask
    return apart


def to_mask(mask: object, name: str = "mask") -> np.ndarray:
    """A mask as (out, in) bool. Arrays, lists and tensors of bool or of 0 and 1 are accepted.

    Raises:
        UserError: another shape, no element, or values that are neither 0 nor 1.
    """
    array = to_array(mask, name)
    if array.ndim != 2 or array.size == 0:
        raise UserError(f"{name}: shape {array.shape} is not a mask; (out, in) with at least one weight is")
    if array.dtype.kind != "b" and not np.isin(array, (0, 1)).all():
        raise UserError(f"{name}: a mask has only 0 and 1, or False and True")
    return array.astype(bool, copy=False)


def densities_of(masks: Mapping[str, object]) -> dict[str, float]:
    """Share of weights that remain, in [0, 1], for each name."""
    return {name: float(to_mask(mask, name).mean()) for name, mask in masks.items()}


def sizes_of(masks: Mapping[str, object]) -> dict[str, int]:
    """Number of weights for each name."""
    return {name: int(to_mask(mask, name).size) for name, mask in masks.items()}


def blocks(mask: np.ndarray, count: int, axis: int) -> list[Block]:
    """Cut a mask into `count` equal row blocks (axis 0) or column blocks (axis 1) and measure each.

    Raises:
        UserError: `count` does not divide the axis.
    """
    length = mask.shape[axis]
    if count < 1 or length % count:
        what = ("rows", "columns")[axis]
        raise UserError(f"heads: {length} {what} cannot be divided into {count} equal blocks")
    step = length // count
    kept = mask.mean(axis=1 - axis, dtype=np.float64).reshape(count, step).mean(axis=1)
    return [Block(i * step, (i + 1) * step, float(density)) for i, density in enumerate(kept)]


def even_count(length: int, most: int = 8) -> int:
    """The largest number of equal blocks, at most `most`, into which `length` can be cut."""
    return next(count for count in range(min(most, length), 0, -1) if length % count == 0)


def tile_sides(shape: tuple[int, int], most: int = MOST_TILES) -> tuple[int, int]:
    """(height, width) of a tile in weights: the smallest for which a side of the mask has at most `most` tiles.

    Both are powers of two, so tiles end where attention heads end.
    """
    height, width = (1 << max(0, (-(-length // most) - 1).bit_length()) for length in shape)
    return height, width


def density_tiles(mask: np.ndarray, most: int = MOST_TILES) -> np.ndarray:
    """Densities of the tiles of a mask.

    Args:
        mask: (out, in) bool.
        most: as for `tile_sides`.

    Returns:
        (rows, columns) float64 in [0, 1]. Tiles of the last row and column may be smaller than the others.
    """
    height, width = tile_sides(mask.shape, most)
    rows, columns = np.arange(0, mask.shape[0], height), np.arange(0, mask.shape[1], width)
    kept = np.add.reduceat(mask, columns, axis=1, dtype=np.int32)
    kept = np.add.reduceat(kept, rows, axis=0)
    tall, wide = np.diff([*rows, mask.shape[0]]), np.diff([*columns, mask.shape[1]])
    return kept / np.outer(tall, wide)


def table(
    values: Mapping[str | MatrixKey, float], order: Iterable[str] = tuple(HEADINGS)
) -> tuple[np.ndarray, list[int | str], list[str]]:
    """Arrange values by layer and matrix.

    Args:
        values: module name, or (layer, matrix) -> number.
        order: matrices whose columns come first, in this order.

    Returns:
        (layers, matrices) float64, NaN where there is no value; the layers, first those with a number, in ascending
        order; the matrices.
    """
    keyed = {matrix_key(key) if isinstance(key, str) else tuple(key): value for key, value in values.items()}
    if any(len(key) != 2 for key in keyed):
        raise UserError("densities: a key is a module name or a pair (layer, matrix)")
    layers = sorted(dict.fromkeys(layer for layer, _ in keyed), key=lambda layer: (isinstance(layer, str), layer))
    present = dict.fromkeys(matrix for _, matrix in keyed)
    matrices = [m for m in order if m in present] + [m for m in present if m not in set(order)]
    cells = [[keyed.get((layer, matrix), np.nan) for matrix in matrices] for layer in layers]
    return np.array(cells, dtype=np.float64).reshape(len(layers), len(matrices)), layers, matrices
