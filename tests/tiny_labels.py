"""Texts with several labels at once, in the three forms that own files have."""

from __future__ import annotations

import json
import random
from pathlib import Path

import tiny

LABELS = ("cold", "hot", "wet")
MARKS = (tiny.WORDS[:8], tiny.WORDS[8:16], tiny.WORDS[16:24])
"""Two words of these make a label hold."""


def rows(count: int, seed: int) -> list[tuple[str, list[str]]]:
    """Texts with their labels: each label holds in two of five rows; one row in five has none."""
    generator, found = random.Random(seed), []
    for _ in range(count):
        held = [index for index in range(3) if generator.random() < 0.4]
        words = generator.choices(tiny.WORDS[24:], k=2)
        words += [word for index in held for word in generator.choices(MARKS[index], k=2)]
        generator.shuffle(words)
        found.append((" ".join(words), [LABELS[index] for index in held]))
    return found


def as_lists(path: Path, found: list[tuple[str, list[str]]]) -> Path:
    """JSON lines with a list a row."""
    path.write_text("".join(json.dumps({"sentence1": text, "label": labels}) + "\n" for text, labels in found))
    return path


def as_cells(path: Path, found: list[tuple[str, list[str]]]) -> Path:
    """CSV with bars between the labels."""
    path.write_text("sentence1,label\n" + "".join(f"{text},{'|'.join(labels)}\n" for text, labels in found))
    return path


def as_columns(path: Path, found: list[tuple[str, list[str]]]) -> Path:
    """CSV with a column of 0 and 1 for each label."""
    lines = [",".join(("sentence1", *LABELS))]
    lines += [",".join((text, *(str(int(label in labels)) for label in LABELS))) for text, labels in found]
    path.write_text("\n".join(lines) + "\n")
    return path


FORMS = {
    "lists": (".jsonl", as_lists, []),
    "cells": (".csv", as_cells, ["--label_separator", "|"]),
    "columns": (".csv", as_columns, ["--label_column", *LABELS]),
}
"""Form -> suffix, writer, flags."""


def files(folder: Path, form: str = "lists", train: int = 96, dev: int = 40) -> list[str]:
    """Write training and dev data. Returns the flags that read them."""
    suffix, write, flags = FORMS[form]
    folder.mkdir(parents=True, exist_ok=True)
    made = [write(folder / f"{name}{suffix}", rows(size, size)) for name, size in (("train", train), ("dev", dev))]
    return ["--train_file", str(made[0]), "--validation_file", str(made[1]), *flags]
