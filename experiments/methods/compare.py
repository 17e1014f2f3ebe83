"""Methods that prune single weights, at equal updates, over seeds, from the same dense models.

python -m experiments.methods.compare --model DIR --data_dir glue/SST-2 --task_name sst-2 --into sst-2.json

All models of a task train at once (`stack.py`), so a GPU needs a few minutes. Batches of 32, AdamW, the dense model as
teacher (0.9, temperature 2) beside the labels (0.1), dropout, bf16 products. The share that stays falls along a cubic
from a tenth to seven tenths of the updates; weights are ranked every 10 updates. Embeddings are not trained.
"""

from __future__ import annotations

import argparse
import logging
import statistics
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from sklearn.metrics import f1_score
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from emmental import atomic
from emmental.tasks import read_split, resolve_task
from emmental.tasks.task import Split
from experiments.methods.pruning import Plan, Pruning
from experiments.methods.rankings import METHODS
from experiments.methods.rows import Rows
from experiments.methods.stack import Stack

logger = logging.getLogger(__name__)
ROWS, POOL, TEMPERATURE, ALPHA, DENSE_RATE = 32, 20, 2.0, 0.9, 1e-4
HELD_OUT, MOST_ROWS, LENGTH = 1000, 20_000, 128


def main() -> None:
    """Train, prune, evaluate, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--model", required=True, help="folder of a pretrained BERT")
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--task_name", required=True)
    parser.add_argument("--into", type=Path, required=True, help="JSON file to write")
    parser.add_argument(
        "--updates", type=int, default=600, help="updates of the dense models, and again of the pruned ones"
    )
    parser.add_argument("--keep", type=float, nargs="+", default=[0.1, 0.03])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--learning_rate", type=float, default=2e-4)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    results = Comparison(args).run()
    atomic.write_json(args.into, results)
    print(table(results))


class Comparison:
    """One task's data, dense models and pruned ones."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Read the data and start a dense model for each seed."""
        self.args = args
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        task = resolve_task(args.task_name)
        train, dev = (read_split(task, args.data_dir, name) for name in ("train", "dev"))
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        order = np.random.default_rng(0).permutation(len(train.labels))[: MOST_ROWS + HELD_OUT]
        held_out = min(HELD_OUT, len(order) // 5)
        self.train = self._rows(train, tokenizer, order[held_out:])
        self.judged = {
            "held out": self._rows(train, tokenizer, order[:held_out]),
            "dev": self._rows(dev, tokenizer, np.arange(len(dev.labels))),
        }
        models = []
        for seed in range(args.seeds):
            torch.manual_seed(seed)
            load = AutoModelForSequenceClassification.from_pretrained
            models.append(load(args.model, num_labels=task.num_labels, dtype=torch.float32))
        self.dense = Stack(models, list(range(args.seeds)), self.device)

    def run(self) -> dict[str, Any]:
        """Results of the dense models and of every method, share and seed."""
        args, began = self.args, perf_counter()
        self._fit(self.dense, DENSE_RATE)
        logger.info("dense after %.0f s", perf_counter() - began)
        device = torch.cuda.get_device_name() if self.device.type == "cuda" else "CPU"
        results: dict[str, Any] = {"device": device, "updates": args.updates, "learning_rate": args.learning_rate}
        results |= {"dense": self._judge(self.dense), "pruned": {}}
        plans = [Plan(m, keep, seed) for m in args.methods for keep in args.keep for seed in range(args.seeds)]
        seeds = [plan.seed for plan in plans]
        stack = self.dense.taken(seeds, seeds)
        pruning = Pruning(stack, self.dense, plans, self.train, args.updates)
        self._fit(stack, args.learning_rate, self._answers(self.dense, self.train), pruning)
        judged = self._judge(stack, pruning.mask)
        for number, plan in enumerate(plans):
            row = results["pruned"].setdefault(plan.method, {}).setdefault(f"{plan.keep:g}", {})
            row.setdefault("layers", []).append(pruning.layers(number))
            for name, values in judged.items():
                row.setdefault(name, []).append(values[number])
        logger.info("pruned after %.0f s", perf_counter() - began)
        return results

    def _rows(self, split: Split, tokenizer: PreTrainedTokenizerBase, which: np.ndarray) -> Rows:
        first = [split.texts_a[i] for i in which]
        second = [split.texts_b[i] for i in which] if split.texts_b else None
        found = tokenizer(
            first,
            second,
            truncation=True,
            max_length=LENGTH,
            padding=True,
            return_token_type_ids=True,
            return_tensors="pt",
        )
        lengths = found["attention_mask"].sum(1).numpy()
        labels = torch.tensor([split.labels[i] for i in which])
        ids, types = (found[name].to(self.device) for name in ("input_ids", "token_type_ids"))
        return Rows(ids, types, lengths, labels.to(self.device))

    def _order(self, seed: int) -> list[np.ndarray]:
        """Rows of every update; those of a batch have similar lengths."""
        rng, count, rows = np.random.default_rng(seed), self.args.updates * ROWS, np.empty(0, dtype=np.int64)
        while len(rows) < count:
            rows = np.concatenate([rows, rng.permutation(len(self.train.lengths))])
        batches: list[np.ndarray] = []
        for start in range(0, count, POOL * ROWS):
            pool = rows[start : min(start + POOL * ROWS, count)]
            pool = pool[np.argsort(self.train.lengths[pool], kind="stable")]
            batches += rng.permutation(pool.reshape(-1, ROWS)).tolist()
        return batches

    def _fit(self, stack: Stack, rate: float, teacher: Tensor | None = None, pruning: Pruning | None = None) -> None:
        torch.manual_seed(1)
        updates = self.args.updates
        orders = np.array([self._order(seed) for seed in range(self.args.seeds)])  # (S, updates, B)
        parameters = stack.parameters()
        optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0, fused=True)
        for update in range(updates):
            part = min(1.0, (update + 1) / (0.1 * updates)) * (updates - update) / updates
            optimizer.param_groups[0]["lr"] = rate * part
            product = stack.weights.detach().clone()
            if pruning:
                pruning.renew(update)
                product = stack.weights.detach() * pruning.mask
            product.requires_grad_()
            with torch.autocast(self.device.type, torch.bfloat16):
                logits = stack.logits(self.train.batch(orders[:, update]), product, training=True)
            self._loss(stack, logits, orders[:, update], teacher).backward()
            stack.weights.grad = product.grad
            if pruning:
                pruning.observe(product.grad, part)
                stack.weights.grad = product.grad * pruning.mask
            _clip(parameters)
            optimizer.step()
            optimizer.zero_grad()

    def _loss(self, stack: Stack, logits: Tensor, rows: np.ndarray, teacher: Tensor | None) -> Tensor:
        """The mean loss of each model, summed over the models."""
        index = torch.as_tensor(rows, device=self.device)
        labels = self.train.labels[index][stack.seed_of]
        hard = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
        if teacher is None:
            return hard.mean(1).sum()
        wanted = teacher[torch.arange(len(index), device=self.device)[:, None], index][stack.seed_of]
        soft = F.kl_div(
            (logits / TEMPERATURE).log_softmax(-1), (wanted / TEMPERATURE).softmax(-1), reduction="none"
        ).sum(-1)
        return ((1 - ALPHA) * hard + ALPHA * TEMPERATURE**2 * soft).mean(1).sum()

    @torch.no_grad()
    def _answers(self, stack: Stack, rows: Rows, mask: Tensor | None = None) -> Tensor:
        """Logits (M, n, classes)."""
        order = np.argsort(rows.lengths, kind="stable")
        product = stack.weights if mask is None else stack.weights * mask
        found: list[Tensor] = []
        for start in range(0, len(order), 64):
            some = np.repeat(order[None, start : start + 64], self.args.seeds, axis=0)
            with torch.autocast(self.device.type, torch.bfloat16):
                found.append(stack.logits(rows.batch(some), product))
        return torch.cat(found, dim=1)[:, torch.as_tensor(np.argsort(order), device=self.device)]

    def _judge(self, stack: Stack, mask: Tensor | None = None) -> dict[str, list[dict[str, float]]]:
        """The metrics of each model on held-out and dev rows."""
        found = {}
        for name, rows in self.judged.items():
            labels = rows.labels.cpu().numpy()
            answers = self._answers(stack, rows, mask).argmax(-1).cpu().numpy()
            found[name] = [{"acc": float((each == labels).mean())} for each in answers]
            if labels.max() == 1:
                for metrics, each in zip(found[name], answers, strict=True):
                    metrics["f1"] = float(f1_score(labels, each))
        return found


