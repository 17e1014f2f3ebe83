"""Optional parts of a training: what is left out if a package is missing, and how to install it."""

from __future__ import annotations

import functools
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


@functools.cache
def why_missing(package: str) -> str | None:
    """Why a package cannot be imported, in words for a message; None if it can. Imports it."""
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name == package:
            return f"{package} is not installed: pip install {package}"
        return _broken(package, error)
    except (ImportError, OSError) as error:  # installed, but for another system or with a library missing
        return _broken(package, error)
    except ValueError:  # Matplotlib does not know the name in MPLBACKEND; emmental.pictures handles that
        return None
    return None


def _broken(package: str, error: Exception) -> str:
    return f"{package} cannot be imported ({' '.join(str(error).split())[:200]})"


def is_there(part: str) -> bool:
    """Whether everything that a part needs can be imported."""
    return not _missing(part)


def leave_without(part: str, program: str) -> None:
    """Print what to install and exit with status 2 if a program cannot start because a part is missing."""
    if not (missing := _missing(part)):
        return
    broken = [why for name in missing if "not installed" not in (why := why_missing(name))]
    reason = broken[0] if broken else f"{', '.join(missing)} not installed: pip install {_PARTS[part][1]}"
    print(f"{program}: error: {reason}", file=sys.stderr)
    sys.exit(2)


def what_is_left_out() -> str | None:
    """One line: the parts that are missing and the command that installs them. None if nothing is missing."""
    missing = {part: names for part in _PARTS if (names := _missing(part, at_once=False))}
    if not missing:
        return None
    parts = ", ".join(f"{part} (no {', '.join(names)})" for part, names in missing.items())
    return f"left out: {parts}; to install them: pip install {' '.join(_PARTS[part][1] for part in missing)}"


def _missing(part: str, at_once: bool = True) -> list[str]:
    """The modules of a part that are missing. Unless it is used at once, slow ones are only looked for."""
    return [
        name
        for name in _PARTS[part][0]
        if (find_spec(name) is None if name in _LOOKED_FOR and not at_once else why_missing(name) is not None)
    ]
