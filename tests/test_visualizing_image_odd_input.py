"""Odd input to `SingleImageViz`: the right picture, or one line that says what is accepted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from visualizing_image import SingleImageViz

NAMES = ["cat", "dog", "hen"]


@pytest.fixture
def white() -> np.ndarray:
    return np.full((100, 120, 3), 255, dtype=np.uint8)


# --- odd input that has a right picture


def constant(value: float, shape: tuple[int, ...], dtype: object = np.float32) -> np.ndarray:
    return np.full(shape, value, dtype=dtype)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (constant(0.5, (6, 5, 3)), 128),
        (constant(1.0, (6, 5)), 255),
        (constant(1.04, (6, 5)), 255),
        (constant(100.0, (6, 5, 3)), 100),
        (constant(100, (6, 5), np.int64), 100),
        (constant(25700, (6, 5), np.uint16), 100),
        (constant(100, (6, 5), np.uint16), 100),
        (constant(True, (6, 5), bool), 255),
        (constant(100, (6, 5, 1), np.uint8), 100),
        (constant(100, (3, 6, 5), np.uint8), 100),
        (constant(100, (1, 6, 5), np.uint8), 100),
        (constant(100, (1, 3, 6, 5), np.uint8), 100),
        (np.dstack([constant(0, (6, 5, 3), np.uint8), constant(155, (6, 5), np.uint8)]), 100),
        (constant(100, (6, 10, 3), np.uint8)[:, ::2], 100),
        (torch.full((3, 6, 5), 0.5, requires_grad=True), 128),
        (torch.full((6, 5, 3), 0.5, dtype=torch.bfloat16), 128),
        ([[100] * 5] * 6, 100),
    ],
)
def test_every_kind_of_image_becomes_rgb(image: object, expected: int) -> None:
    buffer = SingleImageViz(image, scale=1.0)._get_buffer()
    assert buffer.shape == (6, 5, 3)
    assert (buffer == expected).all()


def test_pil_image_with_palette_and_transparency() -> None:
    pil = pytest.importorskip("PIL.Image")
    image = pil.new("RGBA", (5, 6), (0, 0, 0, 155))
    assert (SingleImageViz(image, scale=1.0)._get_buffer() == 100).all()
    image = pil.new("RGB", (5, 6), (10, 20, 30)).convert("P", palette=pil.Palette.ADAPTIVE)
    assert SingleImageViz(image, scale=1.0, rgb=False)._get_buffer()[0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize(
    ("boxes", "changed"),
    [
        ([], 0),
        (None, 0),
        (np.empty((0, 4)), 0),
        (torch.empty(1, 0, 4), 0),
        ([[200, 200, 300, 300]], 0),
        ([[-1e30, -1e30, 1e30, 1e30]], 0),
        ([[-50, -50, 20, 20]], 2 * 20 + 2 * 20),
        ([[30, 20, 30, 60]], 2 * 40),
        ([[30, 20, 30, 20]], 2),
        ([10, 10, 50, 50], 8 * 40),
        ([[10, 10, 50, 50], [10, 10, 50, 50]], 8 * 40),
    ],
)
def test_odd_boxes(white: np.ndarray, boxes: object, changed: int) -> None:
    viz = SingleImageViz(white, scale=1.0, alpha=1.0)
    viz.line_width = 2.0
    viz.draw_boxes(boxes)
    dark = (viz._get_buffer() < 255).any(axis=2).sum()
    assert abs(dark - changed) <= 8
    assert (dark > 0) == (changed > 0)


@pytest.mark.parametrize("boxes", [[], [[200, 200, 300, 300]], [[-50, 10, -10, 60]]])
def test_no_visible_box_no_label(white: np.ndarray, boxes: list) -> None:
    viz = SingleImageViz(white, scale=1.0, id2obj=["cat"])
    viz.draw_boxes(boxes, [0] * len(boxes))
    assert viz.label_boxes == []
    assert (viz._get_buffer() == 255).all()


@pytest.mark.parametrize("shape", [(4, 4), (5, 300), (300, 5)])
def test_a_picture_without_room_for_a_letter_has_no_label(shape: tuple[int, int]) -> None:
    viz = SingleImageViz(np.full(shape, 255, dtype=np.uint8), scale=1.0)
    viz.draw_boxes([[1, 1, 3, 3]], ["cat"])
    assert viz.label_boxes == []
    assert viz._get_buffer().min() < 255


def test_empty_names_make_no_label(white: np.ndarray) -> None:
    viz = SingleImageViz(white, scale=1.0)
    viz.draw_boxes([[10, 10, 50, 50], [60, 10, 100, 60]], [None, "  \t"])
    assert viz.label_boxes == []


# --- mistakes


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((0, 5, 3), dtype=np.uint8), "img: shape"),
        (np.zeros((5, 5, 2), dtype=np.uint8), "img: shape"),
        (np.zeros(5, dtype=np.uint8), "img: shape"),
        (np.zeros((2, 3, 5, 5), dtype=np.uint8), "img: shape"),
        (np.full((5, 5), np.nan), "img: a NaN"),
        (np.full((5, 5), np.inf, dtype=np.float32), "img: a NaN"),
        (np.full((5, 5), -1.0), "img: values from -1"),
        (np.full((5, 5), 300.0), "img: values from 300"),
        (np.full((5, 5), 256), "img: values from 256"),
        (np.zeros((5, 5), dtype=complex), "img: expected real numbers"),
        (None, "img: expected real numbers"),
        ([[1, 2], [3]], "img: "),
        (Path("missing.png"), "img: cannot read missing.png"),
        (Path("."), "img: cannot read"),
    ],
)
def test_bad_images(image: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        SingleImageViz(image)
    assert "\n" not in str(caught.value)


def test_bad_image_files(tmp_path: Path) -> None:
    for content in (b"", b"no image", b"\x89PNG\r\n\x1a\n"):
        (tmp_path / "bad.png").write_bytes(content)
        with pytest.raises(ValueError, match="not an image"):
            SingleImageViz(tmp_path / "bad.png")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 0}, "scale: 0 is not above 0"),
        ({"scale": -1.0}, "scale: "),
        ({"scale": float("nan")}, "scale: expected a finite number"),
        ({"scale": "2"}, "scale: expected a finite number"),
        ({"scale": 1e9}, "scale: .* more than 32000 pixels"),
        ({"alpha": 1.5}, r"alpha: 1.5 is not in \[0, 1\]"),
        ({"alpha": True}, "alpha: expected"),
        ({"pad": -1}, "pad: -1 is not at least 0"),
        ({"edgecolor": "no colour"}, "edgecolor: 'no colour' is not a colour"),
        ({"linestyle": "wavy"}, "linestyle: 'wavy'"),
    ],
)
def test_bad_options(white: np.ndarray, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        SingleImageViz(white, **options)
    assert "\n" not in str(caught.value)


TWO = [[5, 5, 60, 60], [70, 10, 115, 80]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1, 2, 3]],), "boxes: expected numbers of shape"),
        (([[1, 2, 3, 4, 5]],), "boxes: expected numbers of shape"),
        (([[1, 2, 3, 4], [1, 2]],), "boxes: "),
        ((np.zeros((2, 3, 4)),), "boxes: expected numbers of shape"),
        (("boxes",), "boxes: expected real numbers"),
        (([["1", "2", "3", "4"]],), "boxes: expected real numbers"),
        (([[True, True, True, True]],), "boxes: expected numbers"),
        (([[0, 0, float("nan"), 5]],), "boxes: box 0 has a NaN"),
        (([[0, 0, float("inf"), 5]],), "boxes: box 0 has a NaN or an inf"),
        (([[0, 0, 5, 5], [50, 5, 10, 20]],), "boxes: box 1 is .* x0 <= x1"),
        ((TWO, [0]), "obj_ids: shape .* for 2 boxes"),
        ((TWO, ["a"]), "obj_ids: 1 values for 2 boxes"),
        ((TWO, [0, 3]), "id2obj: no name for obj_ids 3; there are 3"),
        ((TWO, [0, -1]), "id2obj: no name for obj_ids -1"),
        ((TWO, [0, 0.5]), "obj_ids: .*0.5.* is not a whole number"),
        ((TWO, [0, float("nan")]), "obj_ids: .* is not a whole number"),
        ((TWO, [[0, 1], [0, 1]]), "obj_ids: shape"),
        ((TWO, [0, 1], [0.5]), "obj_scores: shape"),
        ((TWO, [0, 1], [0.5, float("nan")]), "obj_scores: a NaN"),
        ((TWO, [0, 1], ["high", "low"]), "obj_scores: expected real numbers"),
        ((TWO, [0, 1], None, [0, 7]), "id2attr: no name for attr_ids 7"),
        ((TWO, [0, 1], None, [0, 1], [0.1, 0.2, 0.3]), "attr_scores: shape"),
    ],
)
def test_bad_boxes_draw_nothing(white: np.ndarray, arguments: tuple, message: str) -> None:
    viz = SingleImageViz(white, scale=1.0, id2obj=NAMES, id2attr={0: "red", 1: "big"})
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        viz.draw_boxes(*arguments)
    assert "\n" not in str(caught.value)
    assert (viz._get_buffer() == 255).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"position": (1, 2, 3)}, "position: "),
        ({"position": (float("nan"), 0)}, "position: "),
        ({"position": (1, 1), "ha": "top"}, "ha: 'top'"),
        ({"position": (1, 1), "font_size": 0}, "font_size: "),
        ({"position": (1, 1), "color": 7}, "color: 7"),
    ],
)
def test_bad_text(white: np.ndarray, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        SingleImageViz(white).draw_text("word", **options)


@pytest.mark.parametrize("box", [[], [[0, 0, 5, 5], [0, 0, 9, 9]], [0, 0, 5], [5, 5, 0, 0], [0, 0, float("nan"), 1]])
def test_one_box_is_one_box(white: np.ndarray, box: list) -> None:
    viz = SingleImageViz(white)
    for draw in (viz.add_box, lambda box: viz.draw_labels("cat", box)):
        with pytest.raises(ValueError, match=r"^box: "):
            draw(box)
