"""Fonts for texts on a picture: Matplotlib's own font, and system fonts for letters that it does not have.

Matplotlib's DejaVu Sans has Latin, Greek, Cyrillic, Arabic and Hebrew letters, but no Chinese, Japanese or Korean.
"""

from __future__ import annotations

import logging
from functools import lru_cache

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

logger = logging.getLogger(__name__)

OWN = "DejaVu Sans"
_BOX = "□"


def text_artist(text: str, size: float, **options: object) -> Text:
    """A text of `size` pixels in fonts that have its letters; `options` are those of Matplotlib's `Text`."""
    return Text(0.0, 0.0, fontsize=size, parse_math=False, **drawable(text), **options)


def drawable(text: str) -> dict[str, object]:
    """What Matplotlib needs to draw `text`: `text` itself, and `family`, the names of fonts that have its letters.

    Fonts of the system often have only one weight, so such texts are never bold.
    Letters that no font has become boxes, and the log names each of them once.
    """
    missing = frozenset(ord(letter) for letter in text if not letter.isspace()) - _letters_of(_own_path())
    if not missing:
        return {"text": text, "family": [OWN]}
    chosen, missing = _system_families(missing)
    _name_missing(missing)
    return {"text": text.translate(dict.fromkeys(missing, _BOX)), "family": [OWN, *chosen], "weight": "normal"}


@lru_cache(maxsize=256)
def _system_families(missing: frozenset[int]) -> tuple[list[str], frozenset[int]]:
    """Names of fonts, and the letters that no font has."""
    chosen: list[str] = []
    while missing:
        path = min(system_fonts(), key=lambda path: _preference(path, missing), default="")
        if not missing & _letters_of(path):
            break
        missing -= _letters_of(path)
        font_manager.fontManager.addfont(path)
        chosen.append(FT2Font(path).family_name)
    return chosen, missing


def _preference(path: str, missing: frozenset[int]) -> tuple[int, bool, str]:
    """Order of fonts: most letters first, then regular ones, then by name, so every run draws the same picture."""
    return -len(missing & _letters_of(path)), "regular" not in path.lower(), path


_named: set[int] = set()


def _name_missing(missing: frozenset[int]) -> None:
    new = sorted(missing - _named)
    _named.update(new)
    if new:
        letters = "".join(map(chr, new[:20])) + ("..." if len(new) > 20 else "")
        logger.warning(
            "no font of this system has the letters %s: pictures show boxes instead. Install a font that has "
            "them, such as Noto Sans CJK (Debian, Ubuntu: apt install fonts-noto-cjk)",
            letters,
        )


@lru_cache(maxsize=1)
def system_fonts() -> tuple[str, ...]:
    """Paths of the fonts that are installed, sorted."""
    return tuple(sorted(font_manager.findSystemFonts()))


@lru_cache(maxsize=1)
def _own_path() -> str:
    return font_manager.findfont(OWN)


@lru_cache(maxsize=4096)
def _letters_of(path: str) -> frozenset[int]:
    """Code points that a font file has; none if Matplotlib cannot draw from it, for example coloured bitmaps."""
    try:
        return frozenset(FT2Font(path).get_charmap())
    except (RuntimeError, OSError, ValueError):
        return frozenset()
