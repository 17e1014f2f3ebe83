"""Names, densities, heads and tiles of masks, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emmental.pictures.densities import (
    Block,
    blocks,
    densities_of,
    density_tiles,
    even_count,
    head_axis,
    heading,
    matrix_key,
    separated,
    sizes_of,
    table,
    tile_sides,
    to_mask,
)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("bert.encoder.layer.3.attention.self.query", (3, "attention.self.query")),
        ("encoder.layer.11.output.dense", (11, "output.dense")),
        ("0.weight", (0, "weight")),
        ("transformer.h2.layers.7.ffn.lin1", (7, "ffn.lin1")),
        ("head.dense", ("head", "dense")),
        ("albert.encoder.albert_layer_groups.0.albert_layers.0.ffn", (0, "ffn")),
        ("albert.encoder.albert_layer_groups.1.albert_layers.2.ffn", ("1.2", "ffn")),
        ("classifier", ("model", "classifier")),
    ],
)
def test_matrix_key(name: str, key: tuple) -> None:
    assert matrix_key(name) == key


def test_heads_lie_in_rows_of_query_and_columns_of_output() -> None:
    assert [head_axis(f"attention.self.{m}") for m in ("query", "key", "value")] == [0, 0, 0]
    assert head_axis("attention.output.dense") == 1
    assert head_axis("output.dense") is None
    assert heading("attention.self.query") == "query"
    assert heading("ffn.lin1") == "FFN\nin"
    assert heading("other.dense") == "other.dense"


def test_joint_projections_are_drawn_apart() -> None:
    joint = np.repeat([True, False, True], 2)[:, None] & np.ones((6, 2), dtype=bool)
    apart = separated({"model.layers.4.attn.Wqkv": joint, "model.layers.4.mlp.Wo": joint})
    names = [f"model.layers.4.attn.Wqkv.{role}" for role in ("query", "key", "value")]
    assert list(apart) == [*names, "model.layers.4.mlp.Wo"]
    assert [bool(apart[name].all()) for name in names] == [True, False, True]
    assert [head_axis(matrix_key(name)[1]) for name in apart] == [0, 0, 0, None]


def test_blocks_by_hand() -> None:
    mask = np.array([[1, 1, 0, 0], [1, 0, 0, 0]], dtype=bool)
    assert blocks(mask, 2, 0) == [Block(0, 1, 0.5), Block(1, 2, 0.25)]
    assert blocks(mask, 2, 1) == [Block(0, 2, 0.75), Block(2, 4, 0.0)]


@pytest.mark.parametrize(("length", "count"), [(768, 8), (7, 7), (11, 1), (9, 3), (1, 1), (10, 5)])
def test_even_count(length: int, count: int) -> None:
    assert even_count(length) == count


def test_tiles_by_hand() -> None:
    mask = np.zeros((3, 5), dtype=bool)
    mask[0, 0] = mask[2, 4] = True
    assert tile_sides(mask.shape, most=2) == (2, 4)
    # Tiles of 2 x 4, 2 x 1, 1 x 4 and 1 x 1.
    assert density_tiles(mask, most=2).tolist() == [[0.125, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize(("shape", "sides"), [((768, 768), (4, 4)), ((3072, 768), (16, 4)), ((256, 257), (1, 2))])
def test_sides_of_tiles(shape: tuple[int, int], sides: tuple[int, int]) -> None:
    assert tile_sides(shape) == sides


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_tiles_keep_the_number_of_weights(rows: int, columns: int, most: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((rows, columns)) < 0.3
    tiles, (height, width) = density_tiles(mask, most), tile_sides(mask.shape, most)
    assert max(tiles.shape) <= most
    tall = np.minimum(height, rows - height * np.arange(tiles.shape[0]))
    wide = np.minimum(width, columns - width * np.arange(tiles.shape[1]))
    assert (tiles * np.outer(tall, wide)).sum() == pytest.approx(mask.sum())


def test_to_mask_and_densities() -> None:
    given_masks = {"a.0.x": torch.tensor([[True, False]]), "a.1.x": [[1, 1, 1, 0]]}
    assert densities_of(given_masks) == {"a.0.x": 0.5, "a.1.x": 0.75}
    assert sizes_of(given_masks) == {"a.0.x": 2, "a.1.x": 4}
    with pytest.raises(ValueError, match=r"^a\.0\.x: a mask has only 0 and 1"):
        densities_of({"a.0.x": [[2]]})
    assert to_mask(np.ones((1, 1))).dtype == bool


def test_table_orders_layers_and_matrices() -> None:
    values = {
        "l.10.output.dense": 1.0,
        "l.2.extra": 2.0,
        "l.2.attention.self.query": 3.0,
        ("pooler", "dense"): 4.0,
    }
    cells, layers, matrices = table(values)
    assert layers == [2, 10, "pooler"]
    assert matrices == ["attention.self.query", "output.dense", "extra", "dense"]
    nan = np.nan
    np.testing.assert_array_equal(cells, [[3, nan, 2, nan], [nan, 1, nan, nan], [nan, nan, nan, 4]])
    with pytest.raises(ValueError, match=r"^densities: a key is a module name or a pair"):
        table({(1, "a", "b"): 1.0})
