"""Figures use no backend of Matplotlib: whichever the environment names, and whether it exists, does not matter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("backend", ["nonsense", "module://absent.backend", "agg"])
def test_an_absent_backend_does_not_matter(tmp_path, backend):
    code = (
        "import os, visualizing_image, matplotlib.colors\n"
        "visualizing_image.overview([[0.5]], 'title').save('a.png')\n"
        "visualizing_image.overview([[0.5]], 'title').save('a.pdf')\n"
        "print(os.environ['MPLBACKEND'])"
    )
    environment = {**os.environ, "MPLBACKEND": backend, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == backend
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.pdf", "a.png"]
