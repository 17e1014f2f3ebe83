"""Loads the tokenizer and the model that the flags name."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from emmental import atomic
from emmental.architectures import base_model_type, longest_input
from emmental.data import tokenization
from emmental.errors import UserError
from emmental.masked_models import MaskedConfig, masked_config
from emmental.methods import method_of
from emmental.pretrained import from_pretrained, require_encoder
from emmental.runs.run import Run
from emmental.tasks import Task
from emmental.tasks.set_aside import SET_ASIDE

logger = logging.getLogger(__name__)


def load_tokenizer(args: Run) -> Any:
    """The fast tokenizer of the model, or the one that `--tokenizer_name` names.

    If `--max_seq_length` was not given, it becomes the model's length if that is shorter.

    Raises:
        UserError: there is none, or no fast one, or `--max_seq_length` is more than the model accepts.
    """
    casing = {} if args.do_lower_case is None else {"do_lower_case": args.do_lower_case}
    name = args.tokenizer_name or args.model_name_or_path
    flag = "--tokenizer_name" if args.tokenizer_name else "--model_name_or_path"
    tokenizer = tokenization.load_tokenizer(name, flag=flag, cache_dir=args.cache_dir or None, **casing)
    if args.do_lower_case is not None and tokenization.lowers_case(tokenizer) != args.do_lower_case:
        how = "keeps upper case" if args.do_lower_case else "lowers the case"
        asked = f"--{'' if args.do_lower_case else 'no-'}do_lower_case"
        logger.warning("%s is ignored: the tokenizer of %s %s whatever the flag says", asked, name, how)
    if args.max_seq_length > tokenizer.model_max_length and "max_seq_length" not in args.explicit:
        args.max_seq_length = tokenizer.model_max_length
        logger.info("--max_seq_length %d: the model accepts no more", args.max_seq_length)
    if args.max_seq_length > tokenizer.model_max_length:
        raise UserError(
            f"--max_seq_length {args.max_seq_length} is more than the {tokenizer.model_max_length} tokens of {name}"
        )
    return tokenizer


def load_config(args: Run) -> tuple[PreTrainedConfig, str]:
    """The configuration of the model to train or evaluate, and its name in messages: flag and value."""
    flag = "--config_name" if args.config_name else "--model_name_or_path"
    name = args.config_name or args.model_name_or_path
    return from_pretrained(AutoConfig, name, flag=flag, cache_dir=args.cache_dir or None), f"{flag} {name}"


def load_model(args: Run, task: Task, tokenizer: Any) -> PreTrainedModel:
    """The model to train or evaluate, with the task's outputs.

    A dense checkpoint gets masks as the flags say, unless `--model_type` names its own type. A masked one keeps its
    own pruning method, threshold and scores. The tokenizer is set to return the inputs that the model reads.

    Raises:
        UserError: the checkpoint contradicts the flags, or is not an encoder of a known type.
    """
    name = args.model_name_or_path
    config, called = load_config(args)
    require_encoder(config, called)
    if args.max_seq_length > longest_input(config):
        raise UserError(
            f"--max_seq_length {args.max_seq_length} is more than the {longest_input(config)} positions of {name}"
        )
    tokenization.check_token_ids(tokenizer, config, f"--tokenizer_name {tokenizer.name_or_path}", f"the model {name}")
    tokenization.fit_to_model(tokenizer, config)
    _check_model_type(args, config)
    masks = args.do_train or "model_type" in args.explicit or isinstance(config, MaskedConfig)
    if masks and args.model_type.startswith("masked_"):
        return _loaded(args, masked_config(config, **_masking(args, config), **_outputs(args, task)))
    return _loaded(args, type(config)(**{**config.to_dict(), **_outputs(args, task)}))


def _check_model_type(args: Run, config: PreTrainedConfig) -> None:
    """Refuse a `--model_type` that is not the type of the model."""
    if "model_type" not in args.explicit:
        return
    asked, name = args.model_type, args.model_name_or_path
    if base_model_type(asked) != base_model_type(config.model_type):
        raise UserError(f"--model_type {asked}, but {name} is a {config.model_type}; omit the flag")
    if isinstance(config, MaskedConfig) and not asked.startswith("masked_"):
        raise UserError(f"--model_type {asked} trains dense, but {name} is masked; omit the flag")


def _loaded(args: Run, config: PreTrainedConfig) -> PreTrainedModel:
    """Load the model. If the checkpoint has no head for these labels, the head is new.

    Raises:
        UserError: the sizes of the encoder are not those of the weights, or the head is new and nothing is trained.
    """
    model, info = from_pretrained(
        AutoModelForSequenceClassification,
        args.model_name_or_path,
        flag="--model_name_or_path",
        config=config,
        cache_dir=args.cache_dir or None,
        ignore_mismatched_sizes=args.do_train,
        output_loading_info=True,
    )
    body = f"{model.base_model_prefix}."
    if misfits := sorted(key for key, *_ in info["mismatched_keys"] if key.startswith(body)):
        raise UserError(
            f"--model_name_or_path {args.model_name_or_path}: the sizes in config.json do not fit the weights "
            f"({misfits[0]})"
        )
    fresh = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
    if fresh and not args.do_train:
        raise UserError(f"--model_name_or_path {args.model_name_or_path} is not fine-tuned: it has no {fresh[0]}")
    if args.new_classifier:
        _start_classifier_anew(model)
    if fresh:
        logger.info("not in %s, so started at random: %s", args.model_name_or_path, ", ".join(fresh))
    return model


def _start_classifier_anew(model: PreTrainedModel) -> None:
    """Set everything outside the encoder to the random values of a new model."""
    new = type(model)(model.config)
    for name, module in model.named_children():
        if name != model.base_model_prefix:
            module.load_state_dict(new.get_submodule(name).state_dict())


def in_dtype(model: nn.Module, name: str) -> nn.Module:
    """The model, or a copy with its weights rounded to a dtype of PyTorch."""
    return model if name == "float32" else copy.deepcopy(model).to(getattr(torch, name))


def model_to_evaluate(args: Run) -> str:
    """The model of a run without training: that of the output folder, unless `--model_name_or_path` names another.

    The model that the output folder's training started from does not count as another: the command that trained
    names it too.
    """
    output = Path(args.output_dir)
    if not (output / "config.json").is_file():
        return args.model_name_or_path
    if "model_name_or_path" in args.explicit and args.model_name_or_path != _trained_from(output):
        return args.model_name_or_path
    return args.output_dir


def _trained_from(output: Path) -> str | None:
    return atomic.read_object(output / "training_args.json").get("model_name_or_path")


def _outputs(args: Run, task: Task) -> dict[str, Any]:
    """Settings of the configuration about the outputs and, for later uses of the model, about its training."""
    settings = {"max_seq_length": args.max_seq_length, "positive_label": task.positive_name} if args.do_train else {}
    if args.do_train and task.trained_rows is not None:
        settings[SET_ASIDE] = task.trained_rows.record()
    if task.is_regression:
        return {"num_labels": 1, "problem_type": "regression", **settings}
    labels = dict(enumerate(task.names))
    return {
        "id2label": labels,
        "label2id": {label: index for index, label in labels.items()},
        "problem_type": "single_label_classification",
        **settings,
    }


def _masking(args: Run, config: PreTrainedConfig) -> dict[str, Any]:
    asked = {
        "pruning_method": method_of(args.pruning_method).masked_name,
        "mask_init": args.mask_init,
        "mask_scale": args.mask_scale,
    }
    if not isinstance(config, MaskedConfig):
        return asked
    for flag, value in asked.items():
        if flag in args.explicit and value != getattr(config, flag):
            raise UserError(
                f"--{flag} {value} contradicts {args.model_name_or_path}, saved with {getattr(config, flag)}"
            )
    args.pruning_method = config.pruning_method
    return {} if args.do_train else _evaluated_at(args, config)


def _evaluated_at(args: Run, config: MaskedConfig) -> dict[str, Any]:
    """The threshold of a masked model that is not trained: `--final_threshold` if given, else the saved one.

    Raises:
        UserError: there is neither, as in masked BERTs of other programs. It would be evaluated as dense.
    """
    if not method_of(config.pruning_method).has_threshold:
        return {}
    if "final_threshold" in args.explicit and args.final_threshold != config.threshold:
        return {"threshold": args.final_threshold, "global_boundary": None}
    if config.threshold is None and config.global_boundary is None:
        raise UserError(f"{args.model_name_or_path} records no threshold: give the one to use with --final_threshold")
    return {}
