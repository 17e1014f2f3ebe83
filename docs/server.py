"""An OpenAPI server without PyTorch, for a model or a cascade. Start: uvicorn server:app. Try it at /docs."""

import json
import os

import numpy as np
import onnxruntime
from fastapi import FastAPI
from tokenizers import Tokenizer

FOLDER = os.environ.get("MODEL", "served")
app = FastAPI(title="classifier")

if os.path.exists(f"{FOLDER}/cascade.json"):
    from emmental.cascade import load

    cascade = load(FOLDER)
else:
    cascade = None
    with open(f"{FOLDER}/config.json") as file:
        config = json.load(file)
    tokenizer = Tokenizer.from_file(f"{FOLDER}/tokenizer.json")
    tokenizer.enable_truncation(128)
    tokenizer.enable_padding(pad_id=config["pad_token_id"])
    session = onnxruntime.InferenceSession(f"{FOLDER}/onnx/{os.environ.get('FILE', 'model_quantized.onnx')}")
    names = {value.name for value in session.get_inputs()}


@app.post("/classify")
def classify(texts: list[str] | list[tuple[str, str]]) -> list[dict]:
    """For each text label -> probability; from a cascade label, score and stage."""
    if cascade:
        return cascade.classify(texts)
    rows = tokenizer.encode_batch(texts)
    every = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    inputs = {name: np.array([getattr(row, every[name]) for row in rows], np.int64) for name in names}
    logits = session.run(None, inputs)[0]
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    return [{config["id2label"][str(i)]: float(p) for i, p in enumerate(row)} for row in shares]
