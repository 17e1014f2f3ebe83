"""`emmental-prune`: every kind of model, every kind of file, and one line for every mistake."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path

import pytest
import tiny
import tiny_models
import tiny_vocabulary
import torch
import transformers

from emmental.export.onnx import load_session
from emmental.export.prune import main
from emmental.structured.gates import encoder_weights


def sentences(count: int = 48) -> list[str]:
    generator = random.Random(0)
    return [tiny.sentence(generator, row % 2) for row in range(count)]


def write(folder: Path, kind: str) -> Path:
    """A model's folder with texts beside it."""
    tiny_models.with_head(kind).save_pretrained(folder / "model")
    tiny_models.tokenizer("bert").save_pretrained(folder / "model")
    texts = sentences()
    pairs = zip(texts, reversed(texts), strict=True)
    (folder / "texts.txt").write_text("\n".join(texts) + "\n\n")
    (folder / "pairs.csv").write_text("question,context\n" + "\n".join(map(",".join, pairs)))
    queries = [{"query": texts[row], "documents": texts[row : row + 3]} for row in range(40)]
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    return folder


FILES = {"spans": "pairs.csv", "scores": "queries.jsonl"}


@pytest.mark.parametrize("kind", tiny_models.HEADS)
def test_every_kind(kind, tmp_path, capsys):
    folder = write(tmp_path, kind)
    arguments = ["--model_name_or_path", str(folder / "model"), "--texts", str(folder / FILES.get(kind, "texts.txt"))]
    main([*arguments, "--keep", "0.5", "--output", str(folder / "small"), "--no-engines", "--onnx"])
    shown = capsys.readouterr().out
    assert "dense" in shown
    assert "50% kept" in shown
    auto = getattr(transformers, tiny_models.HEADS[kind][0])
    small = auto.from_pretrained(folder / "small").eval()
    assert encoder_weights(small) <= encoder_weights(auto.from_pretrained(folder / "model")) // 2
    assert (folder / "small" / "pictures" / "structure.png").is_file()
    card = (folder / "small" / "README.md").read_text()
    assert f"import {tiny_models.HEADS[kind][0]}" in card
    batch = tiny_models.tokenizer("bert")(sentences(3), padding=True, return_tensors="pt")
    with torch.no_grad():
        wanted = small(**batch)
    found = load_session(folder / "small-onnx")(**batch)
    for name in found:
        torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=1e-4)


def test_a_ladder_with_updates_is_resumed(tmp_path, capsys):
    """The second command finds the finished recoveries, and makes the same model."""
    folder = write(tmp_path, "classes")
    arguments = ["--model_name_or_path", str(folder / "model"), "--texts", str(folder / "texts.txt"), "--no-engines"]
    arguments += ["--keep", "0.25", "0.5", "--updates", "5", "--output", str(folder / "small")]
    main(arguments)
    first = (folder / "small" / "model.safetensors").read_bytes()
    assert (folder / "small" / "recovery" / "25" / "checkpoint-5").is_dir()
    main(arguments)
    assert (folder / "small" / "model.safetensors").read_bytes() == first
    sizes = [
        encoder_weights(transformers.AutoModelForSequenceClassification.from_pretrained(place))
        for place in (folder / "small" / "keep-0.5", folder / "small")
    ]
    assert sizes[0] > sizes[1]
    assert capsys.readouterr().out.count("25% kept") >= 2


def test_labels_give_the_metric(tmp_path, capsys):
    folder = write(tmp_path, "classes")
    rows = [f"{text},{row % 3}" for row, text in enumerate(sentences())]
    (folder / "labelled.csv").write_text("text,class\n" + "\n".join(rows))
    arguments = ["--model_name_or_path", str(folder / "model"), "--texts", str(folder / "labelled.csv")]
    main([*arguments, "--label_column", "class", "--output", str(folder / "small"), "--no-engines"])
    assert "acc" in capsys.readouterr().out


def test_files_of_the_user_stay(tmp_path):
    folder = write(tmp_path, "classes")
    (folder / "small").mkdir()
    (folder / "small" / "README.md").write_text("mine")
    arguments = ["--model_name_or_path", str(folder / "model"), "--texts", str(folder / "texts.txt")]
    main([*arguments, "--output", str(folder / "small"), "--no-engines"])
    assert (folder / "small" / "README.md.kept-1").read_text() == "mine"


