"""One form for every kind of image, box, id, score and option; the pictures' tests have the mistakes."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emmental.errors import UserError
from emmental.pictures import inputs
from emmental.pictures.inputs import (
    resized,
    to_array,
    to_boxes,
    to_color,
    to_linestyle,
    to_names,
    to_number,
    to_rgb_image,
    to_scores,
)


@settings(deadline=None, max_examples=30)
@given(st.integers(5, 9), st.integers(5, 9), st.sampled_from([1, 3, 4]), st.integers(0, 2**32 - 1))
def test_layouts_and_types_agree(height: int, width: int, channels: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    expected = to_rgb_image(pixels)
    assert expected.shape == (height, width, 3)
    for same in (
        pixels.transpose(2, 0, 1),
        torch.from_numpy(pixels).permute(2, 0, 1),
        pixels.astype(np.float32) / 255,
        torch.from_numpy(pixels)[None].double() / 255,
        pixels.astype(np.int16),
        pixels.astype(np.uint16) * 257 if pixels.max() > 0 else pixels,
    ):
        assert np.array_equal(to_rgb_image(same), expected)
    assert np.array_equal(
        to_rgb_image(pixels[..., [2, 1, 0, 3][:channels] if channels > 1 else [0]], rgb=False), expected
    )


def test_the_callers_array_is_not_shared() -> None:
    pixels = np.zeros((4, 4, 3), dtype=np.uint8)
    image = to_rgb_image(pixels)
    pixels[:] = 9
    assert not image.any()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_a_picture_is_turned_as_its_exif_data_says(tmp_path: object, mode: str) -> None:
    pil, operations = pytest.importorskip("PIL.Image"), pytest.importorskip("PIL.ImageOps")
    image = pil.fromarray(np.arange(10, 250, 10, dtype=np.uint8).reshape(2, 4, 3)).convert(mode)
    for orientation in range(1, 9):
        exif = pil.Exif()
        exif[0x0112] = orientation
        image.save(tmp_path / "a.png", exif=exif)
        expected = np.asarray(operations.exif_transpose(pil.open(tmp_path / "a.png")).convert("RGB"))
        assert expected.shape == ((2, 4, 3) if orientation < 5 else (4, 2, 3))
        assert np.array_equal(to_rgb_image(tmp_path / "a.png"), expected)
        assert np.array_equal(to_rgb_image(pil.open(tmp_path / "a.png")), expected)


def test_boxes_lie_on_the_upright_picture(tmp_path: object) -> None:
    pil = pytest.importorskip("PIL.Image")
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:10, :10] = 200  # stored upper left; upright, after a quarter turn to the right, upper right
    exif = pil.Exif()
    exif[0x0112] = 6
    pil.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
    upright = to_rgb_image(tmp_path / "a.jpg")
    assert upright.shape == (40, 20, 3)
    assert upright[:8, 12:].min() > 180
    assert upright[:, :8].max() < 20


@pytest.mark.parametrize("exif", [b"", b"MM", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\0\x09\x01\x12"])
def test_damaged_exif_data_turns_nothing(exif: bytes) -> None:
    assert inputs._orientation(exif) == 1


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3), [[0, 51, 102], [153, 204, 255]]),
        (np.array([[0, 51], [100, 255]], np.float32), [[0, 51], [100, 255]]),
        (np.array([[0, 100], [200, 255]], np.int32), [[0, 100], [200, 255]]),
        (np.array([[0, 257], [25700, 65535]], np.uint16), [[0, 1], [100, 255]]),
    ],
)
def test_every_reader_scales_alike(tmp_path: object, pixels: np.ndarray, expected: list) -> None:
    pil = pytest.importorskip("PIL.Image")
    pil.fromarray(pixels).save(tmp_path / "a.tif")
    for image in (pixels, tmp_path / "a.tif", pil.open(tmp_path / "a.tif")):
        assert to_rgb_image(image)[..., 0].tolist() == expected
    if pixels.dtype == np.uint16:
        cv2.imwrite(str(tmp_path / "a.png"), pixels)
        for image in (tmp_path / "a.png", pil.open(tmp_path / "a.png")):
            assert to_rgb_image(image)[..., 0].tolist() == expected


def test_numbers_that_are_no_colours_are_one_line(tmp_path: object) -> None:
    pil = pytest.importorskip("PIL.Image")
    pil.fromarray(np.array([[0, 70000]], np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"^img: values from 0 to 70000; integers in"):
        to_rgb_image(tmp_path / "a.tif")


def test_files_of_grey_alpha_and_sixteen_bits(tmp_path: object) -> None:
    grey = np.full((4, 5), 100, dtype=np.uint8)
    alpha = np.dstack([np.zeros((4, 5, 3), np.uint8), np.full((4, 5), 155, np.uint8)])
    for number, pixels in enumerate((grey, alpha, np.full((4, 5), 100 * 257, dtype=np.uint16))):
        cv2.imwrite(str(tmp_path / f"{number}.png"), pixels)
        assert (to_rgb_image(str(tmp_path / f"{number}.png")) == 100).all()


def test_resized_is_the_same_image_at_its_own_size() -> None:
    image = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    assert resized(image, (5, 4)) is image
    assert resized(image, (10, 8)).shape == (8, 10, 3)


@pytest.mark.parametrize(
    "boxes",
    [
        [[1, 2, 3, 4]],
        (1, 2, 3, 4),
        np.array([[1, 2, 3, 4]], dtype=np.float16),
        torch.tensor([[[1, 2, 3, 4]]]),
        [torch.tensor([1.0, 2.0, 3.0, 4.0])],
        [[torch.tensor(1), torch.tensor(2), torch.tensor(3), torch.tensor(4)]],
    ],
)
def test_boxes(boxes: object) -> None:
    array = to_boxes(boxes)
    assert array.dtype == np.float64
    assert array.tolist() == [[1.0, 2.0, 3.0, 4.0]]


def test_scores_and_names() -> None:
    assert to_scores(None, 2, "s") == ["", ""]
    assert to_scores(torch.tensor([[0.126, 1.0]]), 2, "s") == ["0.13", "1.00"]
    assert to_scores(0.5, 1, "s") == ["0.50"]
    assert to_names(None, ["a"], 2, "ids", "names") == ["", ""]
    assert to_names(3, None, 1, "ids", "names") == ["3"]
    assert to_names("cat", None, 1, "ids", "names") == ["cat"]
    assert to_names([1, None, "x"], {1: "one"}, 3, "ids", "names") == ["one", "", "x"]
    assert to_names(range(2), np.array(["a", "b"]), 2, "ids", "names") == ["a", "b"]
    with pytest.raises(ValueError, match=r"^names: expected a list or a dict of names, got int"):
        to_names([0], 5, 1, "ids", "names")
    with pytest.raises(ValueError, match=r"^names: no name for ids 2"):
        to_names([2], {1: "one"}, 1, "ids", "names")
    with pytest.raises(ValueError, match=r"^ids: .*True.* is not a whole number"):
        to_names([True], None, 1, "ids", "names")


def test_ragged_lists_and_objects_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^x: rows of different lengths"):
        to_array([[1, 2], [3]], "x")
    with pytest.raises(ValueError, match=r"^x: expected real numbers, got dict"):
        to_array({}, "x")
    with pytest.raises(ValueError, match=r"^x: expected real numbers"):
        to_array([10**400], "x")


def test_options() -> None:
    assert to_number(np.float32(0.5), "a", least=0, most=1) == 0.5
    assert to_color("#ff0000", "c") == (1.0, 0.0, 0.0)
    assert to_linestyle("dashed") == "dashed"
    with pytest.raises(ValueError, match=r"^a: expected a finite number, got None"):
        to_number(None, "a")
