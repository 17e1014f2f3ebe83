"""A changed command in the folder of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from faults import changes
from faults.kills import Uninterrupted
from faults.runs import World, evidence, last_lines
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from emmental.language_models.corpus import binarize, sequence_rules


def test_the_trainer(world: World, known: Uninterrupted, tmp_path: Path) -> None:
    names = ("another task", "other data", "another tokenizer", "another method", "another precision", "more epochs")
    chosen = {name: changes.TRAINER_CHANGES[name] for name in names}
    tally = changes.try_all(world.trainer("movement"), chosen, world, known, tmp_path)
    assert tally.lost == []
    assert tally.survived == len(names) + 1  # more epochs are accepted too


def test_the_distiller(world: World, known: Uninterrupted, tmp_path: Path) -> None:
    tally = changes.try_all(world.distiller("distilbert"), changes.DISTILLER_CHANGES, world, known, tmp_path)
    assert tally.lost == []
    assert tally.survived == len(changes.DISTILLER_CHANGES) + 1


@pytest.mark.parametrize("taught", ["trainer", "distiller"])
def test_another_teacher_under_the_same_name_is_refused(taught: str, tmp_path: Path) -> None:
    world, output = World(tmp_path / "world"), tmp_path / "out"
    command = world.trainer("taught") if taught == "trainer" else world.distiller("distilbert")
    teacher = tmp_path / "world" / ("teacher" if taught == "trainer" else "distilbert/teacher")
    assert command.finish(output) is None
    weights = load_file(teacher / "model.safetensors")
    weights["bert.embeddings.LayerNorm.weight"] *= 1.5
    save_file(weights, teacher / "model.safetensors", metadata={"format": "pt"})
    before = evidence(output)
    assert command.run(output) == 2
    assert "holds another run" in last_lines(output)
    assert "teacher_weights '" in last_lines(output)
    assert evidence(output) == before


def test_other_token_counts_under_the_same_name_are_refused(tmp_path: Path) -> None:
    world, output = World(tmp_path / "world"), tmp_path / "out"
    command, text = world.distiller("distilbert"), tmp_path / "world" / "distilbert" / "text.txt"
    counts = ("--token_counts", str(tmp_path / "counts"))

    def count(tokenizer: PreTrainedTokenizerBase) -> None:
        binarize(text, tokenizer, tmp_path / "counts", sequence_rules(tokenizer, 3), show_progress=False)

    count(tiny.tokenizer())
    assert command.finish(output, counts) is None
    text.write_text("kasa kate kasa kate kasa\n", encoding="utf-8")
    count(tiny.tokenizer())
    assert command.run(output, others=counts) == 2
    assert "counted '" in last_lines(output)
    other = tiny.tokenizer()
    other.add_tokens(["word"])
    count(other)
    assert command.run(tmp_path / "new", others=counts) == 2
    assert "--token_counts" in last_lines(tmp_path / "new")
    assert not (tmp_path / "new").exists()
