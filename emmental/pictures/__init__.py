"""Pictures, made from arrays."""

import importlib
import os
import sys


def _load_matplotlib() -> None:
    """Import Matplotlib, even where `MPLBACKEND` names a backend that is not installed.

    Figures here have their own canvases and use no backend. Matplotlib refuses to load if it does not know the name;
    then it is loaded without the variable.
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
