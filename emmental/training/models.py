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


def load_tokenizer(run: Run) -> Any:
    """The fast tokenizer of the model, or the one that `--tokenizer_name` names.

    If `--max_seq_length` was not given, it becomes the model's length if that is shorter.

    Raises:
        UserError: there is none, or no fast one, or `--max_seq_length` is more than the model accepts.
    """
    casing = {} if run.do_lower_case is None else {"do_lower_case": run.do_lower_case}
    name = run.tokenizer_name or run.model_name_or_path
    flag = "--tokenizer_name" if run.tokenizer_name else "--model_name_or_path"
    tokenizer = tokenization.load_tokenizer(name, flag=flag, cache_dir=run.cache_dir or None, **casing)
    if run.do_lower_case is not None and tokenization.lowers_case(tokenizer) != run.do_lower_case:
        how = "keeps upper case" if run.do_lower_case else "lowers the case"
        asked = f"--{'' if run.do_lower_case else 'no-'}do_lower_case"
        logger.warning("%s is ignored: the tokenizer of %s %s whatever the flag says", asked, name, how)
    if run.max_seq_length > tokenizer.model_max_length and "max_seq_length" not in run.explicit:
        run.max_seq_length = tokenizer.model_max_length
        logger.info("--max_seq_length %d: the model accepts no more", run.max_seq_length)
    if run.max_seq_length > tokenizer.model_max_length:
        raise UserError(
            f"--max_seq_length {run.max_seq_length} is more than the {tokenizer.model_max_length} tokens of {name}"
        )
    return tokenizer


def load_config(run: Run) -> tuple[PreTrainedConfig, str]:
    """The configuration of the model to train or evaluate, and its name in messages: flag and value."""
    flag = "--config_name" if run.config_name else "--model_name_or_path"
    name = run.config_name or run.model_name_or_path
    return from_pretrained(AutoConfig, name, flag=flag, cache_dir=run.cache_dir or None), f"{flag} {name}"


def load_model(run: Run, task: Task, tokenizer: Any) -> PreTrainedModel:
    """The model to train or evaluate, with the task's outputs.

    A dense checkpoint gets masks as the flags say, unless `--model_type` names its own type. A masked one keeps its
    own pruning method, threshold and scores. The tokenizer is set to return the inputs that the model reads.

    Raises:
        UserError: the checkpoint contradicts the flags, or is not an encoder of a known type.
    """
    name = run.model_name_or_path
    config, called = load_config(run)
    require_encoder(config, called)
    if run.max_seq_length > longest_input(config):
        raise UserError(
            f"--max_seq_length {run.max_seq_length} is more than the {longest_input(config)} positions of {name}"
        )
    tokenization.check_token_ids(tokenizer, config, f"--tokenizer_name {tokenizer.name_or_path}", f"the model {name}")
    tokenization.fit_to_model(tokenizer, config)
    _check_model_type(run, config)
    masks = run.do_train or "model_type" in run.explicit or isinstance(config, MaskedConfig)
    if masks and run.model_type.startswith("masked_"):
        return _loaded(run, masked_config(config, **_masking(run, config), **_outputs(run, task)))
    return _loaded(run, type(config)(**{**config.to_dict(), **_outputs(run, task)}))


def _check_model_type(run: Run, config: PreTrainedConfig) -> None:
    """Refuse a `--model_type` that is not the type of the model."""
    if "model_type" not in run.explicit:
        return
    asked, name = run.model_type, run.model_name_or_path
    if base_model_type(asked) != base_model_type(config.model_type):
        raise UserError(f"--model_type {asked}, but {name} is a {config.model_type}; omit the flag")
    if isinstance(config, MaskedConfig) and not asked.startswith("masked_"):
        raise UserError(f"--model_type {asked} trains dense, but {name} is masked; omit the flag")


