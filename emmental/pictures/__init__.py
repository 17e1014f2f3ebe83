"""Pictures: arrays in, bytes out."""

import importlib
import os
import sys


def _load_matplotlib() -> None:
    """Import Matplotlib, even where `MPLBACKEND` names a backend that is not installed.

    Figures here have canvases of their own and use no backend. Matplotlib refuses to load with a name that it does
    not know; then it is loaded without one.
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
