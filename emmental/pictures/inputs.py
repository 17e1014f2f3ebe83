"""Checks the arguments of the pictures and converts each to one form. Error messages say what is accepted."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import matplotlib.colors
import numpy as np
from matplotlib.patches import Rectangle
from PIL import ExifTags, Image, ImageOps

from emmental.errors import UserError

_CHANNELS = (1, 3, 4)
_UNIT_TOLERANCE = 0.1  # interpolation overshoots [0, 1] by a few percent
_TURNS = {2: (True, 0), 3: (False, 2), 4: (True, 2), 5: (True, 1), 6: (False, 3), 7: (True, 3), 8: (False, 1)}
"""Orientation in EXIF data -> whether the picture is mirrored, and the quarter turns to the left after that."""


def to_array(value: object, name: str) -> np.ndarray:
    """A NumPy array from an array, a list of numbers, or a tensor on any device, with or without gradient.

    Raises:
        UserError: rows of different lengths, or something that is not numbers.
    """
    if hasattr(value, "detach"):  # a torch tensor; NumPy has no bfloat16
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() else value).numpy()
    try:
        array = np.asarray(_without_tensors(value))
    except (ValueError, TypeError) as error:
        raise UserError(f"{name}: rows of different lengths; all must have the same number of elements") from error
    if array.dtype.kind not in "buif":
        raise UserError(f"{name}: expected real numbers, got {_described(value)}")
    return array


def to_rgb_image(image: object, rgb: bool = True) -> np.ndarray:
    """Any image as a new (H, W, 3) uint8 RGB array.

    Args:
        image: an array or tensor (H, W), (H, W, C) or (C, H, W) with C = 1 (grey), 3 or 4 (with alpha, blended
            over white), of bool, integers in 0..255, uint16 in 0..65535, or floats in [0, 1] or [0, 255];
            a PIL image; or the path of an image file. A batch of one is accepted. If both the first and the last axis
            could be the channels, the last one is taken. Files and PIL images are turned upright by their EXIF data;
            boxes are in pixels of the upright image.
        rgb: False for arrays in OpenCV's BGR(A) order. It does not matter for files and PIL images.

    Raises:
        UserError: a file that cannot be read, or an array that is not an image; the message says what is accepted.
    """
    if isinstance(image, str | Path):
        pixels, rgb = _read_image(Path(image)), False
    elif isinstance(image, Image.Image):
        pixels, rgb = _from_pil(image), True
    else:
        pixels = to_array(image, "img")
    pixels = _to_uint8(_channels_last(pixels))
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    color = pixels[..., :3] if rgb else pixels[..., 2::-1]
    if pixels.shape[2] == 4:
        alpha = pixels[..., 3:].astype(np.uint16)
        color = (color * alpha + 255 * (255 - alpha) + 127) // 255
    return np.array(color, dtype=np.uint8, order="C")


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`image` (H, W, 3) at `size` (width, height) by bilinear interpolation."""
    return image if image.shape[1::-1] == size else cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)


def to_boxes(boxes: object, name: str = "boxes") -> np.ndarray:
    """Boxes as (n, 4) float64, x0 y0 x1 y1 in pixels of the image.

    Accepts (n, 4), one box (4,), a batch of one (1, n, 4), and nothing (None, an empty list).

    Raises:
        UserError: another shape, a NaN or infinity, or a box that ends before it begins.
    """
    if boxes is None:
        return np.empty((0, 4))
    array = to_array(boxes, name)
    if array.ndim == 3 and array.shape[0] == 1:
        array = array[0]
    if array.size == 0 and array.shape[-1] in (0, 4):
        return np.empty((0, 4))
    if array.shape == (4,):
        array = array[None]
    if array.ndim != 2 or array.shape[1] != 4 or array.dtype.kind == "b":
        raise UserError(f"{name}: expected numbers of shape (n, 4), x0 y0 x1 y1, got {_described(array)}")
    array = array.astype(np.float64)
    for i, (x0, y0, x1, y1) in enumerate(array):
        if not np.isfinite(array[i]).all():
            raise UserError(f"{name}: box {i} has a NaN or an infinity: {array[i].tolist()}")
        if x1 < x0 or y1 < y0:
            raise UserError(f"{name}: box {i} is {array[i].tolist()}; x0 <= x1 and y0 <= y1 must hold (not x y w h)")
    return array


