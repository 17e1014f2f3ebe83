"""Pictures, made from arrays."""

import importlib
import os
import sys


def _load_matplotlib() -> None:
    """Import Matplotlib, even if `MPLBACKEND` names a backend that is not installed.

    Figures here have their own canvases and use no backend. If Matplotlib does not know the name, it refuses to
    load; then it is loaded without the variable.
    """
    try:
        importlib.import_module("matplotlib")
    except ValueError:
        named = os.environ.pop("MPLBACKEND", None)
        if named is None:
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
            del sys.modules[name]
        try:
            importlib.import_module("matplotlib")
        finally:
            os.environ["MPLBACKEND"] = named


_load_matplotlib()
