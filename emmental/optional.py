"""Optional parts of a training: what is left out if a package is missing, and how to install it."""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec

_PARTS = {
    "pictures": (("matplotlib", "cv2"), "matplotlib opencv-python-headless"),
    "TensorBoard": (("tensorboard",), "tensorboard"),
    "ONNX files": (("onnx", "onnxruntime"), "onnx onnxruntime"),
}
"""Part -> the modules it needs, and what pip calls them."""
_LOOKED_FOR = ("onnx", "onnxruntime")
"""Slow to import and not needed while training, so we only check that they are installed."""


def is_there(part: str) -> bool:
    """Whether everything that a part needs is installed."""
    return not _missing(part)


def leave_without(part: str, program: str) -> None:
    """Print what to install and exit with status 2 if a program cannot start because a part is missing."""
    if missing := _missing(part):
        print(f"{program}: error: {', '.join(missing)} not installed: pip install {_PARTS[part][1]}", file=sys.stderr)
        sys.exit(2)


def what_is_left_out() -> str | None:
    """One line: the parts that are missing and the command that installs them. None if nothing is missing."""
    missing = {part: names for part in _PARTS if (names := _missing(part))}
    if not missing:
        return None
    parts = ", ".join(f"{part} (no {', '.join(names)})" for part, names in missing.items())
    return f"left out: {parts}; to install them: pip install {' '.join(_PARTS[part][1] for part in missing)}"


def _missing(part: str) -> list[str]:
    return [name for name in _PARTS[part][0] if not _can_be_imported(name)]


def _can_be_imported(name: str) -> bool:
    try:
        if name in _LOOKED_FOR:
            return find_spec(name) is not None
        importlib.import_module(name)
    except ImportError:
        return False
    except ValueError:  # Matplotlib does not know the name in MPLBACKEND; emmental.pictures handles that
        return True
    return True
