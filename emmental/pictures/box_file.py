"""Reads and checks JSON files of boxes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NoReturn

from emmental.errors import UserError

FORM = (
    'The JSON file is an object with "boxes", a list of [x0, y0, x1, y1] in pixels of the image, and, each with one '
    'entry for each box, any of "obj_ids" (numbers or names), "obj_scores" (numbers), "attr_ids", "attr_scores"; '
    '"id2obj" and "id2attr" may name the ids, as a list or as an object {"0": "cat"}. For example '
    '{"boxes": [[10, 10, 90, 80]], "obj_ids": [0], "obj_scores": [0.9], "id2obj": ["cat"]}'
)
_PER_BOX = ("obj_ids", "obj_scores", "attr_ids", "attr_scores")
_NAMES = ("id2obj", "id2attr")


def read_box_file(path: str | Path) -> dict[str, object]:
    """Read a file of boxes; `FORM` describes it.

    Returns:
        The keys that the file has, as `SingleImageViz` takes them: "boxes" always; the rest when present.

    Raises:
        UserError: the file cannot be read, is not JSON, or has another form; the message names the file and the key.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not JSON: it is not UTF-8 text") from error
    try:
        content = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_without_duplicates)
        _check(content)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    return content


def _check(content: object) -> None:
    if not isinstance(content, dict) or "boxes" not in content:
        raise UserError('expected an object with "boxes"')
    known = ("boxes", *_PER_BOX, *_NAMES)
    unknown = [key for key in content if key not in known]
    if unknown:
        raise UserError(f"unknown key {unknown[0]!r}; the keys are {', '.join(known)}")
    boxes = content["boxes"]
    if not isinstance(boxes, list):
        raise UserError("boxes: expected a list of [x0, y0, x1, y1]")
    for i, box in enumerate(boxes):
        if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
            raise UserError(f"boxes: box {i} is not a list of 4 numbers x0, y0, x1, y1")
    for key in _PER_BOX:
        _check_values(key, content.get(key, [0] * len(boxes)), len(boxes), names="ids" in key)
    for key in _NAMES:
        names = content.get(key, [])
        if not isinstance(names, list | dict):
            raise UserError(f'{key}: expected a list of names or an object such as {{"0": "cat"}}')
        if not all(isinstance(name, str) for name in (names.values() if isinstance(names, dict) else names)):
            raise UserError(f"{key}: a name is not text")


def _check_values(key: str, values: object, count: int, names: bool) -> None:
    if not isinstance(values, list) or len(values) != count:
        raise UserError(f"{key}: expected a list with one entry for each of the {count} boxes")
    for value in values:
        if not (_is_number(value) or (names and isinstance(value, str))):
            raise UserError(f"{key}: {value!r} is not a number{' or a name' if names else ''}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _refuse_constant(name: str) -> NoReturn:
    raise UserError(f"{name} is not a number of JSON")


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise UserError("a key appears twice in one object")
    return content
