"""transformers.js loads an exported folder as it is, in both dtypes, and answers as PyTorch and ONNX Runtime do.

Needs Node, and the npm package in the folder that EMMENTAL_NODE_MODULES names (or where Node itself looks):
`npm install --ignore-scripts @huggingface/transformers`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import tiny
import tiny_models
import torch

from emmental.export.calibration import STATIC, Calibration
from emmental.export.onnx import load_session, write_onnx_folder
from emmental.export.tokenizer import read_tokenizer_files
from emmental.shrinking import shrink

SCRIPT = """
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
const require = createRequire(process.cwd() + "/");
const { pipeline, env, AutoConfig } = await import(pathToFileURL(require.resolve("@huggingface/transformers")));
const [folder, names, texts] = [process.argv[2], JSON.parse(process.argv[3]), JSON.parse(process.argv[4])];
env.allowRemoteModels = false;
env.localModelPath = folder;
const answers = {};
for (const name of names) for (const dtype of ["fp32", "q8"]) {
  const classify = await pipeline("text-classification", name, { dtype });
  answers[`${name} ${dtype}`] = await classify(texts, { top_k: null });
}
console.log(JSON.stringify(answers));
"""
PLACE = Path(os.environ.get("EMMENTAL_NODE_MODULES", "."))
SMALL, SIZES = "small", [([1], [0, 3, 4]), ([], [7])]
"""The small form of the tiny BERT: heads and neurons that stay, by layer. Its int8 is static, the others' dynamic."""
NAMES = (*tiny_models.MODEL_TYPES, SMALL)
TEXTS = [f"{tiny.WORDS[3]} {tiny.WORDS[7]} {tiny.WORDS[1]} {tiny.WORDS[7]}", tiny.WORDS[5]]


def has_package() -> bool:
    if shutil.which("node") is None:
        return False
    found = subprocess.run(
        ["node", "-e", "require.resolve('@huggingface/transformers')"], cwd=PLACE, capture_output=True, check=False
    )
    return found.returncode == 0


pytestmark = pytest.mark.skipif(not has_package(), reason="needs Node with @huggingface/transformers")


def encoded_texts(model_type: str) -> dict[str, torch.Tensor]:
    return tiny_models.tokenizer(model_type)(TEXTS, padding=True, return_tensors="pt")


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> tuple[Path, dict]:
    """The folder of all exports, and what one Node process answers to `TEXTS` with each."""
    folder = tmp_path_factory.mktemp("served")
    for model_type in tiny_models.MODEL_TYPES:
        tiny_models.save(folder / "dense" / model_type, model_type, id2label={0: "no", 1: "yes"})
        model = tiny_models.model(model_type, id2label={0: "no", 1: "yes"})
        files = read_tokenizer_files(folder / "dense" / model_type)
        write_onnx_folder(model, files, folder / "onnx" / model_type, int8=True, name=model_type)
    dense = tiny_models.model("bert", id2label={0: "no", 1: "yes"})
    small = shrink(dense, SIZES)
    files, static = read_tokenizer_files(folder / "dense" / "bert"), Calibration([encoded_texts("bert")], (STATIC,))
    write_onnx_folder(small, files, folder / "onnx" / SMALL, int8=True, calibration=static)
    (folder / "ask.mjs").write_text(SCRIPT)
    words = [str(folder / "ask.mjs"), str(folder / "onnx"), json.dumps(NAMES), json.dumps(TEXTS)]
    run = subprocess.run(["node", *words], cwd=PLACE, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    return folder, json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("int8", [False, True], ids=["fp32", "q8"])
@pytest.mark.parametrize("name", NAMES)
def test_scores_of_pytorch(answers, name, int8):
    """fp32 within 1e-4 of PyTorch; q8 is compared with ONNX Runtime on the same file and batch."""
    folder, found = answers
    model_type = "bert" if name == SMALL else name
    assert json.loads((folder / "onnx" / name / "config.json").read_text())["model_type"] == model_type
    encoded = encoded_texts(model_type)
    model = tiny_models.model(model_type)
    if int8:
        model = load_session(folder / "onnx" / name, int8=True)
    elif name == SMALL:
        model = shrink(model, SIZES)
    with torch.no_grad():
        wanted = torch.softmax(model(**encoded).logits, -1)
    for row, answer in zip(wanted, found[f"{name} {'q8' if int8 else 'fp32'}"], strict=True):
        assert {entry["label"]: entry["score"] for entry in answer} == pytest.approx(
            {"no": row[0].item(), "yes": row[1].item()}, abs=1e-4
        )
