"""Students that start from their teachers."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import tiny_lm
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertForMaskedLM,
    BertModel,
    GPT2LMHeadModel,
    PreTrainedModel,
    RobertaForMaskedLM,
)

from emmental.language_models import student_init
from emmental.language_models.student_init import spread_layers, student_from_teacher

CLASSES = {"bert": BertForMaskedLM, "roberta": RobertaForMaskedLM, "gpt2": GPT2LMHeadModel}


def teacher_of(kind: str, layers: int = 4) -> PreTrainedModel:
    torch.manual_seed(1)
    return CLASSES[kind](tiny_lm.config_of(kind, layers)).eval()


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    ids = torch.tensor([[2, 7, 9, 30, 12, 3], [2, 40, 11, 11, 5, 3]])
    model.config.use_cache = False
    return model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def test_every_nth_layer_is_taken() -> None:
    assert spread_layers(12, 6) == [0, 2, 4, 6, 8, 10]
    assert spread_layers(6, 3) == [0, 2, 4]
    assert spread_layers(5, 2) == [0, 2]
    assert spread_layers(4, 4) == [0, 1, 2, 3]
    for wrong in (0, 5):
        with pytest.raises(ValueError, match=f"--num_layers accepts 1 to 4.*{wrong}"):
            spread_layers(4, wrong)


@pytest.mark.parametrize(
    ("kind", "student"), [("bert", "distilbert"), ("bert", "bert"), ("roberta", "roberta"), ("gpt2", "gpt2")]
)
def test_a_student_with_all_layers_is_the_teacher(kind: str, student: str) -> None:
    teacher = teacher_of(kind)
    copy = student_from_teacher(teacher, [0, 1, 2, 3], student)
    assert copy.config.model_type == student
    torch.testing.assert_close(logits(copy), logits(teacher), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2"])
def test_a_student_is_its_teacher_without_the_other_layers(kind: str) -> None:
    teacher = teacher_of(kind, layers=5)
    student = student_from_teacher(teacher, [3, 0, 4])
    stack = teacher.transformer if kind == "gpt2" else teacher.base_model.encoder
    name = "h" if kind == "gpt2" else "layer"
    layers = getattr(stack, name)
    setattr(stack, name, torch.nn.ModuleList([layers[3], layers[0], layers[4]]))
    teacher.config.num_hidden_layers = 3
    assert student.config.num_hidden_layers == 3
    torch.testing.assert_close(logits(student), logits(teacher), rtol=0, atol=1e-5)


def test_the_vocabulary_transform_may_be_left_out() -> None:
    teacher = teacher_of("bert")
    torch.manual_seed(5)
    student = student_from_teacher(teacher, [0, 2], vocab_transform=False)
    taken = student_from_teacher(teacher, [0, 2])
    dense = teacher.cls.predictions.transform.dense.weight
    assert torch.equal(taken.vocab_transform.weight, dense)
    assert not torch.equal(student.vocab_transform.weight, dense)
    assert torch.equal(student.vocab_projector.weight, teacher.bert.embeddings.word_embeddings.weight)


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2"])
def test_command_line_writes_a_student_that_loads(kind: str, tmp_path: Path) -> None:
    teacher = tiny_lm.save_teacher(tmp_path / "teacher", kind)
    folder = student_init.main(["--model_name", str(teacher), "--dump_checkpoint", str(tmp_path / "student")])
    loaded = (AutoModelForCausalLM if kind == "gpt2" else AutoModelForMaskedLM).from_pretrained(folder)
    expected = student_from_teacher(CLASSES[kind].from_pretrained(teacher), [0, 2])
    assert loaded.config.num_hidden_layers == 2
    assert torch.equal(logits(loaded), logits(expected))


def test_a_teacher_without_a_head_is_refused_or_gives_the_same_student_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(3)
    BertModel(tiny_lm.config_of("bert", 4)).save_pretrained(tmp_path / "encoder")
    tiny.tokenizer().save_pretrained(tmp_path / "encoder")
    flags = ["--model_name", str(tmp_path / "encoder"), "--layers", "1,3"]
    with pytest.raises(SystemExit):
        student_init.main([*flags, "--dump_checkpoint", str(tmp_path / "one")])
    assert "has no trained language-model head, which distiller.py needs in a teacher" in capsys.readouterr().err
    flags.append("--random_head")
    one = student_init.main([*flags, "--dump_checkpoint", str(tmp_path / "one")])
    two = student_init.main([*flags, "--dump_checkpoint", str(tmp_path / "two")])
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--layers", "0,9"], "--layers accepts numbers from 0 to 3"),
        (["--layers", "0;2"], "--layers accepts numbers with commas"),
        (["--layers", "0", "--num_layers", "1"], "exclude each other"),
        (["--num_layers", "7"], "--num_layers accepts 1 to 4"),
        (["--student_type", "gpt2"], "--student_type accepts distilbert or bert"),
    ],
)
def test_mistakes_are_one_line(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = tiny_lm.save_teacher(tmp_path / "teacher", "bert")
    with pytest.raises(SystemExit) as raised:
        student_init.main(["--model_name", str(teacher), "--dump_checkpoint", str(tmp_path / "student"), *flags])
    errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert raised.value.code == 2
    assert len(errors) == 1
    assert message in errors[0]
    assert not (tmp_path / "student").exists()


def test_a_folder_of_someone_else_is_left_alone(tmp_path: Path) -> None:
    teacher = tiny_lm.save_teacher(tmp_path / "teacher", "bert")
    mine = tmp_path / "student"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(SystemExit) as raised:
        student_init.main(["--model_name", str(teacher), "--dump_checkpoint", str(mine)])
    assert raised.value.code == 2
    assert [file.name for file in mine.iterdir()] == ["thesis.txt"]
