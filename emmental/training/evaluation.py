"""A model's logits for a data set, over all processes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from tqdm import tqdm

from emmental.data import FeatureDataset, SequentialBatches, batch_loader
from emmental.training.distributed import Environment
from emmental.training.precision import Precision


@torch.no_grad()
def predict_logits(
    model: nn.Module,
    dataset: FeatureDataset,
    batch_size: int,
    environment: Environment,
    precision: Precision,
    description: str = "Evaluating",
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

    Returns:
        (N, C) float32 on the CPU.
    """
    batches = SequentialBatches(dataset.lengths, batch_size, environment.rank, environment.world_size)
    dataset.pad_to_multiple_of = precision.pad_to_multiple_of
    loader = batch_loader(dataset, batches, pin_memory=environment.device.type == "cuda")
    was_training = model.training
    model.eval()
    indices, logits = [], []
    for batch in tqdm(loader, desc=description, disable=not environment.is_main, leave=False, dynamic_ncols=True):
        with precision.autocast():
            output = model(**model_inputs(batch, environment.device)).logits
        counted = batch["weights"] > 0
        indices.append(batch["index"][counted])
        logits.append(output.float()[counted.to(output.device)])
    model.train(was_training)
    order = torch.cat(environment.gather(torch.cat(indices)))
    gathered = torch.cat(environment.gather(torch.cat(logits).cpu()))
    in_order = torch.empty_like(gathered)
    in_order[order] = gathered
    return in_order


def model_inputs(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """What a BERT's forward takes of a batch, on `device`."""
    names = ("input_ids", "attention_mask", "token_type_ids")
    return {name: batch[name].to(device, non_blocking=True) for name in names}