def with_config(folder: Path, **settings: object) -> None:
    file = folder / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def without_head(folder: Path) -> None:
    shutil.rmtree(folder / "model")
    tiny_models.with_head("embeddings").save_pretrained(folder / "model")
    tiny_models.tokenizer("bert").save_pretrained(folder / "model")
    with_config(folder, architectures=["BertForTokenClassification"])


@pytest.mark.parametrize(
    ("kind", "texts", "change", "flags", "message"),
    [
        ("spans", "texts.txt", None, [], "question-answering models need a pair of strings"),
        ("classes", "queries.jsonl", None, [], "a string or a pair of strings is accepted"),
        ("tokens", "pairs.csv", None, ["--text_column", "words"], "no column 'words'"),
        ("tokens", "missing.txt", None, [], "--texts .*missing.txt is not a file"),
        ("classes", "texts.txt", None, ["--keep", "2"], "--keep accepts shares of weights above 0"),
        ("classes", "texts.txt", None, ["--keep", "0.5", "--speedup", "2"], "--keep cannot be used with --speedup"),
        ("classes", "texts.txt", None, ["--max_length", "99"], "--max_length 99 is more than the 32 positions"),
        ("classes", "texts.txt", None, ["--pooling", "cls"], "--pooling is for models without a head"),
        ("classes", "texts.txt", {"is_decoder": True}, [], "is a decoder"),
        ("classes", "texts.txt", {"architectures": ["BertForMaskedLM"]}, [], "is a language model"),
        ("classes", "texts.txt", {"model_type": "gpt2"}, [], "is a decoder"),
        ("classes", "texts.txt", {"model_type": "t5", "is_encoder_decoder": True}, [], "is an encoder-decoder"),
        ("tokens", "texts.txt", without_head, [], "has no trained weights for its BertForTokenClassification"),
    ],
)
def test_mistakes_are_one_line(kind, texts, change, flags, message, tmp_path, capsys):
    folder = write(tmp_path, kind)
    if callable(change):
        change(folder)
    elif change:
        with_config(folder, **change)
    with pytest.raises(SystemExit) as ended:
        main(["--model_name_or_path", str(folder / "model"), "--texts", str(folder / texts), *flags])
    assert ended.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if " INFO " not in line and "WARN" not in line]
    assert len(lines) == 1
    assert re.search(message, lines[0]), lines


def test_an_adapter(tmp_path, capsys):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "texts.txt").write_text("\n".join(sentences()))
    with pytest.raises(SystemExit):
        main(["--model_name_or_path", str(tmp_path / "adapter"), "--texts", str(tmp_path / "texts.txt")])
    assert "merge it with its model first" in capsys.readouterr().err


def test_fewer_tokens(tmp_path, capsys):
    """The folder has the new tokenizer; the table says the share of the embeddings in each file."""
    tokenizer = tiny_vocabulary.tokenizer("bert")
    model = tiny_vocabulary.model("bert", tokenizer)
    torch.nn.init.ones_(model.classifier.bias)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "texts.txt").write_text("\n".join(tiny_vocabulary.texts()))
    flags = ["--model_name_or_path", str(tmp_path / "model"), "--texts", str(tmp_path / "texts.txt"), "--no-engines"]
    flags += ["--output", str(tmp_path / "small"), "--keep", "0.5"]
    main([*flags, "--vocabulary", "150", "--updates", "2", "--onnx"])
    shown = capsys.readouterr().out
    small = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "small")
    read = transformers.AutoTokenizer.from_pretrained(tmp_path / "small")
    assert len(read) == small.config.vocab_size == 150
    weights = sum(each.numel() for each in small.parameters())
    assert f"{4e-6 * weights:.1f} ({100 * 150 * 16 / weights:.0f} %)" in shown
    assert "hardly use" not in shown
    batch = read(tiny_vocabulary.texts(2), padding=True, return_tensors="pt")
    onnx = load_session(tmp_path / "small-onnx")(**batch).logits
    with torch.no_grad():
        torch.testing.assert_close(onnx, small.eval()(**batch).logits, atol=1e-4, rtol=1e-4)
    with pytest.raises(SystemExit) as stopped:
        main([*flags, "--vocabulary", "few"])
    assert stopped.value.code == 2
    assert "--vocabulary accepts auto or a number of tokens that stay, not 'few'" in capsys.readouterr().err
