"""Damaged files are noticed, named, and not used."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from faults import damage
from faults.kills import Uninterrupted
from faults.runs import World

from emmental.atomic import DamagedError, verify_folder

KINDS = ["truncated", "deleted", "one bit flipped", "another run's"]


@pytest.mark.parametrize("kind", ["deleted", "another run's"])
def test_files_of_checkpoints(world: World, known: Uninterrupted, kind: str, tmp_path: Path) -> None:
    command = world.trainer("movement")
    another = damage.reseeded(world.trainer("movement", "--seed", "7"))
    tally = damage.checkpoints([(command, another)], known, tmp_path / "copy", [kind], seed=1)
    assert tally.lost == []
    # Configuration and tokenizer are the same in both runs; weights, three states and the manifest differ.
    assert tally.survived == (5 if kind == "another run's" else 8)


def test_files_of_a_distillers_checkpoints(world: World, known: Uninterrupted, tmp_path: Path) -> None:
    command = world.distiller("distilbert")
    another = damage.reseeded(world.distiller("distilbert", "--seed", "7"))
    tally = damage.checkpoints([(command, another)], known, tmp_path / "copy", ["one bit flipped"], seed=1)
    assert tally.lost == []
    assert tally.survived == 8


def test_files_of_caches(world: World, known: Uninterrupted, tmp_path: Path) -> None:
    another = world.trainer("movement")
    tally = damage.caches(world.trainer("taught"), another, known, tmp_path / "copy", ["one bit flipped", "deleted"])
    assert tally.lost == []
    assert tally.survived == 12  # train and dev features, and logits, each with its manifest


def test_files_of_corpora(world: World, tmp_path: Path) -> None:
    command, another = world.distiller("distilbert"), world.distiller("gpt2")
    tally = damage.corpora(command, another, tmp_path / "copy", KINDS)
    assert tally.lost == []
    assert tally.survived >= 18


def test_files_of_exports(world: World, known: Uninterrupted, tmp_path: Path) -> None:
    models = [known.of(world.trainer(case))[0] for case in ("movement", "global_topk")]
    tally = damage.exports(*models, tmp_path, KINDS, flips=20)
    assert tally.lost == []
    assert tally.survived >= 40


def test_files_of_onnx_folders(world: World, known: Uninterrupted, tmp_path: Path) -> None:
    models = [known.of(world.trainer(case))[0] for case in ("movement", "global_topk")]
    tally = damage.onnx_folders(*models, tmp_path, KINDS)
    assert tally.lost == []
    assert tally.survived >= 36  # six files harmed in three ways, two models to load


def test_files_of_students_that_start_from_their_teacher(world: World, tmp_path: Path) -> None:
    tally = damage.students(world.distiller("distilbert"), tmp_path, KINDS)
    assert tally.lost == []
    assert tally.survived >= 15  # five files harmed in three ways


def test_every_harm_is_a_harm(world: World, known: Uninterrupted, tmp_path: Path) -> None:
    """The harness itself: each harm changes the folder so that its checksums do not hold."""
    import random

    whole = known.of(world.trainer("movement"))[0]
    for kind, harm in damage.HARMS.items():
        copy = tmp_path / kind
        shutil.copytree(whole / "checkpoint-16", copy)
        verify_folder(copy)
        harm(copy / "model.safetensors", whole / "checkpoint-12" / "model.safetensors", random.Random(0))
        with pytest.raises(DamagedError, match=r"model\.safetensors"):
            verify_folder(copy)
