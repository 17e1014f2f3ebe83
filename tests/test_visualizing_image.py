"""The drawing of boxes and labels, the pictures of pruning, and the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import visualizing_image
from emmental.errors import UserError
from emmental.pictures.canvas import MATPLOTLIB_SUFFIXES, OPENCV_SUFFIXES
from visualizing_image import SingleImageViz

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


# --- saving


@pytest.mark.parametrize("suffix", [*OPENCV_SUFFIXES, *MATPLOTLIB_SUFFIXES, ".PNG"])
def test_every_format_twice_gives_equal_bytes(tmp_path: Path, suffix: str) -> None:
    if suffix == ".avif" and not pytest.importorskip("PIL.features").check("avif"):
        pytest.skip("this Pillow has no AVIF")
    files = [draw_golden(golden_viz("1.0")).save(tmp_path / folder / f"a{suffix}") for folder in ("one", "two")]
    data = [file.read_bytes() for file in files]
    assert data[0] == data[1]
    assert len(data[0]) > 1000
    assert [file.name for file in files[0].parent.iterdir()] == [f"a{suffix}"]


@pytest.mark.slow
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
    with pytest.raises(ValueError, match=r"^the picture.s name .* does not end in a picture format"):
        SingleImageViz(white).save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_is_an_error_and_leaves_nothing(white: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder.png").mkdir()
    for target in (tmp_path / "file" / "a.png", tmp_path / "folder.png"):
        with pytest.raises(UserError, match=r"file|folder"):
            SingleImageViz(white).save(target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png"]


def test_webp_cannot_hold_a_picture_that_long(tmp_path: Path) -> None:
    viz = SingleImageViz(np.zeros((2, 17000), dtype=np.uint8), scale=1.0)
    with pytest.raises(ValueError, match=r"^a picture of 17000 x 2 cannot be \.webp"):
        viz.save(tmp_path / "long.webp")


@pytest.mark.parametrize("pynb", [False, True])
def test_notebooks_show_the_buffer(white: np.ndarray, pynb: bool) -> None:
    viz = SingleImageViz(white, scale=1.0, pynb=pynb)
    viz.draw_boxes([[5, 5, 60, 60], [70, 10, 115, 80]], ["a", "b"])
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
