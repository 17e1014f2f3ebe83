"""A model as ONNX, in float32 and int8, checked against PyTorch by running both.

    python -m emmental.export.onnx --model_name_or_path out --output served

The folder has the layout that transformers.js reads: `onnx/model.onnx` and `onnx/model_quantized.onnx` beside
config.json, the tokenizer's files and a card. text-embeddings-inference reads `onnx/model.onnx` alone. Pruned single
weights are exact zeros there, and ONNX Runtime still multiplies by them; only `sparse` skips them.
"""

from __future__ import annotations

from emmental.optional import leave_without

if __name__ == "__main__":
    leave_without("ONNX files", "emmental.export.onnx")

import argparse
import copy
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

from emmental import atomic
from emmental.architectures import base_model_type, longest_input, takes_token_types
from emmental.command_line import user_mistakes
from emmental.data.texts import Text, read_texts
from emmental.errors import UserError
from emmental.export.arguments import folder_parser, folders, read_arguments, refuse_foreign
from emmental.export.bertarize import bertarize
from emmental.export.calibration import CALIBRATION_ROWS, DYNAMIC, FORMS, NO_DATA, STATIC, Calibration
from emmental.export.model_folder import read_model
from emmental.export.onnx_card import onnx_card
from emmental.export.onnx_heads import fix_head_counts
from emmental.export.onnx_int8 import calibration_batches, quantize_int8
from emmental.export.onnx_session import (
    EARLIER_FILES,
    FOLDER,
    INPUTS,
    INT8_FILE,
    LARGEST_FILE,
    MODEL_FILE,
    OUTPUTS,
    OnnxModel,
    load_session,
    onnx_file,
)
from emmental.export.openvino_int8 import OPENVINO_FILE, missing_package, write_openvino_int8
from emmental.export.sentence_models import copy_surroundings, read_surroundings, tag_of
from emmental.export.tokenizer import check_vocabulary, fitted_tokenizer_files, read_tokenizer_files, tokenizer_of
from emmental.patching import masked_layers
from emmental.shrinking import first_token_form

__all__ = [
    "INT8_FILE",
    "MODEL_FILE",
    "OnnxModel",
    "export_onnx",
    "export_onnx_folder",
    "largest_difference",
    "load_session",
    "onnx_file",
    "quantize_int8",
    "write_onnx_folder",
]

TOLERANCE = 1e-5
ROUNDINGS = 10.0
"""A file may differ by this many times the model's own rounding: sums in another order round differently."""
FP32, INT8 = "fp32", "int8"
_OPSET = 17  # the first with LayerNormalization as one node
_SHAPES = ((1, 1), (1, 7), (2, 16), (3, 5), (5, 29))


@dataclass(frozen=True)
class OnnxExport:
    """Sizes and differences of the files of `export_onnx_folder`.

    Attributes:
        difference: of the float32 file to PyTorch, see `largest_difference`.
        size: of the float32 file, in bytes.
        int8_difference, int8_size: the same for the int8 file; None without one.
        int8_form: the form of int8 that was kept, a name among `FORMS`; None without one.
    """

    difference: float
    size: int
    int8_difference: float | None = None
    int8_size: int | None = None
    int8_form: str | None = None


