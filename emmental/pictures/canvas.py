"""Figures without global state. The same picture has the same bytes in every run.

All figures have 72 dots per inch, so one point of a font or a line is one pixel.
"""

from __future__ import annotations

import gzip
import io
import re
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import cv2
import matplotlib.style
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from emmental.atomic import atomic_file
from emmental.errors import UserError

DPI = 72
OPENCV_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MATPLOTLIB_SUFFIXES = (".pdf", ".svg", ".svgz", ".eps", ".ps", ".tif", ".tiff", ".gif", ".avif", ".raw", ".rgba")

_STYLE = {
    "font.family": "DejaVu Sans",
    "text.parse_math": False,  # a `$` in a name is a dollar sign
    "svg.hashsalt": "emmental",
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
}
_METADATA = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
_ENCODING = {".png": [cv2.IMWRITE_PNG_COMPRESSION, 6, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_SUB]}
_MAX_SIDE = 32_000


class Chart(Figure):
    """A Matplotlib figure of `width` x `height` pixels on its own Agg canvas."""

    def __init__(self, width: int, height: int) -> None:
        # Agg cuts off fractions of a pixel. Adding a millionth corrects the rounding of width / 72 * 72.
        super().__init__(figsize=((width + 1e-6) / DPI, (height + 1e-6) / DPI), dpi=DPI, facecolor="white")
        FigureCanvasAgg(self)

    def save(self, saveas: str | Path) -> Path:
        """Write the picture. The ending of `saveas` names the format.

        Raises:
            UserError: the ending is not a picture format, or the file cannot be written.
        """
        suffix = picture_suffix(saveas)
        raster = suffix in OPENCV_SUFFIXES
        data = encode_array(self._get_buffer(), suffix) if raster else encode_figure(self, suffix)
        return write_picture(saveas, data)

    def _get_buffer(self) -> np.ndarray:
        """The picture as (height, width, 3) uint8 RGB."""
        return np.ascontiguousarray(render_rgba(self)[..., :3])

    def _repr_png_(self) -> bytes:
        return encode_array(self._get_buffer(), ".png")


def outline(
    box: tuple[float, float, float, float], color: object, line_width: float, alpha: float, line_style: str
) -> Rectangle:
    """The border of a box (x0, y0, x1, y1), centred on its edges."""
    x0, y0, x1, y1 = box
    style = {"fill": False, "edgecolor": color, "linewidth": line_width, "linestyle": line_style, "alpha": alpha}
    return Rectangle((x0, y0), x1 - x0, y1 - y0, joinstyle="miter", **style)


def picture_style() -> AbstractContextManager[None]:
    """Inside the block, Matplotlib's defaults and our settings replace those of the user's matplotlibrc."""
    if matplotlib.rcParams["svg.hashsalt"] == _STYLE["svg.hashsalt"]:
        return nullcontext()  # already inside such a block
    return matplotlib.style.context(["default", _STYLE])


def output_size(width: int, height: int, scale: float) -> tuple[int, int]:
    """(width, height) in whole pixels of a picture drawn at `scale`, rounded down.

    Raises:
        UserError: the drawn picture would be larger than 32,000 pixels on a side.
    """
    # 1e-2 rounds products such as 35 * 1.2 = 41.99999999999999 up to 42.
    drawn = max(1, int(width * scale + 1e-2)), max(1, int(height * scale + 1e-2))
    if max(drawn) > _MAX_SIDE:
        raise UserError(
            f"scale: {scale:g} makes a {width} x {height} image {drawn[0]} x {drawn[1]}, more than {_MAX_SIDE} pixels"
        )
    return drawn


def render_rgba(figure: Figure) -> np.ndarray:
    """Draw `figure` with Agg: (H, W, 4) uint8, colours not multiplied by alpha."""
    with picture_style():
        figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())


def blend(image: np.ndarray, drawing: np.ndarray) -> np.ndarray:
    """Blend an RGBA `drawing` over an RGB `image`.

    Args:
        image: (H, W, 3) uint8.
        drawing: (H, W, 4) uint8, colours not multiplied by alpha.

    Returns:
        (H, W, 3) uint8, rounded; exactly `image` where the drawing is transparent.
    """
    blended = image.copy()
    touched = drawing[..., 3] > 0
    over = drawing[touched].astype(np.uint16)  # 255 * 255 + 127 still fits
    color, alpha = over[:, :3], over[:, 3:]
    blended[touched] = (image[touched] * (255 - alpha) + color * alpha + 127) // 255
    return blended


def picture_suffix(path: str | Path) -> str:
    """The lower-case ending of a picture's file name.

    Raises:
        UserError: there is none, or it is not a picture format.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in OPENCV_SUFFIXES + MATPLOTLIB_SUFFIXES:
        known = " ".join(OPENCV_SUFFIXES + MATPLOTLIB_SUFFIXES)
        raise UserError(f"the picture's name {str(path)!r} does not end in a picture format; use one of {known}")
    return suffix


def encode_array(image: np.ndarray, suffix: str) -> bytes:
    """Encode (H, W, 3) uint8 RGB with OpenCV in the format of `suffix`.

    Raises:
        UserError: the format cannot hold a picture of this size.
    """
    try:
        done, data = cv2.imencode(suffix, np.ascontiguousarray(image[..., ::-1]), _ENCODING.get(suffix, []))
    except cv2.error as error:
        raise UserError(f"a picture of {image.shape[1]} x {image.shape[0]} cannot be {suffix}") from error
    if not done:
        raise UserError(f"a picture of {image.shape[1]} x {image.shape[0]} cannot be {suffix}")
    return data.tobytes()


def encode_figure(figure: Figure, suffix: str) -> bytes:
    """Encode a figure with Matplotlib in the format of `suffix`, without dates."""
    kind = "svg" if suffix == ".svgz" else suffix[1:]
    buffer = io.BytesIO()
    options = {"metadata": _METADATA[kind]} if kind in _METADATA else {}
    with picture_style():
        figure.savefig(buffer, format=kind, dpi=figure.dpi, **options)
    data = buffer.getvalue()
    if suffix == ".svgz":
        return gzip.compress(data, mtime=0)
    if kind in ("ps", "eps"):  # this backend cannot omit the date
        return re.sub(rb"(?m)^%%CreationDate:.*\n", b"", data, count=1)
    return data


def write_picture(path: str | Path, data: bytes) -> Path:
    """Write an encoded picture, whole or not at all. A missing folder is created.

    Raises:
        UserError: the file cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a picture file")
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)
    return path
