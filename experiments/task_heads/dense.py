"""Train a dense model for a trial of task heads, by a plain loop.

python -m experiments.task_heads.dense --task wnut17 --model_name_or_path MINILM --output outputs/heads/wnut17-0
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    get_linear_schedule_with_warmup,
)

from emmental.data.padding import pad_lists
from experiments.task_heads.datasets import BATCH, LENGTH, READERS, Dataset, encoded_words, metrics, padded

logger = logging.getLogger("dense")

RATE = 2e-4
UPDATES = {"wnut17": 300, "trecqa": 450, "goemotions": 1350}


def build(task: str, name: str, folder: Path, data: Dataset) -> Any:
    """A model with a new head."""
    if task == "wnut17":
        tags = sorted({tag for row in data.labels for tag in row})
        names = {"id2label": dict(enumerate(tags)), "label2id": {tag: number for number, tag in enumerate(tags)}}
        return AutoModelForTokenClassification.from_pretrained(name, **names)
    if task == "trecqa":
        return AutoModelForSequenceClassification.from_pretrained(name, num_labels=1)
    emotions = (folder / "goemotions" / "emotions.txt").read_text(encoding="utf-8").split()
    names = {"id2label": dict(enumerate(emotions)), "label2id": {name: number for number, name in enumerate(emotions)}}
    return AutoModelForSequenceClassification.from_pretrained(name, problem_type="multi_label_classification", **names)


def batches(task: str, model: Any, tokenizer: Any, data: Dataset, seed: int) -> Iterator[dict[str, Tensor]]:
    """Batches with labels, without end."""
    if task == "wnut17":
        tags = [model.config.id2label[number] for number in range(model.config.num_labels)]
        encodings, labels = encoded_words(tokenizer, data, tags)
    else:
        texts = [(text,) if isinstance(text, str) else text for text in data.texts]
        encodings = [dict(tokenizer(*text, truncation=True, max_length=LENGTH)) for text in texts]
        labels = data.labels
    generator = np.random.default_rng(seed)
    while True:
        order = generator.permutation(len(encodings))
        for begin in range(0, len(order) - BATCH + 1, BATCH):
            rows = order[begin : begin + BATCH].tolist()
            batch = padded(tokenizer, [encodings[row] for row in rows])
            chosen = [labels[row] for row in rows]
            if task == "wnut17":
                batch["labels"] = pad_lists(chosen, -100)
            elif task == "trecqa":
                batch["labels"] = torch.tensor(chosen)
            else:
                batch["labels"] = torch.zeros(BATCH, model.config.num_labels)
                for place, ids in enumerate(chosen):
                    batch["labels"][place, ids] = 1.0
            yield batch


def loss_of(task: str, model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The task's loss; a ranking learns right and wrong by the logistic loss."""
    if task != "trecqa":
        return model(**batch).loss
    labels = batch.pop("labels")
    return torch.nn.functional.binary_cross_entropy_with_logits(model(**batch).logits[:, 0], labels)


def main() -> None:
    """Train, print the metrics on the dev and test split, and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=[*UPDATES], required=True)
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--data_dir", type=Path, default=Path("../shared/data/heads"))
    parser.add_argument("--output", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--updates", type=int)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    torch.manual_seed(args.seed)
    train = READERS[args.task](args.data_dir, "train")
    tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path)
    model = build(args.task, args.model_name_or_path, args.data_dir, train).train()
    updates = args.updates or UPDATES[args.task]
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.01)
    schedule = get_linear_schedule_with_warmup(optimizer, updates // 10, updates)
    stream = batches(args.task, model, tokenizer, train, args.seed)
    for update in range(1, updates + 1):
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(args.task, model, next(stream))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if update % 50 == 0:
            logger.info("update %d of %d: loss %.4f", update, updates, loss.item())
    model.eval().save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    for split in ("dev", "test"):
        logger.info("%s: %s", split, metrics(args.task, model, tokenizer, READERS[args.task](args.data_dir, split)))


if __name__ == "__main__":
    main()
