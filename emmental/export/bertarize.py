"""Makes a plain model from a masked one: pruned weights become exact zeros, and mask scores are removed.

python -m emmental.export.bertarize --model_name_or_path out --output plain
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel

import emmental
from emmental import atomic
from emmental.command_line import user_mistakes
from emmental.errors import UserError
from emmental.export.arguments import folder_parser, folders, has_card, read_arguments, refuse_foreign, write_model
from emmental.export.model_folder import build_model, read_model, read_settings
from emmental.masked_models import unmasked_class
from emmental.patching import masked_layers, unmask_linears
from emmental.pretrained import weight_files
from emmental.pruning import remaining_weights

_MARK = "<!-- written by emmental.export.bertarize -->"
_PIPELINES = {
    "ForSequenceClassification": "text-classification",
    "ForMultipleChoice": "multiple-choice",
    "ForQuestionAnswering": "question-answering",
    "ForTokenClassification": "token-classification",
    "ForMaskedLM": "fill-mask",
    "Model": "feature-extraction",
}
"""End of a class name -> what the Hub calls its task."""


def bertarize(model: PreTrainedModel) -> PreTrainedModel:
    """The plain Transformers model with the same logits as `model` in evaluation, on the same device.

    `model` is not changed. Weights are multiplied by their masks (`l0`: by the gates of evaluation); pruned ones are
    exactly +0.0.

    Raises:
        UserError: the model is not masked.
    """
    plain = copy.deepcopy(model).eval()
    for linear in unmask_linears(plain):
        weight = plain.get_submodule(linear).weight.data
        weight.add_(0.0)  # -0.0 + 0.0 is +0.0
    cls = unmasked_class(type(model))
    return build_model(cls, model.config.to_plain(), plain.state_dict(), cls.__name__).to(model.device)


def bertarize_folder(
    source: str | Path, target: str | Path, pruning_method: str | None = None, threshold: float | None = None
) -> PreTrainedModel:
    """Write the plain form of the masked model in `source` to the folder `target`, whole or not at all; return it.

    `target` gets config.json, model.safetensors, the tokenizer's files and a model card, README.md.

    Args:
        source: folder of a masked model, see `read_model`.
        target: a new folder, or one that this function made.
        pruning_method, threshold: replace what the model records.

    Raises:
        UserError: as `read_model`; the model is not masked; `target` is another existing folder.
    """
    source, target = Path(source), Path(target)
    refuse_foreign(target, has_card(target, _MARK), source)
    if not read_settings(source)["model_type"].startswith("masked_"):
        raise UserError(f"--model_name_or_path {source} is not masked, so there is nothing to convert")
    masked = read_model(source, pruning_method, threshold)
    plain = bertarize(masked)
    write_model(plain, source, target, _model_card(source, masked, plain))
    return plain


def _model_card(source: Path, masked: PreTrainedModel, plain: PreTrainedModel) -> str:
    """Where the model comes from, and how it was pruned."""
    config, name = masked.config, type(plain).__name__
    files = weight_files(source)
    rows = {
        "pruning method": config.pruning_method,
        "threshold": "none" if config.threshold is None else f"{config.threshold:g}",
        "global top-k": "no" if config.global_boundary is None else f"yes, score above {config.global_boundary[0]:g}",
        "remaining weights of the pruned matrices": f"{remaining_weights(masked):.2f} %",
        "pruned matrices": str(len(masked_layers(masked))),
        "converted from": ", ".join(f"{source.resolve().name}/{file.name}" for file in files),
        "its SHA-256": ", ".join(atomic.sha256_of(file) for file in files),
        "made with": f"emmental {emmental.__version__}, PyTorch {torch.__version__}, "
        f"Transformers {transformers.__version__}",
    }
    task = next(task for end, task in _PIPELINES.items() if name.endswith(end))
    front = [
        "---",
        "library_name: transformers",
        f"pipeline_tag: {task}",
        "tags:",
        f"- {plain.config.model_type}",
        "- pruning",
    ]
    table = ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())]
    heading = f"# {source.resolve().name}, bertarized"
    text = f"A plain `{name}`: weights that fine-pruning removed are exact zeros, and it loads with `from_pretrained`."
    return "\n".join([*front, "---", _MARK, heading, "", text, "", *table, ""])


def main(argv: Sequence[str] | None = None) -> None:
    """Convert what the command line names; a mistake is one line on stderr and exit status 2."""
    parser = folder_parser(
        "Convert a masked model to a plain Transformers model whose pruned weights are exact zeros.",
        "masked, or a checkpoint",
        "bertarized",
    )
    args = read_arguments(parser, argv)
    source, target = folders(args)
    with user_mistakes():
        bertarize_folder(source, target, args.pruning_method, args.threshold)
    print(target)


if __name__ == "__main__":
    main()