def _loaded(run: Run, config: PreTrainedConfig) -> PreTrainedModel:
    """Load the model. If the checkpoint has no head for these labels, the head is new.

    Raises:
        UserError: the sizes of the encoder are not those of the weights, or the head is new and nothing is trained.
    """
    model, info = from_pretrained(
        AutoModelForSequenceClassification,
        run.model_name_or_path,
        flag="--model_name_or_path",
        config=config,
        cache_dir=run.cache_dir or None,
        ignore_mismatched_sizes=run.do_train,
        output_loading_info=True,
    )
    body = f"{model.base_model_prefix}."
    if misfits := sorted(key for key, *_ in info["mismatched_keys"] if key.startswith(body)):
        raise UserError(
            f"--model_name_or_path {run.model_name_or_path}: the sizes in config.json do not fit the weights "
            f"({misfits[0]})"
        )
    fresh = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
    if fresh and not run.do_train:
        raise UserError(f"--model_name_or_path {run.model_name_or_path} is not fine-tuned: it has no {fresh[0]}")
    if run.new_classifier:
        _start_classifier_anew(model)
    if fresh:
        logger.info("not in %s, so started at random: %s", run.model_name_or_path, ", ".join(fresh))
    return model


def _start_classifier_anew(model: PreTrainedModel) -> None:
    """Set everything outside the encoder to the random values of a new model."""
    new = type(model)(model.config)
    for name, module in model.named_children():
        if name != model.base_model_prefix:
            module.load_state_dict(new.get_submodule(name).state_dict())


def in_dtype(model: nn.Module, name: str) -> nn.Module:
    """The model, or a copy with its weights rounded to a dtype of PyTorch that holds all of them.

    The last linear of a regression has the unit of its labels, which may be beyond float16.
    """
    if name == "float32":
        return model
    largest = torch.finfo(getattr(torch, name)).max
    for tensor, value in model.state_dict().items():
        if value.is_floating_point() and (value.abs() > largest).any():
            logger.warning(
                "--save_dtype %s holds numbers up to %.3g and %s has larger ones: float32 is written",
                *(name, largest, tensor),
            )
            return model
    return copy.deepcopy(model).to(getattr(torch, name))


def model_to_evaluate(run: Run) -> str:
    """The model of a run without training: that of the output folder, unless `--model_name_or_path` names another.

    The model that the output folder's training started from does not count as another: the command that trained
    names it too.
    """
    output = Path(run.output_dir)
    if not (output / "config.json").is_file():
        return run.model_name_or_path
    if "model_name_or_path" in run.explicit and run.model_name_or_path != _trained_from(output):
        return run.model_name_or_path
    return run.output_dir


def _trained_from(output: Path) -> str | None:
    return atomic.read_object(output / "training_args.json").get("model_name_or_path")


def _outputs(run: Run, task: Task) -> dict[str, Any]:
    """Settings of the configuration about the outputs and, for later uses of the model, about its training."""
    settings = {"max_seq_length": run.max_seq_length, "positive_label": task.positive_name} if run.do_train else {}
    if run.do_train and task.trained_rows is not None:
        settings[SET_ASIDE] = task.trained_rows.record()
    return {**task.kind.settings(task.names), **settings}


def _masking(run: Run, config: PreTrainedConfig) -> dict[str, Any]:
    asked = {
        "pruning_method": method_of(run.pruning_method).masked_name,
        "mask_init": run.mask_init,
        "mask_scale": run.mask_scale,
    }
    if not isinstance(config, MaskedConfig):
        return asked
    for flag, value in asked.items():
        if flag in run.explicit and value != getattr(config, flag):
            raise UserError(
                f"--{flag} {value} contradicts {run.model_name_or_path}, saved with {getattr(config, flag)}"
            )
    run.pruning_method = config.pruning_method
    return {} if run.do_train else _evaluated_at(run, config)


def _evaluated_at(run: Run, config: MaskedConfig) -> dict[str, Any]:
    """The threshold of a masked model that is not trained: `--final_threshold` if given, else the saved one.

    Raises:
        UserError: there is neither, as in masked BERTs of other programs. It would be evaluated as dense.
    """
    if not method_of(config.pruning_method).has_threshold:
        return {}
    if "final_threshold" in run.explicit and run.final_threshold != config.threshold:
        return {"threshold": run.final_threshold, "global_boundary": None}
    if config.threshold is None and config.global_boundary is None:
        raise UserError(f"{run.model_name_or_path} records no threshold: give the one to use with --final_threshold")
    return {}
