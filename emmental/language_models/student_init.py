"""Starts a student from layers of its teacher.

python -m emmental.training.student_init --model_name_or_path bert-base-uncased --output student
python distiller.py --student_config student/config.json --student_pretrained_weights student ...

BERT becomes a DistilBERT or a shallower BERT, RoBERTa a shallower RoBERTa, GPT-2 a shallower GPT-2.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    BertConfig,
    DistilBertConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from emmental.architectures import ARCHITECTURES
from emmental.atomic import atomic_folder, refuse_losing
from emmental.command_line import OneLineParser, leave_if, range_problems, user_mistakes
from emmental.data.tokenization import load_tokenizer
from emmental.errors import UserError
from emmental.language_models.models import LANGUAGE_MODELS
from emmental.pretrained import check_folder, from_pretrained, loading
from emmental.runs.progress import configure_logging

logger = logging.getLogger(__name__)

_STUDENTS = {"bert": ("distilbert", "bert"), "roberta": ("roberta",), "gpt2": ("gpt2",)}
"""Teacher type -> student types; the first one is the default."""
_BERT, _DISTILBERT = ARCHITECTURES["bert"], ARCHITECTURES["distilbert"]
_LAYER_LISTS = {kind: f"{kind}.{_BERT.layers.removesuffix('.*')}" for kind in ("bert", "roberta")} | {
    "gpt2": "transformer.h"
}
_HEADS = {
    "bert": ("cls.predictions.transform.",),
    "roberta": ("lm_head.dense.", "lm_head.layer_norm."),
    "distilbert": ("vocab_transform.", "vocab_layer_norm."),
    "gpt2": (),
}
_DISTILBERT_LAYER = {
    **{_BERT.roles[role]: path for role, path in _DISTILBERT.roles.items()},
    _BERT.attention_norm: _DISTILBERT.attention_norm,
    _BERT.feed_forward_norm: _DISTILBERT.feed_forward_norm,
}
_DISTILBERT_REST = {
    "bert.embeddings.word_embeddings.weight": "distilbert.embeddings.word_embeddings.weight",
    "bert.embeddings.position_embeddings.weight": "distilbert.embeddings.position_embeddings.weight",
    "bert.embeddings.LayerNorm.weight": "distilbert.embeddings.LayerNorm.weight",
    "bert.embeddings.LayerNorm.bias": "distilbert.embeddings.LayerNorm.bias",
    "cls.predictions.transform.dense.weight": "vocab_transform.weight",
    "cls.predictions.transform.dense.bias": "vocab_transform.bias",
    "cls.predictions.transform.LayerNorm.weight": "vocab_layer_norm.weight",
    "cls.predictions.transform.LayerNorm.bias": "vocab_layer_norm.bias",
    "cls.predictions.decoder.weight": "vocab_projector.weight",
    "cls.predictions.bias": "vocab_projector.bias",
}


def spread_layers(teacher_layers: int, student_layers: int) -> list[int]:
    """The teacher's layers, from 0, that a student gets by default: every n-th, starting with the first.

    Raises:
        UserError: the student has no layer, or more layers than the teacher.
    """
    if not 1 <= student_layers <= teacher_layers:
        raise UserError(f"--num_layers accepts 1 to {teacher_layers}, the teacher's layers, not {student_layers}")
    return [index * teacher_layers // student_layers for index in range(student_layers)]


def student_from_teacher(
    teacher: PreTrainedModel, layers: Sequence[int], student_type: str | None = None, vocab_transform: bool = True
) -> PreTrainedModel:
    """A student with some of the teacher's layers, its embeddings and its language-model head.

    DistilBERT has no token types, so BERT's embedding of type 0 is added to its position embeddings. With all layers,
    the student then computes what the teacher computes for single sentences.

    Args:
        teacher: a language model: BERT, RoBERTa or GPT-2.
        layers: which of its layers, from 0, the student gets, in this order.
        student_type: by default distilbert for BERT, and the teacher's own type for the others.
        vocab_transform: False leaves the dense layer before the vocabulary random.

    Raises:
        UserError: another model type, or a layer that the teacher lacks.
    """
    kind = teacher.config.model_type
    if kind not in _STUDENTS:
        raise UserError(f"--model_name_or_path accepts a {', '.join(_STUDENTS)}, not a {kind}")
    student_type = student_type or _STUDENTS[kind][0]
    if student_type not in _STUDENTS[kind]:
        raise UserError(f"--student_type accepts {' or '.join(_STUDENTS[kind])} for a {kind}, not {student_type!r}")
    depth = teacher.config.num_hidden_layers
    if not layers or any(not 0 <= layer < depth for layer in layers):
        raise UserError(f"--layers accepts numbers from 0 to {depth - 1}, the teacher's layers, not {list(layers)}")
    student = LANGUAGE_MODELS[student_type][1](_student_config(teacher.config, student_type, len(layers)))
    weights = _chosen_layers(teacher.state_dict(), _LAYER_LISTS[kind], layers)
    if student_type == "distilbert":
        weights = _as_distilbert(weights)
    if not vocab_transform:
        weights = {name: value for name, value in weights.items() if not name.startswith(_HEADS[student_type])}
    missing, unexpected = student.load_state_dict(weights, strict=False)
    left_out = set(missing) - set(getattr(student, "all_tied_weights_keys", None) or ())
    assert not unexpected, unexpected
    assert not (left_out and vocab_transform), left_out
    student.tie_weights()
    return student


def _student_config(config: PreTrainedConfig, student_type: str, layers: int) -> PreTrainedConfig:
    if student_type != "distilbert":
        return type(config).from_dict({**config.to_dict(), _depth_name(config): layers})
    assert isinstance(config, BertConfig)
    return DistilBertConfig(
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_position_embeddings,
        dim=config.hidden_size,
        hidden_dim=config.intermediate_size,
        n_heads=config.num_attention_heads,
        n_layers=layers,
        activation=config.hidden_act,
        dropout=config.hidden_dropout_prob,
        attention_dropout=config.attention_probs_dropout_prob,
        initializer_range=config.initializer_range,
        pad_token_id=config.pad_token_id,
    )


def _depth_name(config: PreTrainedConfig) -> str:
    return config.attribute_map.get("num_hidden_layers", "num_hidden_layers")


def _chosen_layers(weights: dict[str, Tensor], layer_list: str, layers: Sequence[int]) -> dict[str, Tensor]:
    """The weights with the chosen layers, renumbered; weights outside the layers stay."""
    chosen = {name: value for name, value in weights.items() if not name.startswith(f"{layer_list}.")}
    for new, old in enumerate(layers):
        prefix = f"{layer_list}.{old}."
        for name, value in weights.items():
            if name.startswith(prefix):
                chosen[f"{layer_list}.{new}.{name.removeprefix(prefix)}"] = value
    return chosen


def _as_distilbert(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in weights.items():
        if name.startswith(layers := f"{_LAYER_LISTS['bert']}."):
            number, _, rest = name.removeprefix(layers).partition(".")
            part, _, kind = rest.rpartition(".")
            place = _DISTILBERT.layers.replace("*", number)
            renamed[f"distilbert.{place}.{_DISTILBERT_LAYER[part]}.{kind}"] = value
        elif name in _DISTILBERT_REST:
            renamed[_DISTILBERT_REST[name]] = value
    positions = "distilbert.embeddings.position_embeddings.weight"
    renamed[positions] = renamed[positions] + weights["bert.embeddings.token_type_embeddings.weight"][0]
    return renamed


def build_parser() -> OneLineParser:
    """Flags of `python -m emmental.training.student_init`."""
    parser = OneLineParser("Start a student from its teacher's layers.", "python -m emmental.training.student_init")
    parser.add_argument(
        "--model_name_or_path",
        "--model_name",
        dest="model_name_or_path",
        required=True,
        help="the teacher: folder or Hub name of a BERT, RoBERTa, GPT-2",
    )
    parser.add_argument(
        "--output", "--dump_checkpoint", dest="output", required=True, help="folder to write the student to"
    )
    parser.add_argument("--student_type", help="distilbert (for BERT by default), bert, roberta or gpt2")
    parser.add_argument("--num_layers", type=int, help="layers of the student; default: half of the teacher's")
    parser.add_argument("--layers", help="the teacher's layers to take, from 0, such as 0,2,4,7,9,11")
    parser.add_argument(
        "--vocab_transform",
        action=argparse.BooleanOptionalAction,
        help="copy the dense layer of the language-model head too",
        default=True,
    )
    parser.add_argument(
        "--random_head", action="store_true", help="accept a model without a language-model head; the head is random"
    )
    parser.add_argument("--seed", type=int, default=56, help="seed of weights that are not copied")
    return parser


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = build_parser()
    args = parser.parse_args(argv)
    problems = range_problems(args, {"seed": 0, "num_layers": 1})
    if args.layers is not None:
        if args.num_layers is not None:
            problems.append("--num_layers and --layers exclude each other; give one")
        if all(part.strip().isdecimal() for part in args.layers.split(",")):
            args.layers = [int(part) for part in args.layers.split(",")]
        else:
            problems.append(f"--layers accepts numbers with commas between, such as 0,2,4, not {args.layers!r}")
    leave_if(problems, parser.prog)
    return args


def _load_teacher(name: str, random_head: bool) -> PreTrainedModel:
    check_folder(name, f"--model_name_or_path {name}")
    with loading(name):
        kind = PreTrainedConfig.get_config_dict(name)[0].get("model_type")
    if kind not in _STUDENTS:
        raise UserError(f"--model_name_or_path accepts a {', '.join(_STUDENTS)}; {name} is a {kind}")
    config = from_pretrained(LANGUAGE_MODELS[kind][0], name)
    teacher, info = from_pretrained(LANGUAGE_MODELS[kind][1], name, config=config, output_loading_info=True)
    if info["missing_keys"] and not random_head:
        raise UserError(
            f"--model_name_or_path {name} has no trained language-model head, which distiller.py needs in a teacher: "
            f"it lacks {sorted(info['missing_keys'])[0]}; --random_head starts it at random"
        )
    if info["missing_keys"]:
        logger.warning("%s lacks %s: started at random", name, ", ".join(sorted(info["missing_keys"])))
    return teacher


def main(argv: Sequence[str] | None = None) -> Path:
    """Run the command line `argv` (default: the process') and return the student's folder."""
    args = _parse(argv)
    configure_logging(is_main=True)
    torch.manual_seed(args.seed)
    with user_mistakes():
        refuse_losing({"--model_name_or_path": args.model_name_or_path}, [args.output], f"--output {args.output}")
        teacher = _load_teacher(args.model_name_or_path, args.random_head)
        tokenizer = load_tokenizer(args.model_name_or_path)
        depth = teacher.config.num_hidden_layers
        layers = args.layers or spread_layers(depth, args.num_layers or max(1, depth // 2))
        student = student_from_teacher(teacher, layers, args.student_type, args.vocab_transform)
        with atomic_folder(args.output) as folder:
            student.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    logger.info(
        "%s: a %s of %d layers, from the teacher's layers %s",
        args.output,
        student.config.model_type,
        len(layers),
        ", ".join(map(str, layers)),
    )
    return Path(args.output)


if __name__ == "__main__":
    main()
