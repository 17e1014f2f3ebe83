"""Cascades: a cheap model answers what it is sure of, a dearer one the rest, and the last one what is left.

    python -m emmental.cascade --models small dense --texts held-out.csv --output served

`load` and what it needs import NumPy, tokenizers and ONNX Runtime (or OpenVINO) only. `build_cascade` needs PyTorch.
"""

from __future__ import annotations

from typing import Any

from emmental.cascade.serving import Cascade, load

__all__ = ["Cascade", "Rows", "build_cascade", "load"]


def __getattr__(name: str) -> Any:
    if name == "build_cascade":
        from emmental.cascade.building import build_cascade

        return build_cascade
    if name == "Rows":
        from emmental.cascade.rows import Rows

        return Rows
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
