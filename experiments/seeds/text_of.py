"""A task's training sentences without their labels, as they are or with words replaced.

python -m experiments.seeds.text_of glue/RTE rte rte.csv
python -m experiments.seeds.text_of glue/MRPC mrpc replaced.csv --copies 3 --model MINILM

Words are replaced by neighbours of their embeddings, as TinyBERT did (Jiao et al. 2020, arXiv 1909.10351).
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from emmental import atomic
from emmental.tasks import read_split, resolve_task

NEIGHBOURS, SHARE = 15, 0.3
"""Nearest words that a word may become; words of a sentence that change."""


def main() -> None:
    """Write the sentences of the training rows as CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("task")
    parser.add_argument("file", type=Path)
    parser.add_argument(
        "--copies", type=int, default=0, help="copies of every row, each with other words replaced; 0: the row itself"
    )
    parser.add_argument("--model", help="folder of a pretrained encoder; its embeddings find similar words")
    args = parser.parse_args()
    split = read_split(resolve_task(args.task), args.data_dir, "train")
    columns = {"sentence1": split.texts_a} | ({"sentence2": split.texts_b} if split.texts_b else {})
    rows = list(zip(*columns.values(), strict=True))
    if args.copies:
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        nearest = neighbours(AutoModel.from_pretrained(args.model).get_input_embeddings().weight.detach(), tokenizer)
        rng = np.random.default_rng(0)
        rows = [[replaced(text, tokenizer, nearest, rng) for text in row] for row in rows for _ in range(args.copies)]
    with atomic.atomic_file(args.file) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def neighbours(embeddings: torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> dict[int, list[int]]:
    """Whole word -> the whole words nearest to it by cosine, as token ids; `embeddings` is (V, H)."""
    words = [number for word, number in tokenizer.get_vocab().items() if word.isalpha()]
    unit = torch.nn.functional.normalize(embeddings[words], dim=1)
    found = {}
    for some in torch.arange(len(words)).split(1024):
        nearest = (unit[some] @ unit.T).topk(min(NEIGHBOURS + 1, len(words)), dim=1).indices[:, 1:]
        found |= {words[i]: [words[k] for k in row] for i, row in zip(some.tolist(), nearest.tolist(), strict=True)}
    return found


def replaced(
    text: str, tokenizer: PreTrainedTokenizerBase, nearest: dict[int, list[int]], rng: np.random.Generator
) -> str:
    """The text with about `SHARE` of its whole words replaced."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    changed = [rng.choice(nearest[i]) if i in nearest and rng.random() < SHARE else i for i in ids]
    return tokenizer.decode(changed)


if __name__ == "__main__":
    main()
