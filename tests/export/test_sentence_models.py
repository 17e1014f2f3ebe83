"""Models of sentence-transformers: objects go in and come back, and folders keep what the package reads."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import warnings

import numpy as np
import pytest
import tiny
import tiny_models
import tiny_vocabulary
import torch

import emmental
from emmental.errors import UserError
from emmental.export.prune import main
from emmental.export.sentence_models import read_surroundings
from emmental.structured.gates import encoder_weights

pytest.importorskip("sentence_transformers")
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer import modules


def sentences(count: int = 48) -> list[str]:
    generator = random.Random(0)
    return [tiny.sentence(generator, row % 2) for row in range(count)]


QUERIES = [(text, sentences()[row : row + 3]) for row, text in enumerate(sentences()[:40])]


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


@pytest.fixture(scope="module")
def reranker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reranker")
    tiny_models.with_head("scores").save_pretrained(folder)
    tiny_models.tokenizer("bert").save_pretrained(folder)
    return CrossEncoder(str(folder))


@pytest.fixture(scope="module", params=["mean", "cls"])
def embedder(request, tmp_path_factory):
    """An encoder, a pooling, a linear layer and a scaling."""
    folder = tmp_path_factory.mktemp("embedder")
    tiny_models.with_head("embeddings").save_pretrained(folder)
    tiny_models.tokenizer("bert").save_pretrained(folder)
    parts = [modules.Transformer(str(folder)), modules.Pooling(16, pooling_mode=request.param)]
    return SentenceTransformer(modules=[*parts, modules.Dense(16, 8), modules.Normalize()], device="cpu")


def test_a_cross_encoder_comes_back(reranker, tmp_path):
    before = reranker.predict([("kasa", "lote")])
    small = emmental.prune(reranker, texts=QUERIES, keep=0.5)
    assert isinstance(small, CrossEncoder)
    assert encoder_weights(small.model) <= encoder_weights(reranker.model) // 2
    assert np.array_equal(reranker.predict([("kasa", "lote")]), before)
    small.save_pretrained(str(tmp_path / "small"))
    again = CrossEncoder(str(tmp_path / "small"), trust_remote_code=True)
    assert np.allclose(again.predict([("kasa", "lote")]), small.predict([("kasa", "lote")]), atol=1e-6)


def test_fewer_tokens_inside_of_a_cross_encoder(tmp_path):
    """The object that comes back reads texts with the new tokenizer, also after saving."""
    tokenizer = tiny_vocabulary.tokenizer("bert")
    model = tiny_vocabulary.model("bert", tokenizer, num_labels=1)
    torch.nn.init.ones_(model.classifier.bias)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    texts = tiny_vocabulary.texts(60)
    queries = [(text, texts[row : row + 3]) for row, text in enumerate(texts[:40])]
    small, made = emmental.prune(CrossEncoder(str(tmp_path)), texts=queries, keep=0.5, vocabulary=150)
    assert small.tokenizer is made
    assert len(made) == small.model.config.vocab_size == 150
    small.save_pretrained(str(tmp_path / "small"))
    again = CrossEncoder(str(tmp_path / "small"), trust_remote_code=True)
    pairs = [(texts[0], texts[1])]
    assert np.allclose(again.predict(pairs), small.predict(pairs), atol=1e-6)


def test_a_sentence_transformer_comes_back(embedder, tmp_path):
    small = emmental.prune(embedder, sentences(), keep=0.5)
    assert isinstance(small, SentenceTransformer)
    found = small.encode(sentences(4))
    assert found.shape == (4, 8)
    small.save_pretrained(str(tmp_path / "small"))
    again = SentenceTransformer(str(tmp_path / "small"), trust_remote_code=True)
    assert np.allclose(again.encode(sentences(4)), found, atol=1e-6)


def test_folders_say_what_objects_do(embedder, tmp_path):
    """The pooling read from files gives the vectors of the package."""
    embedder.save_pretrained(str(tmp_path))
    around = read_surroundings(tmp_path)
    batch = tiny_models.tokenizer("bert")(sentences(4), padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = embedder[0].auto_model(**batch).last_hidden_state
        found = torch.nn.functional.normalize(around.pool(hidden, batch["attention_mask"]))
    assert np.allclose(found.numpy(), embedder.encode(sentences(4)), atol=1e-5)
    assert around.first_token_only == (embedder[1].pooling_mode == "cls")


@pytest.mark.parametrize("imported", [True, False])
def test_the_command_keeps_their_files(embedder, reranker, tmp_path, imported):
    """With `import emmental` no flag is needed; without it, `trust_remote_code=True`."""
    (tmp_path / "texts.txt").write_text("\n".join(sentences()))
    lines = [json.dumps({"query": query, "documents": documents}) for query, documents in QUERIES]
    (tmp_path / "queries.jsonl").write_text("\n".join(lines))
    for name, model, texts in (("s", embedder, "texts.txt"), ("c", reranker, "queries.jsonl")):
        model.save_pretrained(str(tmp_path / name))
        arguments = ["--model_name_or_path", str(tmp_path / name), "--texts", str(tmp_path / texts), "--keep", "0.5"]
        main([*arguments, "--output", str(tmp_path / f"small-{name}"), "--no-engines", "--onnx"])
    assert (tmp_path / "small-s-onnx" / "1_Pooling" / "config.json").is_file()
    assert "pipeline_tag: text-ranking" in (tmp_path / "small-c-onnx" / "README.md").read_text()
    assert "pipeline_tag: feature-extraction" in (tmp_path / "small-s-onnx" / "README.md").read_text()
    first, flag = ("import emmental", "") if imported else ("", ", trust_remote_code=True")
    program = f"""
{first}
from sentence_transformers import CrossEncoder, SentenceTransformer
print(SentenceTransformer({str(tmp_path / "small-s")!r}{flag}).encode(["kasa lote"]).shape)
print(CrossEncoder({str(tmp_path / "small-c")!r}{flag}).predict([("kasa", "lote")]).shape)
"""
    root = str(tiny_models.__file__).rpartition("/tests/")[0] if imported else str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.stdout.split("\n")[:2] == ["(1, 8)", "(1,)"], done.stderr[-2000:]


def test_parts_that_are_not_known(tmp_path, embedder):
    embedder.save_pretrained(str(tmp_path))
    listed = json.loads((tmp_path / "modules.json").read_text())
    (tmp_path / "modules.json").write_text(json.dumps([{**listed[0], "type": "x.WordEmbeddings"}]))
    with pytest.raises(UserError, match="begins with WordEmbeddings"):
        read_surroundings(tmp_path)
    (tmp_path / "modules.json").write_text(json.dumps([listed[0], {**listed[1], "path": "../elsewhere"}]))
    with pytest.raises(UserError, match="outside of the folder"):
        read_surroundings(tmp_path)
    (tmp_path / "modules.json").write_text(json.dumps(listed))
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "lasttoken"}))
    with pytest.raises(UserError, match="mean, cls or max is accepted"):
        read_surroundings(tmp_path)
