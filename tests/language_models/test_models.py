"""Students and teachers of language-model distillation, and the ready student configurations."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import tiny_lm
import torch

from emmental.language_models.arguments import TEACHERS_OF, with_defaults
from emmental.language_models.models import LANGUAGE_MODELS, load_lm_student, load_lm_teacher, load_lm_tokenizer

CONFIGS = Path(__file__).resolve().parents[2] / "experiments" / "distil" / "student_configs"
PARAMETERS = {
    # Published: DistilBERT 66.4 million and a head of 0.6 million; DistilRoBERTa and DistilGPT-2 82 million each.
    "distilbert-base-uncased": ("distilbert", 66_985_530),
    "distilroberta-base": ("roberta", 82_170_201),
    "distilgpt2": ("gpt2", 81_912_576),
}


def student_args(student_type: str, config: Path, **others: object) -> argparse.Namespace:
    flags = {"student_pretrained_weights": None, "initializer_range": 0.02}
    flags |= {"freeze_pos_embs": False, "freeze_token_type_embds": False}
    return argparse.Namespace(**flags, student_type=student_type, student_config=str(config), **others)


def test_runtime_objects_are_no_flags() -> None:
    flags = with_defaults(argparse.Namespace(seed=3, tokenizer="an object", special_tok_ids={"pad_token": 0}))
    assert (flags.seed, flags.n_epoch, flags.explicit) == (3, 3, {"seed"})
    assert vars(flags).keys() == flags.all().keys()


@pytest.mark.parametrize("name", PARAMETERS)
def test_ready_students_have_the_published_shape(name: str) -> None:
    student_type, parameters = PARAMETERS[name]
    with torch.device("meta"):
        student = load_lm_student(student_args(student_type, CONFIGS / f"{name}.json"))
    config = student.config
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (6, 768, 12)
    assert sum(parameter.numel() for parameter in student.parameters()) == parameters


def test_every_configuration_is_tested() -> None:
    assert {file.stem for file in CONFIGS.glob("*.json")} == set(PARAMETERS)
    assert set(TEACHERS_OF) == set(LANGUAGE_MODELS)


def test_the_spread_of_random_weights_is_the_flags(tmp_path: Path) -> None:
    config = tiny_lm.config_of("distilbert", 2).to_dict()
    (tmp_path / "config.json").write_text(json.dumps(config))
    args = student_args("distilbert", tmp_path / "config.json")
    for spread in (0.02, 0.3):
        args.initializer_range = spread
        torch.manual_seed(0)
        weight = load_lm_student(args).distilbert.transformer.layer[0].ffn.lin1.weight
        assert float(weight.std()) == pytest.approx(spread, rel=0.15)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    tiny_lm.save_teacher(tmp_path / "roberta", "roberta", layers=2)
    config = {**tiny_lm.config_of("roberta", 2).to_dict(), "intermediate_size": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    args = student_args("roberta", tmp_path / "config.json")
    args.student_pretrained_weights = str(tmp_path / "roberta")
    with pytest.raises(ValueError, match=r"does not fit --student_config: .*intermediate.*another shape"):
        load_lm_student(args)


def test_a_teacher_without_a_head_teaches_nothing_about_words(tmp_path: Path) -> None:
    folder = tiny_lm.save_teacher(tmp_path / "bert", "bert")
    args = argparse.Namespace(teacher_type="bert", teacher_name=str(folder), alpha_ce=1.0, alpha_mse=0.0)
    assert not any(parameter.requires_grad for parameter in load_lm_teacher(args).parameters())
    LANGUAGE_MODELS["bert"][1].from_pretrained(folder).bert.save_pretrained(folder)
    with pytest.raises(ValueError, match="has no trained language-model head"):
        load_lm_teacher(args)
    args.alpha_ce = 0.0
    assert not load_lm_teacher(args).training


def test_special_tokens_have_names_and_ids(tmp_path: Path) -> None:
    folder = tiny_lm.save_teacher(tmp_path / "gpt2", "gpt2")
    args = argparse.Namespace(teacher_name=str(folder), mlm=False)
    load_lm_tokenizer(args)
    assert args.special_tok_ids == {"bos_token": 2, "eos_token": 3, "unk_token": 1}
    args.mlm = True
    with pytest.raises(ValueError, match="its tokenizer has no pad_token"):
        load_lm_tokenizer(args)


def test_weights_of_another_kind_of_model_are_refused(tmp_path: Path) -> None:
    """A DistilBERT finds none of its weights in a BERT: that is what `student_init` is for."""
    (tmp_path / "config.json").write_text(json.dumps(tiny_lm.config_of("distilbert", 2).to_dict()))
    for kind in ("bert", "roberta"):
        teacher = tiny_lm.save_teacher(tmp_path / kind, kind)
        args = student_args("distilbert", tmp_path / "config.json")
        args.student_pretrained_weights = str(teacher)
        with pytest.raises(
            ValueError, match=rf"--student_pretrained_weights .*{kind}: \d+ of the \d+ weights of its enc"
        ):
            load_lm_student(args)
