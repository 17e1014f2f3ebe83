"""Teachers: checked against the student, asked once, remembered as long as nothing changes."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from emmental import MaskedBertConfig, MaskedBertForSequenceClassification
from emmental.errors import UserError
from emmental.patching import set_threshold
from emmental.pruning import remaining_weights
from emmental.tasks import Task, resolve_task
from emmental.teaching import teachers
from emmental.teaching.teachers import load_teacher, teacher_logits

TWO = resolve_task("mrpc")


@pytest.fixture
def masked_teacher(tmp_path: Path, bert_dir: Path) -> Path:
    torch.manual_seed(3)
    config = MaskedBertConfig.from_dense(AutoConfig.from_pretrained(bert_dir), mask_init="kaiming")
    model = MaskedBertForSequenceClassification.from_pretrained(bert_dir, config=config)
    set_threshold(model, 0.25)
    model.save_pretrained(tmp_path / "masked-teacher")
    tiny.tokenizer().save_pretrained(tmp_path / "masked-teacher")
    return tmp_path / "masked-teacher"


def renamed(folder: Path, target: Path, *names: str) -> Path:
    """A copy of a model whose classes have these names."""
    shutil.copytree(folder, target)
    config = AutoConfig.from_pretrained(folder)
    config.id2label, config.label2id = dict(enumerate(names)), {name: index for index, name in enumerate(names)}
    config.save_pretrained(target)
    return target


class TestLoading:
    def test_frozen_and_in_evaluation_mode(self, make_args, bert_dir):
        teacher = load_teacher(make_args(teacher_name_or_path=bert_dir), tiny.tokenizer(), TWO)
        assert isinstance(teacher, BertForSequenceClassification)
        assert not teacher.training
        assert not any(parameter.requires_grad for parameter in teacher.parameters())

    def test_a_masked_teacher_at_its_own_threshold(self, make_args, masked_teacher):
        args = make_args(teacher_name_or_path=masked_teacher, teacher_type="masked_bert")
        teacher = load_teacher(args, tiny.tokenizer(), TWO)
        assert isinstance(teacher, MaskedBertForSequenceClassification)
        assert remaining_weights(teacher) == 25.0

    def refused(self, args: argparse.Namespace, task: Task = TWO, tokenizer: object = None) -> str:
        with pytest.raises(ValueError, match=" ") as caught:
            load_teacher(args, tokenizer or tiny.tokenizer(), task)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_another_type_than_announced(self, make_args, bert_dir):
        args = make_args(teacher_name_or_path=bert_dir, teacher_type="masked_bert")
        assert self.refused(args).startswith("--teacher_type masked_bert, but ")

    def test_another_number_of_labels(self, make_args, bert_dir):
        message = self.refused(make_args(teacher_name_or_path=bert_dir), task=resolve_task("mnli"))
        assert "has 2 outputs, --task_name mnli needs 3: LABEL_0, LABEL_1 against contradiction" in message

    def test_other_classes(self, make_args, bert_dir, tmp_path):
        named = renamed(bert_dir, tmp_path / "named", "cat", "dog")
        message = self.refused(make_args(teacher_name_or_path=named))
        assert "has the classes cat, dog, --task_name mrpc has not_equivalent, equivalent" in message

    def test_not_fine_tuned(self, make_args, bert_dir, tmp_path):
        bare = BertForSequenceClassification.from_pretrained(bert_dir).bert
        bare.save_pretrained(tmp_path / "bare")
        tiny.tokenizer().save_pretrained(tmp_path / "bare")
        assert "is not fine-tuned: it lacks classifier.bias" in self.refused(
            make_args(teacher_name_or_path=tmp_path / "bare")
        )

    def test_missing(self, make_args, tmp_path):
        with pytest.raises(UserError, match="nowhere"):
            load_teacher(make_args(teacher_name_or_path=tmp_path / "nowhere"), tiny.tokenizer(), TWO)

    def test_a_tokenizer_with_another_word(self, make_args, bert_dir):
        tokenizer = tiny.tokenizer()
        tokenizer.add_tokens(["extraordinary"])
        message = self.refused(make_args(teacher_name_or_path=bert_dir), tokenizer=tokenizer)
        assert "another tokenizer than the student" in message
        assert "'extraordinary'" in message

    def test_a_tokenizer_with_the_words_in_another_order(self, make_args, bert_dir, tmp_path, monkeypatch):
        monkeypatch.setattr(tiny, "WORDS", tiny.WORDS[::-1])
        swapped = tiny.tokenizer()
        assert isinstance(swapped, PreTrainedTokenizerFast)
        assert "36 tokens differ" in self.refused(make_args(teacher_name_or_path=bert_dir), tokenizer=swapped)


class Asked:
    """Logits of a teacher through the cache, and how often it was really asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.times = 0
        self.folder = folder
        original = teachers.predict_logits

        def counted(*arguments: object, **options: object) -> torch.Tensor:
            self.times += 1
            return original(*arguments, **options)

        monkeypatch.setattr(teachers, "predict_logits", counted)

    def __call__(
        self, args: argparse.Namespace, teacher: torch.nn.Module, dataset: object, rows: np.ndarray | None = None
    ) -> torch.Tensor:
        return teacher_logits(args, teacher, dataset, args.processes, self.folder, rows)

    @property
    def cached(self) -> list[Path]:
        return sorted(self.folder.iterdir())