class _Named(nn.Module):
    """A model whose outputs are the tensors among `OUTPUTS` that it has, in that order."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def named(self, *inputs: Tensor) -> dict[str, Tensor]:
        found = self.model(**dict(zip(INPUTS, inputs, strict=False)), return_dict=True)
        return {name: found[name] for name in OUTPUTS if name in found}

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.named(*inputs).values())


def export_onnx(model: PreTrainedModel, path: str | Path, tolerance: float = TOLERANCE) -> float:
    """Write a model as one ONNX file with dynamic batch and length, whole or not at all; `model` stays as it is.

    Args:
        model: a plain or small encoder with any head, or a masked one, which is converted by `bertarize`.
        path: the file.
        tolerance: the largest difference accepted, see `largest_difference`. A model may also differ by `ROUNDINGS`
            times its own rounding, see `own_rounding`.

    Returns:
        `largest_difference` of file and model.

    Raises:
        UserError: the model is too large for one file, or the file's outputs differ by more; nothing is
            written then.
    """
    plain = bertarize(model) if masked_layers(model) else copy.deepcopy(model).eval()
    size = sum(value.numel() * value.element_size() for value in plain.state_dict().values())
    if size > LARGEST_FILE:
        raise UserError(
            f"the model has {size / 1e9:.1f} GB of weights; one ONNX file holds {LARGEST_FILE / 1e9:.0f} GB, and "
            "models in several files are not written"
        )
    plain.set_attn_implementation("eager")  # ONNX Runtime runs this graph's attention fastest
    with atomic.atomic_file(path) as temporary:
        _trace(plain, temporary)
        difference = largest_difference(plain, load_session(temporary))
        if difference > tolerance:
            tolerance = max(tolerance, ROUNDINGS * own_rounding(plain))
        if not difference <= tolerance:  # also true for NaN
            raise UserError(
                f"{path}: ONNX Runtime and PyTorch differ by {difference:.1e}, {tolerance:.0e} is accepted; not kept"
            )
    return difference


@torch.no_grad()
def largest_difference(model: PreTrainedModel, other: Callable[..., Mapping[str, Tensor]]) -> float:
    """The largest difference of any element of an output, over batches of several shapes, padded and full.

    An output with an element above 1 is compared relative to its largest element, as float32 rounds.
    """
    largest = []
    for inputs in _batches(model):
        wanted, got = _Named(model).named(*inputs), other(*inputs)
        for name, value in wanted.items():
            largest.append(float((got[name] - value).abs().max() / value.abs().max().clamp(min=1)))
    return max(largest) if np.isfinite(largest).all() else float("nan")


def own_rounding(model: PreTrainedModel) -> float:
    """How much rounding to float32 changes a model's outputs: `largest_difference` to itself in float64."""
    return largest_difference(model, _Named(copy.deepcopy(model).double()).named)


def export_onnx_folder(
    source: str | Path,
    target: str | Path,
    int8: bool = False,
    pruning_method: str | None = None,
    threshold: float | None = None,
    texts: Iterable[Text] | None = None,
    openvino: bool = False,
    choice: Calibration = NO_DATA,
    serve: str = FP32,
) -> OnnxExport:
    """Write the model in `source` as the folder `target`, whole or not at all.

    Args:
        source: folder of a masked, plain or small model, see `read_model`.
        target: a new folder, or one that this function made.
        int8: write an int8 model too.
        pruning_method, threshold: override what a masked model records.
        texts: sentences or pairs. With them, static int8 is tried too.
        openvino: write int8 for OpenVINO too.
        choice: how the form of int8 is chosen; its batches are made of `texts`.
        serve: see `write_onnx_folder`.

    Raises:
        UserError: as `read_model` and `export_onnx`; `target` is another existing folder; `openvino` or static int8
            without texts; `openvino` without its packages.
    """
    source, target = Path(source), Path(target)
    fixed = {"--openvino": openvino, "--int8_scales static": [*choice.forms] == [STATIC]}
    if texts is None and (flag := next((name for name, given in fixed.items() if given), None)):
        raise UserError(f"{flag} needs texts to fix its scales: give --calibration_file")
    if openvino and (package := missing_package()):
        raise UserError(f"--openvino: {package} is not installed: pip install openvino nncf")
    refuse_foreign(target, _holds_graph(target), source)
    model = read_model(source, pruning_method, threshold)
    name, files = source.resolve().name, read_tokenizer_files(source)
    check_vocabulary(files, model.config.vocab_size, source)
    card = source / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    if texts is not None:
        batches = calibration_batches(texts, tokenizer_of(source), longest_input(model.config))
        choice = replace(choice, batches=batches)
    surroundings = read_surroundings(source)
    around, pipeline = partial(copy_surroundings, source, surroundings), tag_of(surroundings, model)
    return write_onnx_folder(model, files, target, int8, name, text, choice, openvino, serve, around, pipeline)


