"""A pruned model for CPU inference that computes with its non-zeros only.

    python -m emmental.export.sparse --model model.emmental --input sentences.txt --output predictions.jsonl

`load_sparse` gives a Transformers model whose encoder is a `SparseEncoder`: it is called, and used in pipelines, like
any other. A model that is hardly pruned stays dense.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import torch
import transformers
from scipy.sparse import csr_array
from torch import Tensor
from transformers import BertConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.masking_utils import AttentionMaskInterface
from transformers.models.bert.modeling_bert import BertLayer

from emmental.atomic import atomic_file
from emmental.command_line import OneLineParser, leave_if, range_problems, user_mistakes
from emmental.errors import UserError
from emmental.export.bertarize import add_masking_flags, bertarize
from emmental.export.layer_weights import LayerWeights, layer_weights
from emmental.export.model_folder import PLAIN_CLASSES, build_model, plain_class_name, read_model
from emmental.export.package import Package, read_package
from emmental.export.storage import checked_config, to_model, to_package
from emmental.export.tokenizer import load_tokenizer
from emmental.inference.prediction import STANDARD_INPUT, Predictor, json_line, read_texts
from emmental.inference.sparse_encoder import SparseEncoder
from emmental.inference.sparse_matrix import DENSE_ABOVE, stored_to_csr
from emmental.patching import masked_layers

_LAYERS = "encoder.layer."
_MASK_AS_GIVEN = "emmental_mask_as_given"
_WORTH_IT = 0.9
"""The products of a sparse model must take less than this share of the dense ones, or its packing gains nothing."""


def load_sparse(
    path: str | Path,
    dense_above: float = DENSE_ABOVE,
    pruning_method: str | None = None,
    threshold: float | None = None,
) -> PreTrainedModel:
    """A model that runs on its non-zeros, on the CPU, in float32, in evaluation mode.

    It is of the plain Transformers class and called like it, with any batch size and length:
    `model(input_ids, attention_mask, token_type_ids).logits`. Padding is not computed: hidden states there are 0.
    `torch.set_num_threads` decides on how many threads.

    Args:
        path: a package, or the folder of a bertarized or masked model.
        dense_above: density above which a matrix is multiplied dense: a non-zero costs as much as 1 / dense_above
            weights of a dense matrix. Where that says that hardly anything is gained, the model is the dense one, and
            so it is where `SparseEncoder` would compute something else.
        pruning_method, threshold: override what a masked model records, see `read_model`.

    Raises:
        UserError: as `read_package` and `read_model`; overrides for a package; no number for `dense_above`.
    """
    if not Path(path).is_file():
        return sparsify(read_model(path, pruning_method, threshold), dense_above)
    if pruning_method is not None or threshold is not None:
        raise UserError(f"{path} is a package: --pruning_method and --threshold are for masked models")
    return _from_package(read_package(path), str(path), dense_above)


def sparsify(model: PreTrainedModel, dense_above: float = DENSE_ABOVE) -> PreTrainedModel:
    """The sparse form of a plain or masked model, which stays as it is; see `load_sparse`."""
    plain = bertarize(model) if masked_layers(model) else model
    return _from_package(to_package(plain), type(model).__name__, dense_above)


def _from_package(package: Package, source: str, dense_above: float) -> PreTrainedModel:
    if math.isnan(dense_above):
        raise UserError("--dense_above accepts a density, not NaN")
    config = checked_config(package, source)
    if _cost(package, dense_above) > _WORTH_IT or not _is_plain(config):
        return to_model(package, source).requires_grad_(False)
    cls = PLAIN_CLASSES[plain_class_name(package.config.get("architectures"), source)]
    arrays = package.arrays()
    outside = {name: torch.from_numpy(array) for name, array in arrays.items() if _LAYERS not in name}
    without_encoder = copy.deepcopy(config)
    without_encoder.num_hidden_layers = 0
    model = build_model(cls, without_encoder, outside, source)
    AttentionMaskInterface.register(_MASK_AS_GIVEN, _mask_as_given)
    model.config.num_hidden_layers = config.num_hidden_layers
    model.config._attn_implementation = _MASK_AS_GIVEN
    model.base_model.encoder = SparseEncoder(model.config, _all_layers(package, arrays, config, source), dense_above)
    return model.requires_grad_(False).eval()


def _is_plain(config: BertConfig) -> bool:
    """Whether tokens attend to all others, and the activation has nothing learnt in it."""
    known = config.hidden_act in ACT2FN  # another one is refused where the layers are made
    return not (config.is_decoder or (known and list(ACT2FN[config.hidden_act].parameters())))


def _cost(package: Package, dense_above: float) -> float:
    """Modelled time of the encoder's products, each in its faster form, as a share of that of the dense ones."""
    if dense_above <= 0:
        return 1.0
    sizes = {name: math.prod(matrix.shape) for name, matrix in package.matrices.items()}
    cost = sum(min(len(matrix.values) / dense_above, sizes[name]) for name, matrix in package.matrices.items())
    return cost / sum(sizes.values()) if sizes else 1.0


def _mask_as_given(attention_mask: Tensor | None = None, **_: object) -> Tensor | None:
    """In the place of the masks of scores that other kinds of attention need."""
    return attention_mask


