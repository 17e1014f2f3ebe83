"""Cuts heads and neurons that pruning has emptied: matrices become smaller, so every engine is faster.

python -m emmental.export.shrink --model_name_or_path out --output small
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel

from emmental.architectures import encoder_linears
from emmental.command_line import user_mistakes
from emmental.export.arguments import folder_parser, folders, has_card, read_arguments, refuse_foreign, write_model
from emmental.export.bertarize import bertarize
from emmental.export.model_folder import read_model
from emmental.patching import masked_layers
from emmental.shrinking import as_plain, fold_constants, layer_sizes, shrink

_MARK = "<!-- written by emmental.export.shrink -->"


def shrink_emptied(model: PreTrainedModel) -> PreTrainedModel:
    """The model without the heads and neurons that pruning has emptied; `model` is not changed.

    Logits in evaluation stay the same. Returns a small model, or a plain one if a plain type can hold it.

    Args:
        model: masked, plain or small, of a known type.
    """
    plain = bertarize(model) if masked_layers(model) else copy.deepcopy(model).eval()
    small = shrink(plain, fold_constants(plain))
    return as_plain(small) or small


def shrink_folder(
    source: str | Path, target: str | Path, pruning_method: str | None = None, threshold: float | None = None
) -> PreTrainedModel:
    """Write `shrink_emptied` of the model in `source` to the folder `target`, whole or not at all; return it.

    `target` gets config.json, model.safetensors, the modelling files of a small model, the tokenizer's files and a
    model card, README.md.

    Args:
        source: folder of a model, see `read_model`.
        target: a new folder, or one that this function made.
        pruning_method, threshold: override what a masked model records.

    Raises:
        UserError: as `read_model`; `target` is another existing folder.
    """
    source, target = Path(source), Path(target)
    refuse_foreign(target, has_card(target, _MARK), source)
    model = read_model(source, pruning_method, threshold)
    small = shrink_emptied(model)
    write_model(small, source, target, _card(source, model, small))
    return small


def summary(model: PreTrainedModel, small: PreTrainedModel) -> list[str]:
    """What is left: one line for each encoder layer, and one for the encoder."""
    pairs = zip(layer_sizes(model), layer_sizes(small), strict=True)
    lines = [
        f"layer {index}: {now.heads} of {before.heads} heads, {now.neurons} of {before.neurons} neurons"
        for index, (before, now) in enumerate(pairs)
    ]
    before, now = (
        sum(each.get_submodule(name).weight.numel() for name in encoder_linears(each)) for each in (model, small)
    )
    return [*lines, f"encoder: {now:,} of {before:,} weights ({100 * now / before:.1f} %)"]


def _card(source: Path, model: PreTrainedModel, small: PreTrainedModel) -> str:
    left = "\n".join(f"- {line}" for line in summary(model, small))
    front = "---\nlibrary_name: transformers\ntags:\n- pruning\n---"
    return f"""{front}
{_MARK}
# {source.resolve().name}, shrunk

`{type(small).__name__}`: heads and feed-forward neurons that pruning had emptied are cut out. Same logits.

{left}

If the model type starts with `small_`, load it after `import emmental`, or with `trust_remote_code=True`, with
Transformers 5.23 or newer. The tokenizer needs no code: give `AutoTokenizer` `trust_remote_code=False`.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Shrink what the command line names; a mistake is one line on stderr and exit status 2."""
    parser = folder_parser(
        "Remove the heads and neurons that pruning has emptied from a model: same logits, less work.",
        "masked, plain or small",
        "small",
    )
    args = read_arguments(parser, argv)
    source, target = folders(args)
    with user_mistakes():
        small = shrink_folder(source, target, args.pruning_method, args.threshold)
        print(target, *summary(read_model(source, args.pruning_method, args.threshold), small), sep="\n")


if __name__ == "__main__":
    main()
