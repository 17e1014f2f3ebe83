"""The drawing of boxes and labels, the pictures of pruning, and the command line."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import visualizing_image
from emmental.pictures.canvas import MATPLOTLIB_SUFFIXES, OPENCV_SUFFIXES
from emmental.pictures.masks import HEADINGS
from visualizing_image import SingleImageViz, main, mask_picture, save_all, save_overview

GOLDEN = np.load(Path(__file__).parent / "golden" / "visualizer.npz")
SCALES = ("1.0", "1.2", "2.0")
NAMES, ATTRIBUTES = ["cat", "dog", "hen"], ["red", "big"]
# Upper left corners of the labels of dog, cat and hen in the image's pixels, as the reference pictures have them: in
# the box's corner, below the box (x0, y1), or to its right (x1, y0).
LABEL_CORNERS = {
    "1.0": [(10, 10), (60, 30), (5, 70)],
    "1.2": [(10, 10), (60, 30), (40, 70)],
    "2.0": [(10, 80), (60, 30), (40, 70)],
}
# Parts of edges that no reference picture has a label on: (place, is it vertical, (from, to)), in the image's pixels.
EDGES = [
    (10, True, (32, 65)),  # dog, left
    (90, True, (46, 65)),  # dog, right
    (110, False, (100, 145)),  # cat, lower
    (150, True, (60, 105)),  # cat, right
    (115, False, (10, 38)),  # hen, lower
    (40, True, (92, 112)),  # hen, right
]


@pytest.fixture
def white() -> np.ndarray:
    return np.full((100, 120, 3), 255, dtype=np.uint8)


def golden_viz(scale: str, **options: object) -> SingleImageViz:
    return SingleImageViz(GOLDEN["img"], scale=float(scale), id2obj=NAMES, id2attr=ATTRIBUTES, **options)


def draw_golden(viz: SingleImageViz) -> SingleImageViz:
    viz.draw_boxes(GOLDEN["boxes"], GOLDEN["oi"], GOLDEN["os"], GOLDEN["ai"], GOLDEN["as"])
    return viz


def line_position(drawn: np.ndarray, plain: np.ndarray, expected: float) -> float:
    """Centre, in pixels, of what differs from the plain picture in the ten rows around the expected position."""
    change = np.abs(drawn.astype(int) - plain).sum(axis=(1, 2))
    rows = np.arange(max(0, round(expected) - 5), round(expected) + 5)
    return float((rows + 0.5) @ change[rows] / change[rows].sum())


# --- geometry against the reference pictures


@pytest.mark.parametrize("scale", SCALES)
def test_undrawn_picture_is_the_resized_image(scale: str) -> None:
    plain = golden_viz(scale)._get_buffer()
    assert plain.dtype == np.uint8
    assert plain.shape == GOLDEN[f"plain{scale}"].shape
    assert np.abs(plain.astype(int) - GOLDEN[f"plain{scale}"]).max() <= 1


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("edge", "turned", "span"), EDGES)
def test_edges_lie_where_the_reference_has_them(scale: str, edge: float, turned: bool, span: tuple[int, int]) -> None:
    mine, golden, plain = draw_golden(golden_viz(scale))._get_buffer(), GOLDEN[f"buf{scale}"], GOLDEN[f"plain{scale}"]
    part = slice(*(round(end * float(scale)) for end in span))
    views = [a.transpose(1, 0, 2)[:, part] if turned else a[:, part] for a in (mine, golden, plain)]
    found, reference = (line_position(view, views[2], edge * float(scale)) for view in views[:2])
    assert abs(found - reference) <= 1
    assert abs(found - edge * float(scale)) <= 1


@pytest.mark.parametrize("scale", SCALES)
def test_labels_stand_where_the_reference_has_them(scale: str) -> None:
    viz = draw_golden(golden_viz(scale))
    # Drawn largest first: cat, dog, hen.
    dog, cat, hen = LABEL_CORNERS[scale]
    corners = np.array([label[:2] for label in viz.label_boxes])
    np.testing.assert_allclose(corners, np.array([cat, dog, hen]) * float(scale), atol=1e-6)
    changed = np.abs(GOLDEN[f"buf{scale}"].astype(int) - GOLDEN[f"plain{scale}"]).sum(axis=2) > 0
    for x, y in corners:
        assert changed[round(y) + 1 : round(y) + 3, round(x) + 2 : round(x) + 20].all()


@pytest.mark.parametrize("shape", [(35, 35), (101, 57), (1, 1), (3, 200)])
@pytest.mark.parametrize("scale", [0.3, 1.0, 1.2, 1.7])
def test_buffer_has_the_scaled_size_of_any_image(shape: tuple[int, int], scale: float) -> None:
    buffer = SingleImageViz(np.zeros(shape, dtype=np.uint8), scale=scale)._get_buffer()
    expected = [max(1, int(round(side * scale, 6))) for side in shape]
    assert buffer.shape == (*expected, 3)
    assert not buffer.any()


# --- colours and lines


@pytest.mark.parametrize(("alpha", "expected"), [(1.0, (255, 0, 0)), (0.5, (255, 128, 128)), (0.0, (255, 255, 255))])
def test_border_colour_at_the_corners(white: np.ndarray, alpha: float, expected: tuple[int, int, int]) -> None:
    viz = SingleImageViz(white, scale=1.0, alpha=alpha)
    viz.line_width = 2.0
    viz.add_box([20, 30, 60, 70], color="red")
    buffer = viz._get_buffer().astype(int)
    # A line of two pixels centred on the edge covers the pixel before it and the one after.
    for x in (20, 60):
        for y in (30, 70):
            assert np.abs(buffer[y - 1 : y + 1, x - 1 : x + 1] - expected).max() <= 1
    assert (buffer[33:67, 23:57] == 255).all()
    assert (buffer[:28] == 255).all()
    assert (buffer[73:] == 255).all()


def test_add_box_takes_the_edge_colour(white: np.ndarray) -> None:
    viz = SingleImageViz(white, scale=1.0, alpha=1.0, edgecolor=(0.0, 0.0, 1.0))
    viz.line_width = 2.0
    viz.add_box((20, 30, 60, 70))
    assert viz._get_buffer()[30, 40].tolist() == [0, 0, 255]


def test_line_style_leaves_gaps(white: np.ndarray) -> None:
    buffers = {}
    for style in ("-", "--"):
        viz = SingleImageViz(white, scale=1.0, alpha=1.0, linestyle=style)
        viz.add_box((10, 10, 110, 90))
        buffers[style] = (viz._get_buffer() < 128).any(axis=2).sum()
    assert 0.4 * buffers["-"] < buffers["--"] < 0.9 * buffers["-"]


@pytest.mark.parametrize("side", [32, 240, 1000, 3000])
def test_lines_and_fonts_follow_the_size_and_never_vanish(side: int) -> None:
    viz = SingleImageViz(np.full((side, side), 255, dtype=np.uint8), scale=1.0, alpha=1.0)
    viz.add_box([side // 4, side // 4, side // 2, side // 2], color="k")
    column = viz._get_buffer()[:, round(side * 0.375), 0]
    assert viz.font_size == pytest.approx(max(10.0, 0.75 * side**0.5))
    assert (255 - column.astype(float)).sum() / 255 == pytest.approx(2 * viz.line_width, abs=1.1)


def test_a_box_keeps_its_colour_in_every_order_and_company(white: np.ndarray) -> None:
    boxes = [[5, 5, 60, 60], [70, 10, 115, 30], [20, 65, 100, 95], [70, 35, 110, 60]]
    reference = SingleImageViz(white, scale=1.0)
    reference.draw_boxes(boxes, ["a", "b", "c", "d"])
    for order in ([3, 2, 1, 0], [1, 3, 0, 2]):
        other = SingleImageViz(white, scale=1.0)
        other.draw_boxes(torch.tensor([boxes[i] for i in order]), [list("abcd")[i] for i in order])
        assert np.array_equal(other._get_buffer(), reference._get_buffer())
    alone = SingleImageViz(white, scale=1.0)
    alone.draw_boxes([boxes[1]])
    assert np.array_equal(alone._get_buffer()[10, 80:110], reference._get_buffer()[10, 80:110])


def test_rgb_false_is_for_arrays_in_opencv_order(tmp_path: Path) -> None:
    bgr = np.zeros((8, 8, 3), dtype=np.uint8)
    bgr[..., 0] = 200  # blue
    viz = SingleImageViz(bgr, scale=1.0, rgb=False)
    assert viz._get_buffer()[0, 0].tolist() == [0, 0, 200]
    saved = viz.save(tmp_path / "blue.png")
    assert cv2.imread(str(saved))[0, 0].tolist() == [200, 0, 0]
    assert SingleImageViz(saved, scale=1.0, rgb=False)._get_buffer()[0, 0].tolist() == [0, 0, 200]


# --- labels


def test_labels_stay_inside_and_off_each_other() -> None:
    viz = SingleImageViz(np.zeros((300, 400, 3), dtype=np.uint8), scale=1.0)
    grid = [[x, y, x + 60, y + 50] for x in range(0, 400, 80) for y in range(0, 300, 70)]
    viz.draw_boxes([*grid, [-20, -20, 30, 30], [380, 280, 500, 400]], [f"n{i}" for i in range(len(grid) + 2)])
    labels = np.array(viz.label_boxes)
    assert len(labels) == len(grid) + 2
    assert labels[:, :2].min() >= 0
    assert (labels[:, 2] <= 400).all()
    assert (labels[:, 3] <= 300).all()
    for i, a in enumerate(labels):
        for b in labels[i + 1 :]:
            assert min(a[2], b[2]) - max(a[0], b[0]) <= 0.01 or min(a[3], b[3]) - max(a[1], b[1]) <= 0.01


def test_the_plate_covers_its_rectangle_and_nothing_else(white: np.ndarray) -> None:
    viz = SingleImageViz(white, scale=1.0, alpha=1.0)
    viz.draw_text("mm", (30, 40), color="w")
    (x0, y0, x1, y1) = viz.label_boxes[0]
    assert (x0, y0) == (30.0, 40.0)
    dark = (viz._get_buffer() < 100).all(axis=2)
    rows, columns = np.flatnonzero(dark.any(axis=1)), np.flatnonzero(dark.any(axis=0))
    assert abs(rows[0] - y0) <= 1
    assert abs(rows[-1] + 1 - y1) <= 1
    assert abs(columns[0] - x0) <= 1
    assert abs(columns[-1] + 1 - x1) <= 1


@pytest.mark.parametrize(("ha", "left"), [("left", 0.0), ("center", -0.5), ("right", -1.0)])
def test_text_is_aligned_at_its_position(white: np.ndarray, ha: str, left: float) -> None:
    viz = SingleImageViz(white, scale=1.0)
    viz.draw_text("word", (60, 20), ha=ha)
    x0, _, x1, _ = viz.label_boxes[0]
    assert x0 == pytest.approx(60 + left * (x1 - x0))


def test_font_size_of_text_is_used(white: np.ndarray) -> None:
    viz = SingleImageViz(white, scale=1.0)
    viz.draw_text("word", (0, 0), font_size=8)
    viz.draw_text("word", (0, 50), font_size=16)
    small, large = (box[2] - box[0] for box in viz.label_boxes)
    assert large / small == pytest.approx(2.0, abs=0.25)


def test_text_too_long_is_shrunk_then_cut() -> None:
    viz = SingleImageViz(np.zeros((40, 60), dtype=np.uint8), scale=1.0)
    viz.draw_text("a name of eighty letters or so that no picture of sixty pixels can ever show", (5, 5))
    assert viz.label_boxes[0][0] >= 0
    assert viz.label_boxes[0][2] <= 60
    drawn = [artist.get_text() for artist in viz.fig.findobj(lambda a: hasattr(a, "get_text")) if artist.get_text()]
    assert drawn[0].startswith("a name")
    assert drawn[0].endswith("…")


def test_a_dollar_sign_is_a_dollar_sign(white: np.ndarray) -> None:
    viz = SingleImageViz(white, scale=1.0)
    viz.draw_boxes([[10, 10, 110, 90]], ["$x_2"])
    assert len(viz.label_boxes) == 1
    assert viz._get_buffer().min() < 50


@pytest.mark.parametrize(
    ("ids", "names"),
    [
        ([1, 0], ["cat", "dog"]),
        (np.array([1.0, 0.0]), {0: "cat", 1: "dog"}),
        (torch.tensor([[1, 0]]), {"0": "cat", "1": "dog"}),
        (["dog", "cat"], None),
        (("dog", "cat"), ["x", "y"]),
    ],
)
def test_every_form_of_names_draws_the_same_picture(white: np.ndarray, ids: object, names: object) -> None:
    reference, viz = SingleImageViz(white, scale=1.0), SingleImageViz(white, scale=1.0, id2obj=names)
    boxes = [[5, 5, 60, 60], [70, 10, 115, 80]]
    reference.draw_boxes(boxes, ["dog", "cat"], [0.5, 0.25])
    viz.draw_boxes(torch.tensor([boxes]), ids, torch.tensor([0.5, 0.25]))
    assert np.array_equal(viz._get_buffer(), reference._get_buffer())


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


# --- saving


@pytest.mark.parametrize("suffix", [*OPENCV_SUFFIXES, *MATPLOTLIB_SUFFIXES, ".PNG"])
def test_every_format_twice_gives_equal_bytes(tmp_path: Path, suffix: str) -> None:
    if suffix == ".avif":
        pytest.importorskip("PIL.features").check("avif") or pytest.skip("this Pillow has no AVIF")
    files = [draw_golden(golden_viz("1.0")).save(tmp_path / folder / f"a{suffix}") for folder in ("one", "two")]
    data = [file.read_bytes() for file in files]
    assert data[0] == data[1]
    assert len(data[0]) > 1000
    assert [file.name for file in files[0].parent.iterdir()] == [f"a{suffix}"]


def test_equal_bytes_in_another_process_on_another_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import sys, numpy as np; from visualizing_image import SingleImageViz; v = SingleImageViz(np.ones((60, 90)));"
        "v.draw_boxes([[5, 5, 50, 50], [40, 20, 80, 55]], ['a', 'b']);"
        "[v.save(f'{sys.argv[1]}/x{s}') for s in ('.png', '.svg', '.pdf', '.eps')]"
    )
    environment = {"PATH": "", "SOURCE_DATE_EPOCH": "1700000000", "PYTHONHASHSEED": "7", "HOME": str(tmp_path)}
    root = Path(visualizing_image.__file__).parent
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "there")], check=True, cwd=root, env=environment)
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    viz = SingleImageViz(np.ones((60, 90)))
    viz.draw_boxes([[5, 5, 50, 50], [40, 20, 80, 55]], ["a", "b"])
    for suffix in (".png", ".svg", ".pdf", ".eps"):
        here = viz.save(tmp_path / "here" / f"x{suffix}")
        assert here.read_bytes() == (tmp_path / "there" / f"x{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".webp", ".tif"])
def test_raster_files_show_image_and_drawing(tmp_path: Path, suffix: str) -> None:
    viz = draw_golden(golden_viz("2.0"))
    read = cv2.cvtColor(cv2.imread(str(viz.save(tmp_path / f"a{suffix}"))), cv2.COLOR_BGR2RGB)
    difference = np.abs(read.astype(int) - viz._get_buffer()).mean()
    assert read.shape == (240, 320, 3)
    assert difference < 8
    assert np.abs(read.astype(int) - GOLDEN["plain2.0"]).mean() > difference


@pytest.mark.parametrize(
    ("suffix", "image", "drawing"), [(".svg", b"<image", b"<path"), (".pdf", b"/Image", b"stream")]
)
def test_vector_files_have_the_image_under_the_drawing(
    tmp_path: Path, suffix: str, image: bytes, drawing: bytes
) -> None:
    viz = golden_viz("1.0")
    plain = viz.save(tmp_path / f"plain{suffix}").read_bytes()
    drawn = draw_golden(viz).save(tmp_path / f"drawn{suffix}").read_bytes()
    assert image in plain
    assert image in drawn
    assert drawing in drawn
    assert len(drawn) > len(plain) + 1000
    assert np.array_equal(viz._get_buffer(), draw_golden(golden_viz("1.0"))._get_buffer())


def test_save_makes_folders_and_uses_the_name_given_first(white: np.ndarray, tmp_path: Path) -> None:
    viz = SingleImageViz(white, saveas=str(tmp_path / "a" / "b" / "c.png"))
    assert viz.save() == tmp_path / "a" / "b" / "c.png"
    assert (tmp_path / "a" / "b" / "c.png").is_file()


@pytest.mark.parametrize("name", ["picture", "picture.txt", "picture.", ".png/picture"])
def test_a_name_that_is_no_picture_is_refused(white: np.ndarray, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"^saveas: .* does not end in a picture format"):
        SingleImageViz(white).save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_is_an_error_and_leaves_nothing(white: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder.png").mkdir()
    for target in (tmp_path / "file" / "a.png", tmp_path / "folder.png"):
        with pytest.raises(OSError, match=r"file|folder"):
            SingleImageViz(white).save(target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png"]


def test_webp_cannot_hold_a_picture_that_long(tmp_path: Path) -> None:
    viz = SingleImageViz(np.zeros((2, 17000), dtype=np.uint8), scale=1.0)
    with pytest.raises(ValueError, match=r"^saveas: a picture of 17000 x 2 cannot be \.webp"):
        viz.save(tmp_path / "long.webp")


@pytest.mark.parametrize("pynb", [False, True])
def test_notebooks_show_the_buffer(white: np.ndarray, pynb: bool) -> None:
    viz = SingleImageViz(white, scale=1.0, pynb=pynb)
    viz.draw_boxes(TWO, ["a", "b"])
    shown = cv2.imdecode(np.frombuffer(viz._repr_png_(), np.uint8), cv2.IMREAD_COLOR_RGB)
    assert np.array_equal(shown, viz._get_buffer())


def test_nothing_global_is_touched(white: np.ndarray, tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30, "text.usetex": True}):
        odd = draw_golden(golden_viz("1.0"))._get_buffer()
    assert np.array_equal(odd, draw_golden(golden_viz("1.0"))._get_buffer())
    draw_golden(golden_viz("1.0")).save(tmp_path / "a.svg")
    assert dict(matplotlib.rcParams) == before


# --- pictures of pruning


def masks_of_layers(layers: int = 2, hidden: int = 24) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    shapes = {"intermediate.dense": (4 * hidden, hidden), "output.dense": (hidden, 4 * hidden)}
    return {
        f"bert.encoder.layer.{layer}.{matrix}": generator.random(shapes.get(matrix, (hidden, hidden))) < 0.2
        for layer in range(layers)
        for matrix in HEADINGS
    }


def test_mask_picture_boxes_its_heads() -> None:
    mask = np.zeros((8, 8), dtype=bool)
    mask[:2] = True  # head 0 whole, heads 1 to 3 gone
    picture = mask_picture(mask, 4, "query")
    buffer = picture._get_buffer()
    assert buffer.shape == (948, 1000, 3)
    assert len(picture.label_boxes) == 4
    # Tiles stand at (96, 104), 768 x 768; a head is 192 rows. Viridis ends in yellow and begins in violet.
    assert buffer[104 + 150, 96 + 400].tolist() == [253, 231, 36]
    for head in (1, 2, 3):
        assert buffer[104 + 192 * head + 150, 96 + 400].tolist() == [68, 1, 84]
        assert picture.label_boxes[head][1] == 104 + 192 * head


def test_mask_picture_of_columns() -> None:
    mask = np.zeros((8, 8), dtype=bool)
    mask[:, 6:] = True
    picture = mask_picture(mask, 4, "output", head_axis=1)
    buffer = picture._get_buffer()
    assert [label[0] for label in picture.label_boxes] == [96 + 192 * head for head in range(4)]
    assert buffer[104 + 400, 96 + 700].tolist() == [253, 231, 36]
    assert buffer[104 + 400, 96 + 500].tolist() == [68, 1, 84]


@pytest.mark.parametrize(("heads", "side"), [(12, 768), (16, 992), (32, 1984)])
@pytest.mark.parametrize("axis", [0, 1])
def test_labels_of_many_heads_stand_in_their_heads(heads: int, side: int, axis: int) -> None:
    picture = mask_picture(np.ones((96, 96), dtype=bool), heads, "m", axis)
    assert picture.img.shape[axis] == side + (180, 232)[axis]
    starts = [label[1 - axis] for label in picture.label_boxes]
    np.testing.assert_allclose(starts, (104, 96)[axis] + side / heads * np.arange(heads))
    assert all(label[3] - label[1] < side / heads or axis == 1 for label in picture.label_boxes)


@pytest.mark.parametrize("value", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (300, 2), (2, 5000)])
def test_masks_of_odd_shapes(value: bool, shape: tuple[int, int]) -> None:
    buffer = mask_picture(np.full(shape, value), name="odd")._get_buffer()
    assert buffer[104 + 760, 96 + 600].tolist() == ([253, 231, 36] if value else [68, 1, 84])


@pytest.mark.parametrize(
    ("mask", "options", "message"),
    [
        (np.ones((4, 4)) * 0.5, {}, "mask: a mask has only 0 and 1"),
        (np.full((4, 4), np.nan), {}, "mask: a mask has only"),
        (np.ones((0, 4), dtype=bool), {}, "mask: shape"),
        (np.ones(4, dtype=bool), {}, "mask: shape"),
        (np.ones((4, 4), dtype=bool), {"heads": 3}, "heads: 4 rows cannot be divided into 3"),
        (np.ones((4, 6), dtype=bool), {"heads": 4, "head_axis": 1}, "heads: 6 columns cannot"),
        (np.ones((4, 4), dtype=bool), {"heads": 0}, "heads: "),
        (np.ones((4, 4), dtype=bool), {"heads": 2.0}, "heads: 2.0 is not a number of attention heads"),
        (np.ones((4, 4), dtype=bool), {"heads": 2, "head_axis": 2}, "head_axis: 2 is neither"),
    ],
)
def test_bad_masks(mask: np.ndarray, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        mask_picture(mask, **options)


def test_save_all_writes_every_picture_twice_the_same(tmp_path: Path) -> None:
    masks = masks_of_layers(1)
    history = [{"step": 1, "loss": 0.5, "remaining": 90.0}, {"step": 2, "eval": {"acc": 0.75}}]
    first = save_all(tmp_path / "one", masks, history, 4, "title")
    second = save_all(
        tmp_path / "two", {name: torch.tensor(mask) for name, mask in masks.items()}, history, 4, "title"
    )
    names = ["overview.png", "curves.png", *(f"masks/{name}.png" for name in masks)]
    assert [path.relative_to(tmp_path / "one").as_posix() for path in first] == names
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


@pytest.mark.parametrize("history", [[], [{"step": 3}], [{"step": 3, "epoch": 1, "loss": None}]])
def test_save_all_without_a_course_has_no_curves(tmp_path: Path, history: list) -> None:
    name = "bert.encoder.layer.0.output.dense"
    saved = save_all(tmp_path, {name: np.ones((4, 4), dtype=bool)}, history, 2, "t")
    assert [path.name for path in saved] == ["overview.png", f"{name}.png"]


def test_save_all_refuses_a_name_that_leaves_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^masks: '\.\./x' cannot be the name of a file"):
        save_all(tmp_path / "out", {"../x": np.ones((4, 4), dtype=bool)}, [], 2, "t")
    assert list(tmp_path.iterdir()) == []


def test_save_overview_writes_what_overview_draws(tmp_path: Path) -> None:
    densities = {"bert.encoder.layer.0.output.dense": 0.25}
    path = save_overview(tmp_path / "o.png", densities, "t")
    drawn = visualizing_image.overview(densities, "t")._get_buffer()
    assert np.array_equal(cv2.imread(str(path), cv2.IMREAD_COLOR_RGB), drawn)


# --- command line


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    cv2.imwrite(str(path), np.full((80, 120, 3), 200, dtype=np.uint8))
    return path


def write_boxes(folder: Path, content: object) -> Path:
    path = folder / "boxes.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_boxes_on_a_photograph(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    boxes = write_boxes(
        tmp_path,
        {
            "boxes": [[10, 10, 100, 60]],
            "obj_ids": [0],
            "obj_scores": [0.9],
            "attr_ids": ["wet"],
            "id2obj": {"0": "dog"},
        },
    )
    target = tmp_path / "new" / "drawn.png"
    main(["--image", str(photo), "--boxes", str(boxes), "--saveas", str(target), "--scale", "2"])
    assert capsys.readouterr().out == f"{target}\n"
    expected = SingleImageViz(photo, scale=2.0, alpha=0.8, id2obj=["dog"])
    expected.draw_boxes([[10, 10, 100, 60]], [0], [0.9], ["wet"])
    assert np.array_equal(cv2.imread(str(target), cv2.IMREAD_COLOR_RGB), expected._get_buffer())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--saveas a.png", "give either --model_dir or --image"),
        ("--model_dir X --image Y --saveas a.png", "give either --model_dir or --image"),
        ("--image photo.png --saveas a.png", "--image and --boxes go together"),
        ("--model_dir X --boxes b.json --saveas a.png", "--image and --boxes go together"),
        ("--image photo.png --boxes b.json --compare X --saveas a.png", "--compare, --picture and --matrix are for"),
        ("--model_dir X --picture mask --saveas a.png", "--picture mask and --matrix go together"),
        ("--model_dir X --matrix m --picture all --saveas a.png", "--picture mask and --matrix go together"),
        ("--model_dir X --compare Y --picture all --saveas a.png", "--compare draws two overviews"),
        ("--model_dir X --saveas a.doc", "saveas: 'a.doc' does not end in a picture format"),
        ("--model_dir X --saveas a.png", "--model_dir: X has no config.json"),
        ("--model_dir X --picture curves --saveas a.png", "--picture curves: X has no train_log.jsonl"),
        ("--model_dir X --picture heat --saveas a.png", "invalid choice: 'heat'"),
        ("--image photo.png --boxes b.json --saveas a.png", "b.json cannot be read: No such file"),
        ("--image photo.png --boxes photo.png --saveas a.png", "photo.png is not JSON"),
        ("--model_dir X", "--saveas"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(
    flags: str, message: str, photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(photo.parent)
    with pytest.raises(SystemExit) as caught:
        main(flags.split())
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in photo.parent.iterdir()] == ["photo.png"]


def test_help_describes_the_file_of_boxes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0
    for word in ("--model_dir", "--compare", '"boxes"', '"obj_ids"', '"id2attr"'):
        assert word in out


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished masked model of one layer, without a tokenizer: half of each matrix remains."""
    import emmental

    torch.manual_seed(0)
    config = emmental.MaskedBertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=8, pruning_method="magnitude",
    )  # fmt: skip
    model = emmental.MaskedBertForSequenceClassification(config)
    emmental.patching.set_threshold(model, 0.5)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    (folder / "train_log.jsonl").write_text('{"step": 1, "loss": 0.5, "remaining": 50.0}\n')
    return folder


