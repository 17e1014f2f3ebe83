"""Loads students and teachers of language-model distillation, and checks that they fit each other and the corpus."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from emmental.architectures import longest_input
from emmental.atomic import verify_folder
from emmental.data.tokenization import check_token_ids, load_tokenizer, vocabulary_fingerprint
from emmental.errors import UserError
from emmental.language_models.corpus import CorpusDataset
from emmental.language_models.masking import token_probabilities
from emmental.pretrained import check_sizes, from_pretrained, loading, weights_fingerprint
from emmental.runs.processes import Processes
from emmental.runs.run import Run

logger = logging.getLogger(__name__)

LANGUAGE_MODELS: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel]]] = {
    "bert": (BertConfig, BertForMaskedLM),
    "distilbert": (DistilBertConfig, DistilBertForMaskedLM),
    "roberta": (RobertaConfig, RobertaForMaskedLM),
    "gpt2": (GPT2Config, GPT2LMHeadModel),
}


def load_lm_run(
    run: Run,
) -> tuple[CorpusDataset, Tensor | None, PreTrainedModel, PreTrainedModel]:
    """Corpus, masking probabilities (None for a causal model), student and teacher, which are checked to fit.

    The run gets its tokenizer and special_tok_ids, and the fingerprints that its result depends on: data, counted (the
    corpus of the token counts) and teacher_weights.

    Raises:
        UserError: something does not fit, cannot be found, or a corpus is damaged.
    """
    run.tokenizer = load_lm_tokenizer(run)
    corpus = open_corpus(run.data_file, run.processes)
    run.contents["data"] = corpus.fingerprint
    counted = open_corpus(run.token_counts, run.processes) if run.token_counts else corpus
    run.contents["counted"] = counted.fingerprint
    student, teacher = load_lm_student(run), load_lm_teacher(run)
    run.contents["teacher_weights"] = weights_fingerprint(teacher)
    check_lm_models(run, corpus, student, teacher)
    if counted.description["tokenizer"] != corpus.description["tokenizer"]:
        raise UserError(f"--token_counts {run.token_counts} was made with another tokenizer than --data_file")
    if not run.mlm:
        return corpus, None, student, teacher
    counts = np.zeros(student.config.vocab_size, dtype=np.int64)
    if len(counted.token_counts) > len(counts):
        raise UserError(f"--token_counts has {len(counted.token_counts)} tokens, the models only {len(counts)}")
    counts[: len(counted.token_counts)] = counted.token_counts
    probabilities = token_probabilities(counts, run.mlm_smoothing, run.special_tok_ids.values())
    return corpus, probabilities, student, teacher


def open_corpus(folder: str, processes: Processes) -> CorpusDataset:
    """The corpus. Rank 0 checks every byte of it."""
    with processes.main_first():
        if processes.is_main:
            verify_folder(folder)
            CorpusDataset(folder).check_tokens()
        return CorpusDataset(folder)


def load_lm_tokenizer(run: Run) -> Any:
    """The teacher's tokenizer; `run` gets `special_tok_ids` (name of the token -> id).

    Raises:
        UserError: it lacks a token that the losses need.
    """
    tokenizer = load_tokenizer(run.teacher_name, flag="--teacher_name")
    run.special_tok_ids = {
        name: tokenizer.convert_tokens_to_ids(token)
        for name, token in tokenizer.special_tokens_map.items()
        if isinstance(token, str)
    }
    needed = ("pad_token", "mask_token") if run.mlm else ("unk_token",)
    if missing := [name for name in needed if run.special_tok_ids.get(name) is None]:
        raise UserError(f"--teacher_name {run.teacher_name}: its tokenizer has no {missing[0]}")
    return tokenizer


def load_lm_teacher(run: Run) -> PreTrainedModel:
    """The teacher, frozen and in evaluation mode.

    Raises:
        UserError: it is of another type, or has no language-model head although a loss needs one.
    """
    config_class, model_class = LANGUAGE_MODELS[run.teacher_type]
    config = _configuration("teacher_name", run.teacher_name, run.teacher_type, config_class)
    teacher, info = from_pretrained(
        model_class, run.teacher_name, flag="--teacher_name", config=config, output_loading_info=True
    )
    if info["missing_keys"] and (run.alpha_ce > 0 or run.alpha_mse > 0):
        raise UserError(
            f"--teacher_name {run.teacher_name} has no trained language-model head: it lacks "
            f"{sorted(info['missing_keys'])[0]}"
        )
    return teacher.requires_grad_(False).eval()


def load_lm_student(run: Run) -> PreTrainedModel:
    """The student, new or from `--student_pretrained_weights`, with parts frozen as the flags say.

    Raises:
        UserError: configuration or weights are of another type or shape than the flags say.
        UserError: they cannot be found.
    """
    config_class, model_class = LANGUAGE_MODELS[run.student_type]
    config = _configuration("student_config", run.student_config, run.student_type, config_class)
    config.initializer_range = run.initializer_range
    if run.student_pretrained_weights is None:
        with loading(run.student_config):
            student = model_class(config)
    else:
        student = _pretrained_student(run, model_class, config)
    for flag, kind in (("freeze_pos_embs", "position"), ("freeze_token_type_embds", "token_type")):
        if getattr(run, flag):
            _embedding(student, kind).requires_grad_(False)
    return student


def check_lm_models(run: Run, corpus: CorpusDataset, student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Check that corpus, tokenizer, student and teacher fit together.

    Raises:
        UserError: they do not. The message names the flag.
    """
    ours, theirs = student.config.vocab_size, teacher.config.vocab_size
    if ours != theirs:
        raise UserError(f"--student_config has a vocabulary of {ours}, --teacher_name of {theirs}; they must be equal")
    if corpus.description["tokenizer"] != vocabulary_fingerprint(run.tokenizer):
        raise UserError(
            f"--data_file {run.data_file} was made with another tokenizer than that of --teacher_name "
            f"{run.teacher_name}: binarize the text again"
        )
    check_token_ids(run.tokenizer, student.config, f"--teacher_name {run.teacher_name}", "the model")
    positions = min(longest_input(student.config), longest_input(teacher.config))
    if corpus.description["longest"] > positions:
        raise UserError(
            f"--data_file {run.data_file} has sequences of {corpus.description['longest']} tokens, the models take "
            f"{positions}: binarize the text again with --max_length {positions}"
        )
    if run.alpha_cos > 0 and student.config.hidden_size != teacher.config.hidden_size:
        raise UserError(
            f"--alpha_cos compares hidden states of one size: the student's have {student.config.hidden_size}, the "
            f"teacher's {teacher.config.hidden_size}; give 0"
        )