def to_box(box: object, name: str = "box") -> np.ndarray:
    """One box as (4,) float64. It raises UserError as `to_boxes` does, and for another number of boxes."""
    boxes = to_boxes(box, name)
    if len(boxes) != 1:
        raise UserError(f"{name}: expected one box of 4 numbers, got {len(boxes)} boxes")
    return boxes[0]


def to_scores(scores: object, count: int, name: str) -> list[str]:
    """`count` scores as texts with two decimals; empty texts if there are no scores.

    Raises:
        UserError: another number of scores, or a NaN or infinity.
    """
    if scores is None:
        return [""] * count
    array = _one_per_box(to_array(scores, name), count, name)
    if not np.isfinite(array.astype(np.float64)).all():
        raise UserError(f"{name}: a NaN or an infinity; scores must be finite")
    return [f"{float(score):.2f}" for score in array]


def to_names(ids: object, names: object, count: int, name: str, names_name: str) -> list[str]:
    """`count` texts: the names of the ids; empty texts if there are no ids.

    Args:
        ids: whole numbers in a list, array or tensor, or the names themselves; None: no name.
        names: a list (id -> name), a dict (id, or id as text -> name), or None: the numbers themselves are shown.

    Raises:
        UserError: another number of ids, an id that is not a whole number, or one that has no name.
    """
    if ids is None:
        return [""] * count
    if isinstance(ids, str) or (isinstance(ids, Sequence) and any(i is None or isinstance(i, str) for i in ids)):
        given = [ids] if isinstance(ids, str) else list(ids)
        if len(given) != count:
            raise UserError(f"{name}: {len(given)} values for {count} boxes; there must be one for each box")
    else:
        given = list(_one_per_box(to_array(ids, name), count, name))
    return [_name_of(i, names, name, names_name) for i in given]


def to_number(
    value: object, name: str, *, above: float | None = None, least: float | None = None, most: float | None = None
) -> float:
    """A finite number within limits; else a UserError that names the argument."""
    number = value if isinstance(value, int | float | np.number) and not isinstance(value, bool) else np.nan
    if not np.isfinite(number):
        raise UserError(f"{name}: expected a finite number, got {value!r}")
    if above is not None and number <= above:
        raise UserError(f"{name}: {number:g} is not above {above:g}")
    if (least is not None and number < least) or (most is not None and number > most):
        limits = f"at least {least:g}" if most is None else f"in [{least:g}, {most:g}]"
        raise UserError(f"{name}: {number:g} is not {limits}")
    return float(number)


def to_color(value: object, name: str) -> tuple[float, float, float]:
    """Any colour that Matplotlib knows, as (r, g, b) in [0, 1]; else a UserError that names the argument."""
    try:
        return matplotlib.colors.to_rgb(value)
    except (ValueError, TypeError) as error:
        raise UserError(f"{name}: {value!r} is not a colour; 'g', '#0072B2' or (r, g, b) in 0..1 are") from error


def to_linestyle(value: str) -> str:
    """A line style that Matplotlib knows. Anything else is a UserError."""
    try:
        Rectangle((0, 0), 1, 1, linestyle=value)
    except (ValueError, TypeError) as error:
        raise UserError(f"linestyle: {value!r} is not one of '-', '--', '-.', ':' and 'none'") from error
    return value


def _without_tensors(value: object) -> object:
    if isinstance(value, list | tuple) and any(hasattr(item, "detach") for item in value):
        return [to_array(item, "values") if hasattr(item, "detach") else item for item in value]
    return value