@pytest.fixture
def ask(monkeypatch, tmp_path) -> Asked:
    return Asked(monkeypatch, tmp_path / "teachers")


@pytest.fixture
def teacher_of(make_args) -> Callable[[Path], torch.nn.Module]:
    return lambda path, task=TWO: load_teacher(make_args(teacher_name_or_path=path), tiny.tokenizer(), task)


class TestLogits:
    def test_those_of_every_row_in_order(self, ask, make_args, make_features, teacher_of, bert_dir):
        teacher, dataset = teacher_of(bert_dir), make_features(split="train", train=11)
        logits = ask(make_args(), teacher, dataset)
        assert logits.shape == (11, 2)
        assert logits.dtype == torch.float32
        batch = dataset.batch([10])
        alone = teacher(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]).logits
        assert torch.allclose(logits[10], alone[0], atol=1e-5)

    def test_columns_in_the_order_of_the_task(self, ask, make_args, make_features, teacher_of, bert_dir, tmp_path):
        dataset = make_features(split="train", train=11)
        logits = ask(make_args(), teacher_of(bert_dir), dataset)
        turned = renamed(bert_dir, tmp_path / "turned", "POSITIVE", "negative")
        assert torch.equal(ask(make_args(), teacher_of(turned, resolve_task("sst-2")), dataset), logits.flip(1))

    def test_asked_once(self, ask, make_args, make_features, teacher_of, bert_dir):
        dataset = make_features()
        first = ask(make_args(), teacher_of(bert_dir), dataset)
        again = ask(make_args(), teacher_of(bert_dir), dataset)
        assert torch.equal(first, again)
        assert ask.times == 1
        assert len(ask.cached) == 1

    def test_some_rows(self, ask, make_args, make_features, teacher_of, bert_dir):
        teacher, dataset = teacher_of(bert_dir), make_features(split="train", train=11)
        every = ask(make_args(), teacher, dataset, np.arange(11))
        some = ask(make_args(), teacher, dataset, np.array([2, 7]))
        assert some.isnan().any(1).nonzero().flatten().tolist() == [0, 1, 3, 4, 5, 6, 8, 9, 10]
        assert torch.allclose(some[[2, 7]], every[[2, 7]], atol=1e-6)
        assert torch.equal(ask(make_args(), teacher, dataset), every)
        assert torch.equal(ask(make_args(), teacher, dataset, np.array([2, 7]))[[2, 7]], some[[2, 7]])
        assert ask.times == 2

    def test_asked_again_when_anything_changes(
        self, ask, make_args, make_features, teacher_of, bert_dir, masked_teacher, tmp_path
    ):
        ask(make_args(), teacher_of(bert_dir), make_features())
        ask(make_args(), teacher_of(bert_dir), make_features(dev=12))
        ask(make_args(bf16=True), teacher_of(bert_dir), make_features())
        ask(make_args(), teacher_of(masked_teacher), make_features())
        other_threshold = teacher_of(masked_teacher)
        set_threshold(other_threshold, 0.5)
        ask(make_args(), other_threshold, make_features())
        ask(make_args(), teacher_of(tiny.save_bert(tmp_path / "other", seed=5)), make_features())
        assert ask.times == 6
        assert len(ask.cached) == 6

    def test_overwrite_cache_asks_again(self, ask, make_args, make_features, teacher_of, bert_dir):
        for _ in range(2):
            ask(make_args(overwrite_cache=True), teacher_of(bert_dir), make_features())
        assert ask.times == 2
        assert len(ask.cached) == 1

    @pytest.mark.parametrize("damage", ["truncated", "changed", "missing"])
    def test_a_damaged_cache_is_named_and_made_anew(
        self, ask, make_args, make_features, teacher_of, bert_dir, caplog, damage
    ):
        expected = ask(make_args(), teacher_of(bert_dir), make_features())
        (file,) = ask.cached[0].glob("*.safetensors")
        content = file.read_bytes()
        if damage == "truncated":
            file.write_bytes(content[:-3])
        elif damage == "changed":
            file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        else:
            file.unlink()
        again = ask(make_args(), teacher_of(bert_dir), make_features())
        assert torch.equal(again, expected)
        assert ask.times == 2
        assert "is damaged and made again" in caplog.text
        assert torch.equal(ask(make_args(), teacher_of(bert_dir), make_features()), expected)
        assert ask.times == 2
