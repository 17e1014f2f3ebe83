"""What is known of data, model and machine when the route of a run is decided."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedConfig

from emmental.architectures import base_model_type, encoder_linears, longest_input
from emmental.data import FeatureDataset
from emmental.errors import UserError
from emmental.masked_models import MaskedConfig
from emmental.methods import RECOMMENDED_FOR_FEW, Method
from emmental.runs.precision import bf16_in_hardware
from emmental.runs.processes import memory_of
from emmental.runs.run import Run
from emmental.structured.vocabulary import Vocabulary
from emmental.training.models import load_config
from emmental.training.recipe import ALL_TOKENS, AUTO_TOKENS

BATCH = 32


@dataclass(frozen=True)
class TokenFacts:
    """Numbers of tokens, for a run that removes some.

    Attributes:
        whole: all that the model has.
        fewest: those that `--vocabulary auto` keeps at least: the needed ones, and all that the rows use twice.
    """

    whole: int
    fewest: int


@dataclass(frozen=True)
class DataFacts:
    """The facts that the route depends on.

    Attributes:
        examples: labelled training rows.
        hidden_size: width of the encoder.
        processes: number of processes that share a batch.
        has_bf16: the processor or the GPU has bfloat16 in hardware.
        rows: training rows, with those of `--unlabeled_file`.
        mean_length: tokens of a row.
        outputs: of the classifier; 1 for a regression.
        model_type: of the dense encoder.
        positions: the longest input of the model, in tokens.
        weights, encoder_weights, embedding_weights: numbers in the dense model, in its encoder's matrices, and in its
            word embeddings.
        memory: bytes of the machine that this process may use, or of its GPU.
        memory_for_few: every process has twice the memory that the method for few weights needs to cut.
        tokens: None if all tokens stay.
        saved_method: the pruning method of a masked model; None if the model is not masked.
        model: its flag and name, for messages.
    """

    examples: int
    hidden_size: int
    processes: int = 1
    has_bf16: bool = False
    rows: int = 0
    mean_length: float = 0.0
    outputs: int = 2
    model_type: str = ""
    positions: int = 512
    weights: int = 0
    encoder_weights: int = 0
    embedding_weights: int = 0
    memory: int = 0
    memory_for_few: bool = False
    tokens: TokenFacts | None = None
    saved_method: str | None = None
    model: str = ""

    @property
    def batch_size(self) -> int:
        """Rows of one process in an update."""
        return max(1, BATCH // self.processes)

    @property
    def updates_per_epoch(self) -> int:
        """Updates in one pass over the data."""
        return math.ceil(self.examples / (self.batch_size * self.processes))

    def memory_to_cut(self, method: Method) -> int:
        """Bytes that a method needs to cut this encoder."""
        return method.bytes_a_weight * self.encoder_weights


def data_facts(run: Run, dataset: FeatureDataset, rows: FeatureDataset, tokenizer: Any) -> DataFacts:
    """Gather the facts. All processes get the same ones.

    Args:
        run: of the trainer, with its task.
        dataset: labelled training rows.
        rows: these and those of `--unlabeled_file`.
        tokenizer: of the model.

    Raises:
        UserError: the model's configuration cannot be found, or `--vocabulary` does not fit the tokenizer.
    """
    config, called = load_config(run)
    device, world = run.processes.device, run.processes.world_size
    weights, encoder, embeddings = numbers_in(config)
    memory = memory_of(device) // (world if device.type == "cpu" else 1)  # without GPUs, the processes share it
    too_little = memory < 2 * RECOMMENDED_FOR_FEW.bytes_a_weight * encoder
    return DataFacts(
        examples=len(dataset),
        hidden_size=config.hidden_size,
        processes=world,
        has_bf16=torch.cuda.is_bf16_supported() if device.type == "cuda" else bf16_in_hardware(),
        rows=len(rows),
        mean_length=float(rows.lengths.mean()),
        outputs=run.task.num_labels,
        model_type=base_model_type(config.model_type),
        positions=longest_input(config),
        weights=weights,
        encoder_weights=encoder,
        embedding_weights=embeddings,
        memory=memory,
        memory_for_few=not run.processes.any(too_little),
        tokens=_token_facts(run.vocabulary, tokenizer, config, rows),
        saved_method=config.pruning_method if isinstance(config, MaskedConfig) else None,
        model=called,
    )


def _token_facts(asked: str, tokenizer: Any, config: PreTrainedConfig, rows: FeatureDataset) -> TokenFacts | None:
    if asked == ALL_TOKENS:
        return None
    try:
        vocabulary = Vocabulary(tokenizer, config)
    except UserError as error:
        raise UserError(f"--{error}") from None
    if asked != AUTO_TOKENS:
        vocabulary.check_size(int(asked), "--vocabulary")
    return TokenFacts(vocabulary.whole, vocabulary.seen_often(rows.token_counts()))


def numbers_in(config: PreTrainedConfig) -> tuple[int, int, int]:
    """Numbers in a classifier with this config, in its encoder's matrices, and in its word embeddings."""
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    modules = dict(model.named_modules())
    encoder = sum(modules[name].weight.numel() for name in encoder_linears(model))
    return sum(one.numel() for one in model.parameters()), encoder, model.get_input_embeddings().weight.numel()
