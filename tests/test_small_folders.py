"""The folder of a small model in a process without emmental: its tokenizer, and an older Transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import tiny_models
import tiny_small

from emmental.shrinking import shrink


@pytest.fixture(scope="module")
def without_emmental():
    """Runs a line of Python in a process that has not imported emmental; input comes from a pipe that stays open."""

    def run(line: str) -> subprocess.CompletedProcess:
        reading, writing = os.pipe()
        try:
            command = [sys.executable, "-c", line]
            return subprocess.run(command, stdin=reading, capture_output=True, text=True, timeout=120, cwd="/")
        finally:
            os.close(reading)
            os.close(writing)

    return run


def test_a_tokenizer_without_code(tmp_path, without_emmental):
    """The tokenizer of any small model loads at once by AutoTokenizer, and none of the folder's code is run."""
    wanted = {}
    for model_type in tiny_models.MODEL_TYPES:
        folder = tmp_path / model_type
        shrink(tiny_small.dense(model_type), tiny_small.UNEVEN).save_pretrained(folder)
        tiny_models.tokenizer(model_type).save_pretrained(folder)
        (folder / "small_models.py").write_text("raise SystemExit('the code was run')")
        wanted[model_type] = tiny_models.tokenizer(model_type)("kasa lote")["input_ids"]
    done = without_emmental(
        "import json, pathlib; from transformers import AutoTokenizer; print(json.dumps({p.name: "
        "AutoTokenizer.from_pretrained(p, trust_remote_code=False)('kasa lote')['input_ids'] "
        f"for p in pathlib.Path({str(tmp_path)!r}).iterdir()}}))"
    )
    assert json.loads(done.stdout or done.stderr) == wanted


def test_an_older_transformers_is_named(tmp_path, without_emmental):
    shrink(tiny_small.dense("bert"), tiny_small.UNEVEN).save_pretrained(tmp_path)
    done = without_emmental(
        "import transformers; transformers.__version__ = '5.9.1'; "
        "from transformers import AutoModelForSequenceClassification as A; "
        f"A.from_pretrained({str(tmp_path)!r}, trust_remote_code=True)"
    )
    assert done.stderr.strip().splitlines()[-1] == (
        "ImportError: this small model needs Transformers 5.23 or newer, and finds 5.9.1: "
        "pip install --upgrade transformers"
    )