def write_onnx_folder(
    model: PreTrainedModel,
    tokenizer_files: Mapping[str, str],
    target: Path,
    int8: bool = False,
    name: str = "model",
    card: str = "",
    calibration: Calibration = NO_DATA,
    openvino: bool = False,
    serve: str = FP32,
    around: Callable[[Path], None] | None = None,
    pipeline: str | None = None,
) -> OnnxExport:
    """Write `model` as the folder `target`: two ONNX files, config.json, the tokenizer, a card and a manifest.

    config.json has the plain model type, because the ONNX file itself holds the sizes of a small model.

    Args:
        model: masked, plain or small, in evaluation mode; it is not changed.
        tokenizer_files: name -> text.
        target: a new folder, or one that this function made.
        int8: write an int8 model too.
        name, card: of the model, for the new card.
        calibration: see `quantize_int8`.
        openvino: write `OPENVINO_FILE` too, which needs batches.
        around: writes other files that belong to the model into the folder.
        pipeline: the model's tag on the Hub; default: by its class.
        serve: what `MODEL_FILE` is, `FP32` or `INT8`. int8 then lies in both files, and fp32 in none.

    Raises:
        UserError: as `export_onnx`; `serve` is `INT8` without `int8`.
    """
    if serve == INT8 and not int8:
        raise UserError("--serve int8 needs the int8 file: omit --no-int8")
    plain = bertarize(model) if masked_layers(model) else model
    with atomic.atomic_folder(target) as temporary:
        (temporary / FOLDER).mkdir()
        stock_config(plain).save_pretrained(temporary)
        for file, text in fitted_tokenizer_files(tokenizer_files, plain.config).items():
            atomic.write_text(temporary / file, text)
        difference = export_onnx(plain, temporary / MODEL_FILE)
        result = OnnxExport(difference, (temporary / MODEL_FILE).stat().st_size)
        if int8:
            form = quantize_int8(temporary / MODEL_FILE, temporary / INT8_FILE, calibration)
            of_int8 = largest_difference(plain, load_session(temporary / INT8_FILE))
            result = OnnxExport(difference, result.size, of_int8, (temporary / INT8_FILE).stat().st_size, form)
        if openvino:
            write_openvino_int8(temporary / MODEL_FILE, temporary, calibration.batches)
        if serve == INT8:
            shutil.copyfile(temporary / INT8_FILE, temporary / MODEL_FILE)
            result = replace(result, difference=result.int8_difference, size=result.int8_size)
        files = [(MODEL_FILE, serve, result.size, result.difference)]
        if int8:
            files.append((INT8_FILE, "q8", result.int8_size, result.int8_difference))
        if around is not None:
            around(temporary)
        atomic.write_text(temporary / "README.md", onnx_card(card, name, type(plain).__name__, files, pipeline))
    return result


def stock_config(model: PreTrainedModel) -> PreTrainedConfig:
    """The configuration of the plain type, without the settings of masked and small models."""
    settings = model.config.to_dict()
    stock = CONFIG_MAPPING[base_model_type(model.config.model_type)]
    known = {*stock().to_dict(), "id2label", "label2id", "problem_type", "max_seq_length"} - {
        "model_type",
        "transformers_version",
        "dtype",
    }
    config = stock(**{key: value for key, value in settings.items() if key in known and value is not None})
    config.architectures = [type(model).__name__.removeprefix("Small")]
    return config


def _trace(plain: PreTrainedModel, path: Path) -> None:
    """Write the graph with PyTorch's tracing exporter. The newer one needs two more packages for the same graph."""
    named = _Named(first_token_form(plain)).eval()  # the exporter restores the mode of the whole
    example = _batch(plain, 2, 7)
    with torch.no_grad():
        outputs = named.named(*example)
    names = INPUTS[: len(example)]
    axes = {name: {0: "batch", value.dim() - 1: "length"} for name, value in zip(names, example, strict=True)}
    axes |= {name: {0: "batch"} for name in outputs}
    for name in {*outputs} - {"pooler_output"}:
        if outputs[name].shape[1:2] == example[0].shape[-1:]:
            axes[name] |= {1: "length"}
    if _has_choices(plain):
        for axis in axes.values():
            axis[1] = "choices"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # deprecation, and constants in the trace; the outputs are compared later
        torch.onnx.export(
            named,
            example,
            str(path),
            input_names=list(names),
            output_names=list(outputs),
            dynamic_axes=axes,
            opset_version=_OPSET,
            dynamo=False,
        )
    graph = onnx.load(path)
    fix_head_counts(graph)
    onnx.save(graph, path)