@pytest.fixture(scope="module")
def plain_folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as a plain BERT whose encoder has exact zeros."""
    from transformers import AutoModelForSequenceClassification

    from emmental.patching import unmask_linears

    model = AutoModelForSequenceClassification.from_pretrained(model_folder).eval()
    unmask_linears(model)
    config = {**model.config.to_dict(), "model_type": "bert", "architectures": ["BertForSequenceClassification"]}
    folder = tmp_path_factory.mktemp("plain")
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_masks_of_masked_and_plain_folders_agree(model_folder: Path, plain_folder: Path) -> None:
    masked, heads = visualizing_image.read_model_masks(model_folder)
    plain, plain_heads = visualizing_image.read_model_masks(plain_folder)
    assert heads == plain_heads == 2
    assert sorted(masked) == sorted(plain)
    assert len(masked) == 6
    assert all(mask.mean() == 0.5 for mask in masked.values())
    assert all(np.array_equal(masked[name], plain[name]) for name in masked)


@pytest.mark.parametrize(
    ("flags", "width"),
    [
        ([], 1200),
        (["--picture", "curves"], 1200),
        (["--matrix", "attention.self.key"], 1000),
        (["--matrix", "attention.output.dense", "--picture", "mask"], 1000),
    ],
)
def test_pictures_of_a_model(model_folder: Path, tmp_path: Path, flags: list[str], width: int) -> None:
    target = tmp_path / "a.png"
    main(["--model_dir", str(model_folder), "--saveas", str(target), *flags])
    assert abs(cv2.imread(str(target)).shape[1] - width) < 10


def test_all_pictures_and_two_models(model_folder: Path, plain_folder: Path, tmp_path: Path) -> None:
    main(["--model_dir", str(model_folder), "--picture", "all", "--saveas", str(tmp_path / "all")])
    assert len(list((tmp_path / "all").rglob("*.png"))) == 2 + 6
    main(["--model_dir", str(model_folder), "--compare", str(plain_folder), "--saveas", str(tmp_path / "two.png")])
    two = cv2.imread(str(tmp_path / "two.png"))
    assert two.shape[1] >= 1190


@pytest.mark.parametrize(("matrix", "count"), [("dense", 3), ("nothing", 0)])
def test_a_matrix_must_be_named_clearly(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], matrix: str, count: int
) -> None:
    with pytest.raises(SystemExit):
        main(["--model_dir", str(model_folder), "--matrix", matrix, "--saveas", str(tmp_path / "a.png")])
    assert f"--matrix: '{matrix}' is the end of {count} matrices" in capsys.readouterr().err


def test_a_damaged_model_is_one_line(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "config.json").write_bytes((model_folder / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"\x08\x00")
    with caplog.at_level(logging.CRITICAL), pytest.raises(SystemExit):
        main(["--model_dir", str(tmp_path), "--saveas", str(tmp_path / "a.png")])
    error = capsys.readouterr().err
    assert f"--model_dir: {tmp_path} holds no readable model" in error
    assert error.count("\n") == 1
