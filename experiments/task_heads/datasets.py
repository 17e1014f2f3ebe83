"""Data for trials of task heads: entities, rankings, several labels, embeddings; and the metric of each."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from emmental.data.padding import pad_lists
from emmental.task_heads import mean_of_tokens
from emmental.tasks.entities import shared_entities
from emmental.tasks.metrics import mean_average_precision

LENGTH, BATCH = 128, 32


@dataclass(frozen=True)
class Dataset:
    """Inputs of one split, and their labels.

    Attributes:
        texts: strings or pairs; of entities the words with spaces between.
        labels: tags of words, ids of labels, 0 or 1, or scores.
        groups: number of the question of each pair.
        words: of entities: the words of each sentence.
    """

    texts: list[Any]
    labels: list[Any]
    groups: np.ndarray | None = None
    words: list[list[str]] | None = None


def read_wnut17(folder: Path, split: str) -> Dataset:
    """Sentences with tags of words, from CoNLL."""
    sentences: list[list[list[str]]] = [[]]
    for line in (folder / "wnut17" / f"{split}.conll").read_text(encoding="utf-8").splitlines():
        cells = line.split("\t")
        if line.strip() and len(cells) >= 2:
            sentences[-1].append([cells[0].strip() or ".", cells[-1].strip()])
        elif sentences[-1]:
            sentences.append([])
    kept = [sentence for sentence in sentences if sentence]
    words = [[word for word, _ in sentence] for sentence in kept]
    return Dataset([" ".join(each) for each in words], [[tag for _, tag in each] for each in kept], words=words)


def read_trecqa(folder: Path, split: str) -> Dataset:
    """Pairs of question and sentence, 1 if it answers."""
    lines = (folder / "trecqa" / f"{split}.tsv").read_text(encoding="utf-8").splitlines()[1:]
    rows = [line.split("\t") for line in lines if line.strip()]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(row[0] for row in rows))}
    groups = np.array([numbers[row[0]] for row in rows])
    return Dataset([(row[1], row[2]) for row in rows], [float(row[3]) for row in rows], groups)


def read_goemotions(folder: Path, split: str) -> Dataset:
    """Comments with the numbers of their emotions."""
    lines = (folder / "goemotions" / f"{split}.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if line.strip()]
    return Dataset([row[0] for row in rows], [[int(one) for one in row[1].split(",")] for row in rows])


def read_stsb(folder: Path, split: str) -> Dataset:
    """Pairs of sentences with a score from 0 to 5."""
    with open(folder / "STS-B" / f"{split}.tsv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
    return Dataset([(row[7], row[8]) for row in rows], [float(row[9]) for row in rows])


READERS = {"wnut17": read_wnut17, "trecqa": read_trecqa, "goemotions": read_goemotions, "stsb": read_stsb}


def encoded_words(
    tokenizer: PreTrainedTokenizerBase, data: Dataset, tags: Sequence[str]
) -> tuple[list[dict[str, list[int]]], list[list[int]]]:
    """Encodings, and the label of each token: that of a word on its first piece, -100 elsewhere."""
    encodings, labels = [], []
    for words, named in zip(data.words or (), data.labels, strict=True):
        encoding = tokenizer(words, is_split_into_words=True, truncation=True, max_length=LENGTH)
        places = encoding.word_ids()
        first = [place is not None and place not in places[:number] for number, place in enumerate(places)]
        labels.append([tags.index(named[place]) if new else -100 for place, new in zip(places, first, strict=True)])
        encodings.append(dict(encoding))
    return encodings, labels


def padded(tokenizer: PreTrainedTokenizerBase, encodings: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
    """One batch."""
    pads = {"input_ids": tokenizer.pad_token_id}
    return {name: pad_lists([each[name] for each in encodings], pads.get(name, 0)) for name in encodings[0]}


@torch.inference_mode()
def outputs_of(model: nn.Module, tokenizer: PreTrainedTokenizerBase, encodings: Sequence[Any]) -> list[Any]:
    """(outputs, batch) for each batch, in order."""
    model.eval()
    found = []
    for begin in range(0, len(encodings), BATCH):
        batch = padded(tokenizer, encodings[begin : begin + BATCH])
        found.append((model(**batch), batch))
    return found


def metrics(task: str, model: nn.Module, tokenizer: PreTrainedTokenizerBase, data: Dataset) -> dict[str, float]:
    """Name -> value of a task's metrics on a split."""
    if task == "wnut17":
        tags = [model.config.id2label[number] for number in range(model.config.num_labels)]
        encodings, labels = encoded_words(tokenizer, data, tags)
        rows = [
            row for found, _ in outputs_of(model, tokenizer, encodings) for row in found.logits.argmax(-1).tolist()
        ]
        pairs = [
            (named, [tags[one] for one, label in zip(row, of_text, strict=False) if label != -100])
            for row, of_text, named in zip(rows, labels, data.labels, strict=True)
        ]
        return {"span F1": shared_entities(pairs)}
    if task == "stsb":
        sides = []
        for side in (0, 1):
            encodings = [dict(tokenizer(pair[side], truncation=True, max_length=LENGTH)) for pair in data.texts]
            found = outputs_of(model, tokenizer, encodings)
            sides.append(torch.cat([mean_of_tokens(o.last_hidden_state, b["attention_mask"]) for o, b in found]))
        cosines = torch.cosine_similarity(*sides)
        return {"Spearman": float(spearmanr(cosines.numpy(), data.labels).statistic)}
    texts = [(text,) if isinstance(text, str) else text for text in data.texts]
    encodings = [dict(tokenizer(*text, truncation=True, max_length=LENGTH)) for text in texts]
    logits = torch.cat([found.logits for found, _ in outputs_of(model, tokenizer, encodings)]).float()
    if task == "trecqa":
        scores, right = logits[:, 0].numpy(), np.array(data.labels)
        members = [np.flatnonzero(data.groups == number) for number in np.unique(data.groups)]
        found = mean_average_precision([right[rows[np.argsort(-scores[rows], kind="stable")]] for rows in members])
        return dict(zip(("MAP", "MRR"), found, strict=True))
    wanted = torch.zeros_like(logits, dtype=torch.bool)
    for row, ids in enumerate(data.labels):
        wanted[row, ids] = True
    given = logits > 0
    return {"micro F1": float(2 * (given & wanted).sum() / (given.sum() + wanted.sum()))}