def _clip(parameters: list[Tensor]) -> None:
    """Clip the gradients of every model to a norm of at most 1."""
    squares = sum(p.grad.flatten(1).square().sum(1) for p in parameters)
    factor = (1 / (squares.sqrt() + 1e-6)).clamp_(max=1.0)
    for p in parameters:
        p.grad *= factor.view(-1, *[1] * (p.dim() - 1))


def table(results: dict) -> str:
    """Markdown: mean accuracy of the seeds in %, and the standard error of the mean."""
    keeps = list(next(iter(results["pruned"].values())))
    names = ("dev", "held out")
    head = " | ".join(f"{100 * float(keep):g} %, {name}" for keep in keeps for name in names)
    lines = [f"| | {head} |", "|---" * (len(keeps) * len(names) + 1) + "|"]
    dense = " | ".join(_mean(results["dense"][name]) for _ in keeps for name in names)
    lines.append(f"| dense | {dense} |")
    for method, shares in results["pruned"].items():
        lines.append(f"| {method} | {' | '.join(_mean(shares[keep][name]) for keep in keeps for name in names)} |")
    return "\n".join(lines)


def _mean(rows: list[dict[str, float]]) -> str:
    values = [100 * row["acc"] for row in rows]
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1f} ({error:.1f})"


if __name__ == "__main__":
    main()
