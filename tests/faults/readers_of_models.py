"""What is fed to the readers of a model's folder: weights, records, and the variables of launchers."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from faults.reader import Reader, written
from safetensors.numpy import load_file, save
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from emmental.pretrained import from_pretrained
from emmental.runs import processes
from emmental.tasks.set_aside import SET_ASIDE, choose, recorded_rows, row_places, trained_rows


def rows_set_aside(folder: Path) -> Reader:
    """The record of the rows that a model was trained on, of this version and of an older one."""
    place, places = folder / "recorded", row_places([f"text {number}" for number in range(100)])
    place.mkdir()
    own = json.dumps({SET_ASIDE: trained_rows(places, 0.3).record()})
    older = json.dumps({"train_file": "t.csv", "validation_file": None, "do_eval": True, "seed": 7})

    def read(path: Path) -> None:
        path.with_name("training_args.json").write_bytes(path.read_bytes())
        record, _ = choose(places, recorded_rows(place), "--model_name_or_path model")
        assert record.seed is not None or 0 <= record.limit < 1

    return Reader("record of rows set aside", [own.encode(), older.encode()], written(place / "config.json", read), 5)


def weights(folder: Path) -> Reader:
    """Weights whose names begin with those of a wrapper, that are not finite, partly missing, or of more layers."""
    place = folder / "weights"
    BertForSequenceClassification(BertConfig(**tiny_shape())).save_pretrained(place)
    sound = load_file(place / "model.safetensors")
    wrapped = {f"module.{name}": value for name, value in sound.items()}
    broken = {name: np.full_like(value, np.nan) for name, value in sound.items()}
    deeper = {name.replace("layer.0.", "layer.1."): value for name, value in sound.items()} | sound
    every = (sound, wrapped, broken, deeper, dict(list(sound.items())[9:]))
    samples = [save(tensors, {"format": "pt"}) for tensors in every]

    def read(path: Path) -> None:
        model = from_pretrained(AutoModelForSequenceClassification, str(path.parent))
        assert all(torch.isfinite(value).all() for value in model.state_dict().values())

    return Reader("weights of a model", samples, written(place / "model.safetensors", read), 1)


def variables() -> Reader:
    """Variables of the environment that a launcher has left."""
    sound = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    samples = ["\n".join(f"{name}={value}" for name, value in list(sound.items())[:count]) for count in (1, 3, 5)]

    def read(content: bytes) -> None:
        lines = (line.partition("=") for line in content.decode("utf-8", errors="replace").split("\n"))
        with mock.patch.object(processes.os, "environ", {name: value for name, _, value in lines}):
            rank, _, size = processes._place_in_group()
        assert 0 <= rank < size

    return Reader("variables of a launcher", [sample.encode() for sample in samples], read, 5)


def tiny_shape() -> dict[str, int]:
    """Of a BERT that takes no time to make."""
    return {"vocab_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2} | {
        "intermediate_size": 32,
        "max_position_embeddings": 16,
    }
