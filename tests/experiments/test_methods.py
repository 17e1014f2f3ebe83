"""Comparing methods: a stack computes what its models do; surgery and refit are the least squares they claim."""

from __future__ import annotations

import json
import sys

import pytest
import tiny
import torch
from transformers import AutoModelForSequenceClassification

from experiments.methods import compare
from experiments.methods.pruning import masked_least_squares, share_at
from experiments.methods.rankings import METHODS, BrainSurgeon, Magnitude
from experiments.methods.stack import Batch, Stack


def test_a_stack_gives_the_logits_of_its_models(tmp_path):
    folders = [tiny.save_bert(tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    models = [AutoModelForSequenceClassification.from_pretrained(folder).eval() for folder in folders]
    for other in models[1:]:  # the models of a stack share their embeddings
        other.bert.embeddings.load_state_dict(models[0].bert.embeddings.state_dict())
    stack = Stack(models, [0, 0], torch.device("cpu"))
    ids, mask = torch.tensor([[[2, 5, 9, 3], [2, 7, 3, 0]]]), torch.tensor([[[1, 1, 1, 1], [1, 1, 1, 0]]])
    found = stack.logits(Batch(ids, torch.zeros_like(ids), mask), stack.weights)
    for logits, model in zip(found, models, strict=True):
        torch.testing.assert_close(logits, model(ids[0], attention_mask=mask[0]).logits, atol=1e-5, rtol=0)


def test_refit_is_the_least_squares_of_every_row():
    torch.manual_seed(0)
    x, dense, mask = torch.randn(200, 12), torch.randn(3, 12), (torch.rand(3, 12) < 0.5).float()
    found = masked_least_squares(x, x @ dense.T, dense * mask, mask)
    gram = x.T @ x
    ridge = 0.01 * gram.diagonal().mean()
    for row in range(3):
        kept = mask[row].bool()
        system = gram[kept][:, kept] + ridge * torch.eye(int(kept.sum()))
        wanted = torch.linalg.solve(system, (gram @ dense[row] + ridge * dense[row])[kept])
        torch.testing.assert_close(found[row][kept], wanted, atol=1e-4, rtol=0)
        assert not found[row][~kept].any()


def test_surgery_moves_what_stays_to_the_best_place():
    torch.manual_seed(0)
    gradients, before = torch.randn(500, 50) * torch.linspace(0.5, 2, 50), torch.randn(50)
    weights, mask = before.clone(), torch.ones(50)
    BrainSurgeon(weights[None], [50]).prune(weights, mask, 0.5, [gradients[:300], gradients[300:]])
    kept = mask.bool()
    fisher = gradients.T @ gradients / 500
    moved = torch.linalg.solve(fisher[kept][:, kept], fisher[kept][:, ~kept] @ before[~kept])
    assert (kept.sum(), weights[~kept].abs().max()) == (25, 0)
    torch.testing.assert_close(weights[kept] - before[kept], moved, atol=1e-3, rtol=0)


def test_each_matrix_keeps_its_share():
    weights, mask = torch.tensor([[1.0, 2.0, 3.0, 4.0, 50.0, 60.0]]), torch.ones(1, 6)
    Magnitude(weights, [4, 2]).mask(weights, mask, [0.5])
    assert mask.tolist() == [[0, 0, 1, 1, 0, 1]]


@pytest.mark.parametrize(("progress", "share"), [(0.1, 1.0), (0.4, 0.2 + 0.8 / 8), (0.7, 0.2), (1.0, 0.2)])
def test_the_share_falls_on_a_cubic_way(progress, share):
    assert share_at(progress, 0.2) == pytest.approx(share)


def test_all_methods_end_at_the_share(tmp_path, monkeypatch, capsys):
    folder, data = tiny.save_bert(tmp_path / "model"), tiny.write_task(tmp_path / "data", "sst-2", train=60)
    result = tmp_path / "result.json"
    flags = ["--model", folder, "--data_dir", data, "--task_name", "sst-2", "--into", result, "--keep", 0.3]
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, flags), "--updates", "30", "--seeds", "1"])
    compare.main()
    found = json.loads(result.read_text())
    assert set(found["pruned"]) == set(METHODS)
    for method, rows in found["pruned"].items():
        layers = rows["0.3"]["layers"][0]
        assert sum(layers) / len(layers) == pytest.approx(0.3, abs=0.01), method
    assert capsys.readouterr().out.startswith("| | 30 %, dev |")