def _batches(model: PreTrainedModel) -> Iterator[tuple[Tensor, ...]]:
    longest = longest_input(model.config)
    for rows, length in (*_SHAPES, (1, 128), (2, longest)):
        yield _batch(model, rows, min(length, longest))


def _batch(model: PreTrainedModel, rows: int, length: int) -> tuple[Tensor, ...]:
    """Random input_ids, attention_mask and, if the model takes them, token_type_ids; each row is a token shorter."""
    config, generator = model.config, torch.Generator().manual_seed(0)
    shape = (rows, 2, length) if _has_choices(model) else (rows, length)
    ids = torch.randint(config.vocab_size, shape, generator=generator)
    lengths = (length - torch.arange(rows)).clamp(min=1).view(-1, *[1] * (len(shape) - 1))
    mask = (torch.arange(length) < lengths).expand(shape).long()
    if config.pad_token_id is not None:  # positions of RoBERTa count the tokens that are not padding
        ids = torch.where(ids == config.pad_token_id, (ids + 1) % config.vocab_size, ids)
        ids = ids.masked_fill(mask == 0, config.pad_token_id)
    if not takes_token_types(config):
        return ids, mask
    return ids, mask, torch.randint(config.type_vocab_size, shape, generator=generator)


def _has_choices(model: PreTrainedModel) -> bool:
    return "ForMultipleChoice" in type(model).__name__


def _holds_graph(target: Path) -> bool:
    """Whether a folder's manifest lists a graph."""
    listed = atomic.read_manifest(target) if (target / atomic.MANIFEST).is_file() else {}
    return bool({MODEL_FILE, EARLIER_FILES[MODEL_FILE]} & {*listed})


def _summary(result: OnnxExport, target: Path) -> str:
    lines = [f"{MODEL_FILE:25} {result.size / 1e6:9.3f} MB  largest difference to PyTorch {result.difference:.1e}"]
    if result.int8_size is not None:
        lines.append(
            f"{INT8_FILE:25} {result.int8_size / 1e6:9.3f} MB  largest difference to PyTorch "
            f"{result.int8_difference:.1e} ({FORMS[result.int8_form]})"
        )
    return "\n".join([*lines, str(target)])


def main(argv: Sequence[str] | None = None) -> None:
    """Export what the command line names; a mistake is one line on stderr and exit status 2."""
    parser = folder_parser(
        "Write a model as ONNX files for transformers.js and others, and check them against PyTorch.",
        "masked, plain or small",
        "onnx",
    )
    parser.add_argument(
        "--int8",
        action=argparse.BooleanOptionalAction,
        help=f"write {INT8_FILE} too: dynamic int8; with --calibration_file the best form",
        default=True,
    )
    parser.add_argument(
        "--calibration_file",
        help=f"texts, of which {CALIBRATION_ROWS} are used: dynamic and static int8 are tried on them, and the one "
        "that changes the outputs less is kept",
    )
    parser.add_argument(
        "--int8_scales",
        choices=(DYNAMIC, STATIC),
        help="write this form of int8 and try no other",
    )
    parser.add_argument(
        "--serve",
        choices=(FP32, INT8),
        default=FP32,
        help=f"what {MODEL_FILE} is; {INT8} for servers that read only that file, as text-embeddings-inference does",
    )
    parser.add_argument(
        "--openvino",
        action=argparse.BooleanOptionalAction,
        help=f"write {OPENVINO_FILE} too: int8 for OpenVINO by NNCF, which needs --calibration_file",
        default=False,
    )
    args = read_arguments(parser, argv)
    source, target = folders(args)
    with user_mistakes():
        result = export_onnx_folder(
            source,
            target,
            args.int8,
            args.pruning_method,
            args.threshold,
            None if args.calibration_file is None else read_texts(args.calibration_file, "--calibration_file"),
            args.openvino,
            Calibration(forms=(args.int8_scales,)) if args.int8_scales else NO_DATA,
            args.serve,
        )
    print(_summary(result, target))


if __name__ == "__main__":
    main()