def _all_layers(
    package: Package, arrays: dict[str, np.ndarray], config: BertConfig, source: str
) -> Iterator[LayerWeights]:
    """The layers one by one, so that intermediate forms of one at a time are held."""
    expected = _layer_shapes(config, source)
    prefix = next(iter(package.matrices)).partition(_LAYERS)[0] + _LAYERS
    known = {f"{prefix}{index}.{name}" for index in range(config.num_hidden_layers) for name in expected}
    strange = {*package.matrices, *(name for name in arrays if _LAYERS in name)} ^ known
    if strange:
        name = min(strange)
        raise UserError(f"{source}: {name} is {'missing' if name in known else 'no part of the model'}")

    def activation(values: np.ndarray) -> np.ndarray:
        return ACT2FN[config.hidden_act](torch.from_numpy(values)).numpy()

    for index in range(config.num_hidden_layers):
        found = {
            name: _checked(package, arrays, f"{prefix}{index}.{name}", expected[name], source) for name in expected
        }
        matrices = {name: array for name, array in found.items() if len(expected[name]) == 2}
        vectors = {name: array for name, array in found.items() if len(expected[name]) == 1}
        yield layer_weights(matrices, vectors, config.num_attention_heads, activation)


def _layer_shapes(config: BertConfig, source: str) -> dict[str, tuple[int, ...]]:
    try:
        with torch.device("meta"):
            return {name: tuple(value.shape) for name, value in BertLayer(config).state_dict().items()}
    except Exception as error:  # a configuration that makes no layer fails in many ways
        raise UserError(f"{source}: its configuration makes no model ({' '.join(str(error).split())})") from error


def _checked(
    package: Package, arrays: dict[str, np.ndarray], name: str, shape: tuple[int, ...], source: str
) -> csr_array | np.ndarray:
    """A matrix, as it was stored or not, or a vector, of that shape and with finite numbers."""
    stored = package.matrices.get(name)
    found = arrays[name] if stored is None else stored_to_csr(stored)
    if found.shape != shape:
        raise UserError(f"{source}: {name} has shape {list(found.shape)}, not {list(shape)}")
    if len(shape) == 2:
        found = csr_array(found)
    if not np.isfinite(found.data if len(shape) == 2 else found).all():
        raise UserError(f"{source}: {name} holds NaN or infinite numbers")
    return found


@contextmanager
def _writer(target: str) -> Iterator[IO[str]]:
    """Standard output for `-`; else a file that appears when it is complete, in the place of earlier predictions."""
    if target == STANDARD_INPUT:
        yield sys.stdout
        return
    if Path(target).is_dir():
        raise UserError(f"--output {target} is a folder; it accepts a file, or - (standard output)")
    if Path(target).exists() and not _holds_predictions(Path(target)):
        raise FileExistsError(f"--output {target} exists and holds no predictions; it is left alone")
    with atomic_file(target) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        yield file


def _holds_predictions(path: Path) -> bool:
    """Whether the file is empty or begins as what `main` writes."""
    beginning = json_line(0, {}).removesuffix("}").encode()
    with open(path, "rb") as file:
        return file.read(len(beginning)) in (b"", beginning)


def _require_model(path: Path) -> None:
    if not (path.is_file() or (path / "config.json").is_file()):
        raise UserError(f"--model {path} is no package and has no config.json; it accepts a package or model folder")


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser("Classify sentences with a pruned model that computes with its non-zeros only.")
    parser.add_argument("--model", required=True, help="a package, or folder of a bertarized or masked model")
    parser.add_argument(
        "--input",
        default="-",
        help="text, a sentence a line; .tsv, .csv or .jsonl with a column "
        "sentence (sentence1 and sentence2: pairs); - for standard input",
    )
    parser.add_argument("--output", default="-", help="JSON lines, one for each sentence; - for standard output")
    parser.add_argument("--tokenizer_name", help="folder of the tokenizer, where the model does not hold it")
    parser.add_argument("--batch_size", type=int, default=32, help="sentences computed together, of similar length")
    parser.add_argument("--max_seq_length", type=int, help="tokens after which text is cut; the model's most")
    parser.add_argument("--threads", type=int, help="CPU threads; PyTorch's choice if absent")
    parser.add_argument(
        "--dense_above", type=float, default=DENSE_ABOVE, help="density of a matrix from which it is multiplied dense"
    )
    add_masking_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Classify what the command line names; a mistake is one line on stderr and exit status 2."""
    parser = _parser()
    args = parser.parse_args(argv)
    leave_if(range_problems(args, {"batch_size": 1, "threads": 1, "max_seq_length": 1, "dense_above": 0}), parser.prog)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    with user_mistakes():
        texts = read_texts(args.input)
        _require_model(Path(args.model))
        model = load_sparse(args.model, args.dense_above, args.pruning_method, args.threshold)
        tokenizer = load_tokenizer(args.model if args.tokenizer_name is None else args.tokenizer_name)
        longest = model.config.max_position_embeddings if args.max_seq_length is None else args.max_seq_length
        predictor = Predictor(model, tokenizer, longest)
        with _writer(args.output) as file:
            for index, answer in enumerate(predictor.predict(texts, args.batch_size)):
                file.write(json_line(index, answer) + "\n")


if __name__ == "__main__":
    main()
