"""The commands for models share their words: `--model_name_or_path` in, `--output` out; the earlier words go on."""

from __future__ import annotations

import importlib
import re

import pytest

TOOLS = {
    "emmental.export.bertarize": ("--target_model_path",),
    "emmental.export.counts_parameters": ("--picture",),
    "emmental.export.onnx": ("--target_model_path",),
    "emmental.export.report": ("--target",),
    "emmental.export.shrink": ("--target_model_path",),
    "emmental.export.sparse": ("--model",),
    "emmental.export.storage": ("--package",),
    "emmental.data.corpus": ("--tokenizer", "--dump_file"),
    "emmental.training.student_init": ("--model_name", "--dump_checkpoint"),
    "visualizing_image": ("--model_dir", "--saveas"),
}
"""Command -> the words of earlier versions for the two flags."""


@pytest.mark.parametrize("tool", TOOLS)
def test_one_word_for_one_thing(tool, capsys):
    with pytest.raises(SystemExit):
        importlib.import_module(tool).main(["--help"])
    flags = re.findall(r"^  (--.*)", capsys.readouterr().out, re.MULTILINE)
    first = {re.match(r"--\w+", line)[0]: line for line in flags}
    assert {"--model_name_or_path", "--output"} <= set(first)
    for earlier in TOOLS[tool]:
        words = [name for name in ("--model_name_or_path", "--output") if re.search(rf"{earlier} ", first[name])]
        assert len(words) == 1, f"{tool} does not know {earlier}"
