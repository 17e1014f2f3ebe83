"""Fonts of the system for letters that Matplotlib's own lacks."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from emmental.pictures import fonts
from emmental.pictures.heat import overview
from visualizing_image import SingleImageViz

HANZI, HANGUL = "\u6a19", "\ud55c"


def make_font(path: Path, family: str, letters: str) -> str:
    """A font whose every letter is a filled square as high as the line."""
    pen = TTGlyphPen(None)
    for move, point in (("moveTo", (0, 0)), ("lineTo", (0, 1000)), ("lineTo", (1000, 1000)), ("lineTo", (1000, 0))):
        getattr(pen, move)(point)
    pen.closePath()
    names = [".notdef", *(f"letter{number}" for number in range(len(letters)))]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(letter): name for letter, name in zip(letters, names[1:], strict=True)})
    builder.setupGlyf(dict.fromkeys(names, pen.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=1000, descent=0)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return str(path)


@pytest.fixture
def installed(monkeypatch):
    """Say which fonts the system has."""

    def install(*paths: str) -> None:
        monkeypatch.setattr(fonts, "system_fonts", lambda: paths)
        monkeypatch.setattr(fonts, "_named", set())
        fonts._system_families.cache_clear()

    yield install
    fonts._system_families.cache_clear()


def test_own_letters_need_no_other_font(installed):
    installed()
    assert fonts.drawable("dog é Ω я 0.90") == {"text": "dog é Ω я 0.90", "family": ["DejaVu Sans"]}


def test_fonts_of_the_system_are_taken_the_most_letters_first(installed, tmp_path):
    one = make_font(tmp_path / "a.ttf", "One Letter", HANZI)
    two = make_font(tmp_path / "b.ttf", "Two Letters", HANZI + HANGUL)
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    installed(one, two, str(tmp_path / "broken.ttf"))
    assert fonts.drawable(f"a {HANZI} {HANGUL}") == {
        "text": f"a {HANZI} {HANGUL}",
        "family": ["DejaVu Sans", "Two Letters"],
        "weight": "normal",
    }
    assert fonts.drawable(HANZI)["family"] == ["DejaVu Sans", "One Letter"]


def test_without_a_font_boxes_and_one_line(installed, caplog):
    installed()
    for _ in range(2):
        assert fonts.drawable(f"x{HANZI}{HANGUL}")["text"] == "x□□"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"no font of this system has the letters {HANZI}{HANGUL}: ")


@pytest.mark.filterwarnings("error")
def test_labels_are_drawn_with_the_font(installed, tmp_path):
    def dark_pixels() -> int:
        viz = SingleImageViz(np.full((100, 200, 3), 255, np.uint8), scale=1.0, pad=0.0)
        viz.draw_text(HANZI * 3, (20, 20), color="w", font_size=20)
        x0, y0, x1, y1 = (round(side) for side in viz.label_boxes[0])
        return int((viz._get_buffer()[y0:y1, x0:x1] > 200).all(axis=2).sum())

    installed()
    boxes = dark_pixels()
    installed(make_font(tmp_path / "a.ttf", "Squares", HANZI))
    assert dark_pixels() >= 3 * 19 * 19 > boxes  # three filled squares of 20 x 20


@pytest.mark.filterwarnings("error")
def test_titles_and_rows_too(installed, tmp_path):
    installed(make_font(tmp_path / "a.ttf", "Squares", HANZI))
    with_font = overview(np.ones((1, 2)), HANZI, rows=[HANZI])._get_buffer()
    installed()
    assert (overview(np.ones((1, 2)), HANZI, rows=[HANZI])._get_buffer() != with_font).any()
