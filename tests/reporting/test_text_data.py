"""A report on texts: any task head, by agreement with the dense model, or by labels."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import tiny
import tiny_models
import torch

from emmental.inference.engines import ONNX, TORCH
from emmental.reporting.command import main
from emmental.reporting.text_data import kept
from emmental.shrinking import shrink
from emmental.task_heads import Figure

FAST = ("--seconds", "0.001", "--threads", "1", "--batch_sizes", "1", "--lengths", "8")
NAMES = {
    "classes": "answers that stay",
    "several labels": "texts with the same labels",
    "scores": "Kendall's tau",
    "tokens": "tokens that stay",
    "spans": "answers that stay",
    "embeddings": "nearest neighbours that stay",
}


def texts(count: int = 80) -> list[str]:
    generator = random.Random(0)
    return [" ".join(generator.choices(tiny.WORDS, k=generator.randint(3, 9))) for _ in range(count)]


def saved(kind: str, folder: Path, small: bool = False) -> torch.nn.Module:
    """Save a model of a head, or a small one with a head and half of the neurons in each layer, with its tokenizer."""
    model = tiny_models.with_head(kind)
    if small:
        model = shrink(model, [([0], range(16))] * 2)
    model.save_pretrained(folder)
    tiny_models.tokenizer("bert").save_pretrained(folder)
    return model.eval()


def report(folder: Path, *flags: str) -> dict:
    command = ["--model_name_or_path", str(folder / "model"), "--output", str(folder / "report.html"), *flags]
    main([*command, "--results", str(folder / "results.json"), *FAST])
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("kind", NAMES)
def test_agreement_with_the_dense_model(kind: str, tmp_path: Path) -> None:
    """The dense form agrees with itself; PyTorch and ONNX Runtime of the small one disagree with it alike."""
    saved(kind, tmp_path / "dense")
    saved(kind, tmp_path / "model", small=True)
    pairs = [{"sentence1": one, "sentence2": other} for one, other in zip(texts(), texts()[1:], strict=False)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (tmp_path / "t.txt").write_text("\n".join(texts()) + "\n")
    file = tmp_path / ("t.jsonl" if kind == "spans" else "t.txt")
    results = report(tmp_path, "--texts", str(file), "--dense", str(tmp_path / "dense"))
    rows = {row["name"]: row["metrics"] for row in results["quality"]}
    assert results["primary_metric"] == NAMES[kind]
    assert rows["dense"] == {NAMES[kind]: 1.0}
    assert rows[TORCH][NAMES[kind]] < 1
    assert rows[ONNX] == pytest.approx(rows[TORCH], abs=1e-6)
    page = (tmp_path / "report.html").read_text()
    assert "answers to texts" in page
    assert tiny_models.HEADS[kind][0] in page or "onnxruntime" in page or "openvino" in page


def test_labels_give_the_metric(tmp_path: Path) -> None:
    """Labels as a model of its own answers them, one in two emptied: micro F1 by hand."""
    model, tokenizer, rows = saved("several labels", tmp_path / "model"), tiny_models.tokenizer("bert"), []
    names = [model.config.id2label[index] for index in range(3)]
    for number, text in enumerate(texts()):
        with torch.no_grad():
            given = (model(**tokenizer(text, return_tensors="pt")).logits[0] > 0).tolist()
        rows.append((text, [name for name, has in zip(names, given, strict=True) if has and number % 2]))
    lines = [json.dumps({"sentence1": text, "label": labels}) + "\n" for text, labels in rows]
    (tmp_path / "t.jsonl").write_text("".join(lines))
    results = report(tmp_path, "--texts", str(tmp_path / "t.jsonl"), "--label_column", "label")
    first = results["quality"][0]
    assert list(first["metrics"]) == ["micro F1", "texts with the same labels"]
    assert first["metrics"]["texts with the same labels"] == 1.0
    assert 0.3 < first["metrics"]["micro F1"] < 1  # half of the answers are no labels
    assert results["judged_on"] == "answers to texts"
    assert "texts of t.jsonl; points are counted on the others" in results["int8"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--texts", "t.txt", "--validation_file", "d.csv"], "--texts is judged instead of --validation_file"),
        (["--texts", "t.csv", "--label_column", "a", "b"], "--texts takes several labels from one --label_column"),
        (["--validation_file", "d.csv"], "accepts a sequence classifier, or any model with --texts; "),
        (["--texts", "none.txt"], "--texts none.txt is not a file"),
    ],
)
def test_mistakes_in_one_line(flags: list[str], message: str, tmp_path: Path, capsys) -> None:
    saved("tokens", tmp_path / "model")
    with pytest.raises(SystemExit) as ended:
        report(tmp_path, *flags)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_more_is_better() -> None:
    assert kept(Figure("tokens that change", 0.25, True)) == Figure("tokens that stay", 0.75, True)
    assert kept(Figure("Kendall's tau", 0.5)) == Figure("Kendall's tau", 0.5)
