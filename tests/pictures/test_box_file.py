"""JSON files of boxes: what is accepted, and one line for everything else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from emmental.pictures.box_file import FORM, read_box_file


def test_the_example_of_the_description_is_accepted(tmp_path: Path) -> None:
    example = FORM[FORM.index("For example ") + len("For example ") :]
    path = tmp_path / "boxes.json"
    path.write_text("\ufeff" + example, encoding="utf-8")
    assert read_box_file(path) == {
        "boxes": [[10, 10, 90, 80]],
        "obj_ids": [0],
        "obj_scores": [0.9],
        "id2obj": ["cat"],
    }


@pytest.mark.parametrize(
    "content",
    [
        {"boxes": []},
        {"boxes": [], "obj_ids": []},
        {"boxes": [[0, 0, 1.5, 2]], "obj_ids": ["cat"], "attr_ids": [3], "attr_scores": [1], "id2attr": {"3": "red"}},
    ],
)
def test_accepted(tmp_path: Path, content: dict) -> None:
    (tmp_path / "b.json").write_text(json.dumps(content))
    assert read_box_file(tmp_path / "b.json") == content


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[" * 200_000, "is not JSON"),
        ("[]", 'expected an object with "boxes"'),
        ("{}", 'expected an object with "boxes"'),
        ('{"boxes": null}', "boxes: expected a list"),
        ('{"boxes": [[1, 2, 3]]}', "boxes: box 0 is not a list of 4 numbers"),
        ('{"boxes": [[1, 2, 3, "4"]]}', "boxes: box 0 is not a list of 4 numbers"),
        ('{"boxes": [[1, 2, 3, true]]}', "boxes: box 0 is not a list of 4 numbers"),
        ('{"boxes": [[0, 0, 1, 1], 5]}', "boxes: box 1 is not a list of 4 numbers"),
        ('{"boxes": [[1, 2, 3, NaN]]}', "NaN is not a number of JSON"),
        ('{"boxes": [[1, 2, 3, Infinity]]}', "Infinity is not a number of JSON"),
        ('{"boxes": [], "boxes": []}', "a key appears twice"),
        ('{"boxes": [], "labels": []}', "unknown key 'labels'; the keys are boxes, obj_ids"),
        (
            '{"boxes": [[0, 0, 1, 1]], "obj_ids": []}',
            "obj_ids: expected a list with one entry for each of the 1 boxes",
        ),
        ('{"boxes": [[0, 0, 1, 1]], "obj_ids": [null]}', "obj_ids: None is not a number or a name"),
        ('{"boxes": [[0, 0, 1, 1]], "obj_scores": ["high"]}', "obj_scores: 'high' is not a number"),
        ('{"boxes": [[0, 0, 1, 1]], "attr_scores": 5}', "attr_scores: expected a list"),
        ('{"boxes": [], "id2obj": "cat"}', "id2obj: expected a list of names or an object"),
        ('{"boxes": [], "id2attr": {"0": 5}}', "id2attr: a name is not text"),
    ],
)
def test_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "b.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_box_file(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_unreadable(tmp_path: Path) -> None:
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    for path, message in (("missing.json", "No such file"), (".", "Is a directory"), ("binary.json", "not UTF-8")):
        with pytest.raises(ValueError, match=message):
            read_box_file(tmp_path / path)
