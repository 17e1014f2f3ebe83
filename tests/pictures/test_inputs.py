"""One form for every kind of image, box, id, score and option; the pictures' tests have the mistakes."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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


def test_a_photograph_is_turned_as_its_exif_data_says(tmp_path: object) -> None:
    pil = pytest.importorskip("PIL.Image")
    image = pil.new("RGB", (20, 10), (10, 200, 30))
    exif = pil.Exif()
    exif[0x0112] = 6  # turn by a quarter
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    assert to_rgb_image(tmp_path / "a.jpg").shape == (20, 10, 3)


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
