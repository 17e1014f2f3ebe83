"""Sizes, blending, encoding and writing."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from emmental.errors import UserError
from emmental.pictures.canvas import (
    Chart,
    blend,
    encode_array,
    output_size,
    picture_style,
    picture_suffix,
    write_picture,
)


@pytest.mark.parametrize("side", [1, 7, 121, 163, 1000, 4801])
def test_a_chart_has_exactly_its_pixels(side: int) -> None:
    assert Chart(side, 10)._get_buffer().shape == (10, side, 3)
    assert Chart(10, side)._get_buffer().shape == (side, 10, 3)


@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [((160, 120), 1.2, (192, 144)), ((35, 35), 1.2, (42, 42)), ((5, 3), 0.5, (2, 1)), ((3, 3), 0.01, (1, 1))],
)
def test_output_size(size: tuple[int, int], scale: float, expected: tuple[int, int]) -> None:
    assert output_size(*size, scale) == expected


def test_output_size_has_a_limit() -> None:
    assert output_size(32_000, 1, 1.0) == (32_000, 1)
    with pytest.raises(ValueError, match=r"^scale: 2 makes a 16001 x 1 image 32002 x 2, more than 32000 pixels"):
        output_size(16_001, 1, 2.0)


def test_blend_by_hand() -> None:
    image = np.full((1, 3, 3), 100, dtype=np.uint8)
    drawing = np.array([[[255, 0, 50, 0], [255, 0, 50, 255], [200, 0, 100, 51]]], dtype=np.uint8)
    # alpha 51 / 255 = 0.2: 0.8 * 100 + 0.2 * (200, 0, 100) = (120, 80, 100)
    assert blend(image, drawing).tolist() == [[[100, 100, 100], [255, 0, 50], [120, 80, 100]]]


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_encoding_without_loss(suffix: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    data = np.frombuffer(encode_array(image, suffix), np.uint8)
    assert np.array_equal(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB), image)


def test_suffix() -> None:
    assert picture_suffix("a/b.c/PHOTO.JPeG") == ".jpeg"
    with pytest.raises(ValueError, match=r"one of \.png \.jpg \.jpeg \.webp \.pdf \.svg"):
        picture_suffix("picture.pgf")


def test_a_picture_replaces_the_one_before(tmp_path: Path) -> None:
    for data in (b"first", b"second"):
        assert write_picture(tmp_path / "new" / "a.png", data).read_bytes() == data
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]
    with pytest.raises(UserError, match="is a folder"):
        write_picture(tmp_path / "new", b"x")


def test_style_ends_with_its_block() -> None:
    import matplotlib

    before = matplotlib.rcParams["text.parse_math"], matplotlib.rcParams["svg.hashsalt"]
    with picture_style(), picture_style():
        assert matplotlib.rcParams["text.parse_math"] is False
    assert (matplotlib.rcParams["text.parse_math"], matplotlib.rcParams["svg.hashsalt"]) == before