def _configuration(flag: str, name: str, kind: str, config_class: type[PreTrainedConfig]) -> PreTrainedConfig:
    with loading(name):
        found, _ = PreTrainedConfig.get_config_dict(name)
    if not found:
        raise UserError(f"--{flag} {name} holds no configuration of a model")
    if found.get("model_type", kind) != kind:
        raise UserError(f"--{flag} {name} is a {found['model_type']}, not a {kind}")
    with loading(name):
        config = config_class.from_dict(found)
    check_sizes(config, name)
    return config


def _pretrained_student(run: Run, model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    name = run.student_pretrained_weights
    student, info = from_pretrained(
        model_class,
        name,
        flag="--student_pretrained_weights",
        config=config,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    if info["mismatched_keys"]:
        raise UserError(
            f"--student_pretrained_weights {name} does not fit --student_config: "
            f"{sorted(info['mismatched_keys'])[0][0]} has another shape"
        )
    if info["missing_keys"]:
        logger.warning("not in %s, so started at random: %s", name, ", ".join(sorted(info["missing_keys"])))
    return student


def _embedding(model: PreTrainedModel, kind: str) -> nn.Embedding:
    if model.config.model_type == "gpt2":
        return model.transformer.wpe
    return getattr(model.base_model.embeddings, f"{kind}_embeddings")