def _described(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    return type(value).__name__ if not isinstance(value, list | tuple) else f"a {type(value).__name__} of other things"


def _read_image(path: Path) -> np.ndarray:  # BGR(A)
    try:
        data = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    except (OSError, ValueError) as error:
        raise UserError(f"img: cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    try:
        pixels, kinds, contents = cv2.imdecodeWithMetadata(data, cv2.IMREAD_UNCHANGED) if data.size else (None, (), ())
    except cv2.error as error:  # more pixels than OpenCV takes
        raise UserError(f"img: {path} cannot be decoded ({' '.join(str(error).split())})") from error
    if pixels is None:
        raise UserError(f"img: {path} is not an image that OpenCV can read")
    exif = next((c for k, c in zip(kinds, contents, strict=True) if k == cv2.IMAGE_METADATA_EXIF), None)
    return pixels if exif is None else _upright(pixels, exif.tobytes())


def _upright(pixels: np.ndarray, exif: bytes) -> np.ndarray:
    mirrored, turns = _TURNS.get(_orientation(exif), (False, 0))
    return np.rot90(pixels[:, ::-1] if mirrored else pixels, turns)


def _orientation(exif: bytes) -> int:
    """The orientation, 1 to 8, in EXIF data; 1 if there is none."""
    tags = Image.Exif()
    try:
        tags.load(exif)
        return tags.get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, struct.error, ValueError, TypeError, KeyError, IndexError, OSError):  # damaged
        return 1


def _from_pil(image: object) -> np.ndarray:
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return np.asarray(image)
    transparent = "A" in image.getbands() or "transparency" in image.info
    return np.asarray(image.convert("RGBA" if transparent else "RGB"))


def _channels_last(pixels: np.ndarray) -> np.ndarray:
    if pixels.ndim == 4 and pixels.shape[0] == 1:
        pixels = pixels[0]
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim == 3 and pixels.shape[2] not in _CHANNELS and pixels.shape[0] in _CHANNELS:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim != 3 or pixels.shape[2] not in _CHANNELS or pixels.size == 0:
        raise UserError(
            f"img: shape {pixels.shape} is not an image; (H, W), (H, W, C) or (C, H, W) with C = 1, 3 or 4 is accepted"
        )
    return pixels


def _to_uint8(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind == "b":
        return pixels.astype(np.uint8) * np.uint8(255)
    if not np.isfinite(pixels).all():
        raise UserError("img: a NaN or an infinity among the pixels")
    low, high = float(pixels.min()), float(pixels.max())
    if pixels.dtype.kind == "f" and low >= -_UNIT_TOLERANCE and high <= 1 + _UNIT_TOLERANCE:
        return np.rint(np.clip(pixels, 0.0, 1.0) * 255).astype(np.uint8)
    if pixels.dtype == np.uint16 and high > 255:
        return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if low < 0 or high > 255:
        raise UserError(
            f"img: values from {low:g} to {high:g}; integers in 0..255 (uint16: 0..65535) and floats in [0, 1] or "
            "[0, 255] are accepted"
        )
    return np.rint(pixels).astype(np.uint8)


def _one_per_box(array: np.ndarray, count: int, name: str) -> np.ndarray:
    if array.ndim == 2 and array.shape[0] == 1:
        array = array[0]
    array = np.atleast_1d(array)
    if array.ndim != 1 or len(array) != count:
        raise UserError(f"{name}: shape {array.shape} for {count} boxes; there must be one for each box")
    return array


def _name_of(given: object, names: object, name: str, names_name: str) -> str:
    if given is None:
        return ""
    if isinstance(given, str):
        return given
    if isinstance(given, bool | np.bool_) or not np.isfinite(given) or int(given) != given:
        raise UserError(f"{name}: {given!r} is not a whole number")
    index = int(given)
    if names is None:
        return str(index)
    if isinstance(names, Mapping):
        if index not in names and str(index) not in names:
            raise UserError(f"{names_name}: no name for {name} {index}")
        return str(names[index] if index in names else names[str(index)])
    if isinstance(names, str) or not hasattr(names, "__getitem__"):
        raise UserError(f"{names_name}: expected a list or a dict of names, got {type(names).__name__}")
    if not 0 <= index < len(names):
        raise UserError(f"{names_name}: no name for {name} {index}; there are {len(names)} names, from 0 on")
    return str(names[index])
