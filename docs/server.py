"""An OpenAPI server without PyTorch, for a model or a cascade. Start: uvicorn server:app. Try it at /docs."""

import json
import os
from pathlib import Path

import numpy as np
import onnxruntime
from fastapi import FastAPI
from tokenizers import Tokenizer

folder = Path(os.environ.get("MODEL", "served"))
app = FastAPI(title="classifier")

if (folder / "cascade.json").is_file():
    from emmental.cascade import load

    cascade = load(folder)
else:
    cascade = None
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    longest = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("model_max_length", 128)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # "[SEP]" in a text is text
    tokenizer.enable_truncation(min(config.get("max_seq_length", 128), longest))
    tokenizer.enable_padding(pad_id=config["pad_token_id"])
    session = onnxruntime.InferenceSession(folder / "onnx" / os.environ.get("FILE", "model_quantized.onnx"))
    names = [value.name for value in session.get_inputs()]


@app.post("/classify")
def classify(texts: list[str] | list[tuple[str, str]]) -> list[dict]:
    """For each text label -> score, a probability or a model's only output; of a cascade label, score and stage."""
    if not texts:
        return []
    if cascade:
        return cascade.classify(texts)
    rows = tokenizer.encode_batch(texts)
    every = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    inputs = {name: np.array([getattr(row, every[name]) for row in rows], np.int64) for name in names}
    scores = session.run(None, inputs)[0]
    if config.get("problem_type") == "multi_label_classification":
        scores = 1 / (1 + np.exp(-scores))
    elif scores.shape[1] > 1:
        scores = np.exp(scores - scores.max(1, keepdims=True))
        scores /= scores.sum(1, keepdims=True)
    return [{config["id2label"][str(i)]: float(score) for i, score in enumerate(row)} for row in scores]
