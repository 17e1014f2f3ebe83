"""A model's logits for a data set, over all processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from emmental.data import FeatureDataset, SequentialBatches, batch_loader
from emmental.patching import renew_masks
from emmental.runs.precision import Precision
from emmental.runs.processes import Environment


@torch.no_grad()
def predict_logits(
    model: nn.Module,
    dataset: FeatureDataset,
    batch_size: int,
    environment: Environment,
    precision: Precision,
    description: str = "Evaluating",
    observe: Callable[[dict[str, Tensor], Any], None] | None = None,
) -> Tensor:
    """Logits of every row, in the order of the rows, the same on every rank.

    The model is left in the mode it came in, and nothing is drawn from the random generators.

    Args:
        model: a classifier, not wrapped; its masks are those of evaluation.
        dataset: the rows.
        batch_size: of one process; every rank computes the batches that a single process would.
        environment: this process.
        precision: of the forward pass.
        description: of the bar.
        observe: is given every batch with the model's outputs, hidden states among them.

    Returns:
        (N, C) float32 on the CPU.
    """
    batches = SequentialBatches(dataset.lengths, batch_size, environment.rank, environment.world_size)
    dataset.pad_to_multiple_of = precision.pad_to_multiple_of
    loader = batch_loader(dataset, batches, pin_memory=environment.device.type == "cuda")
    was_training = model.training
    model.eval()
    renew_masks(model)
    options = {} if observe is None else {"output_hidden_states": True}
    indices, logits = [], []
    for batch in tqdm(loader, desc=description, disable=not environment.is_main, leave=False, dynamic_ncols=True):
        with precision.autocast():
            outputs = model(**model_inputs(batch, environment.device, model), **options)
        if observe is not None:
            observe(batch, outputs)
        counted = batch["weights"] > 0
        indices.append(batch["index"][counted])
        logits.append(outputs.logits.float()[counted.to(environment.device)])
    model.train(was_training)
    order = torch.cat(environment.gather(torch.cat(indices)))
    gathered = torch.cat(environment.gather(torch.cat(logits).cpu()))
    in_order = torch.empty_like(gathered)
    in_order[order] = gathered
    return in_order


def model_inputs(batch: dict[str, Tensor], device: torch.device, model: nn.Module | None = None) -> dict[str, Tensor]:
    """What the forward of a model (None: of BERT) takes of a batch, on `device`: no token types where it has none."""
    names = ["input_ids", "attention_mask"]
    config = getattr(model, "config", None)
    if config is None or getattr(config, "type_vocab_size", 0) > 1:
        names.append("token_type_ids")
    return {name: batch[name].to(device, non_blocking=True) for name in names}
