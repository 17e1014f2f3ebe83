"""A model's logits for a data set, over all processes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from emmental.architectures import takes_broadcast_mask, takes_token_types
from emmental.data import FeatureDataset, SequentialBatches, batch_loader
from emmental.errors import UserError
from emmental.modules import devices
from emmental.patching import renew_masks
from emmental.runs.precision import Precision
from emmental.runs.processes import Processes
from emmental.tasks import Task, compute_metrics


@torch.no_grad()
def predict_logits(
    model: nn.Module,
    dataset: FeatureDataset,
    batch_size: int,
    processes: Processes,
    precision: Precision,
    description: str = "Evaluating",
    rows: np.ndarray | None = None,
) -> Tensor:
    """Logits of every row, in the order of the rows, the same on every rank.

    The model keeps its mode, and no random numbers are drawn.

    Args:
        model: a classifier, not wrapped; its masks are those of evaluation.
        dataset: the rows.
        batch_size: of one process. Each batch holds the same rows for any number of ranks.
        processes: this process.
        precision: of the forward pass.
        description: label of the progress bar.
        rows: the rows to compute; default: all.

    Returns:
        (N, C) float32 on the CPU; NaN in rows that were not asked for.

    Raises:
        UserError: an answer is NaN or infinite.
    """
    batches = SequentialBatches(dataset.lengths, batch_size, processes.rank, processes.world_size, rows)
    dataset.pad_to_multiple_of = precision.pad_to_multiple_of
    loader = batch_loader(dataset, batches, pin_memory=processes.device.type == "cuda")
    was_training = model.training
    model.eval()
    renew_masks(model)
    indices, logits = [], []
    for batch in tqdm(loader, desc=description, disable=not processes.is_main, leave=False, dynamic_ncols=True):
        with precision.autocast():
            outputs = model(**model_inputs(batch, processes.device, model))
        counted = batch["weights"] > 0
        indices.append(batch["index"][counted])
        logits.append(outputs.logits.float()[counted.to(processes.device)])
    model.train(was_training)
    order = torch.cat(processes.gather(torch.cat(indices)))
    gathered = torch.cat(processes.gather(torch.cat(logits).cpu()))
    in_order = gathered.new_full((len(dataset), gathered.shape[1]), torch.nan)
    in_order[order] = gathered
    if broken := int((~gathered.isfinite()).any(1).sum()):
        raise UserError(
            f"{description}: the model's answers to {broken} of {len(gathered)} rows are NaN or infinite: a weight is "
            f"too large for {str(precision.dtype or torch.float32).removeprefix('torch.')}, or the model is damaged"
        )
    return in_order


def metric_of_new_rows(task: Task, predictions: np.ndarray, dataset: FeatureDataset) -> dict[str, float]:
    """The task's main metric on the dev rows that are no training rows, under a name of its own.

    Empty if all are, none is, or it is not known.

    Args:
        task: of the predictions.
        predictions: (N,) class ids, or scores.
        dataset: the dev rows.
    """
    if dataset.known is None or dataset.known.all() or not dataset.known.any():
        return {}
    new = ~dataset.known
    return {
        f"{task.primary_metric}_new_texts": compute_metrics(task, predictions[new], dataset.labels[new])[
            task.primary_metric
        ]
    }


def model_inputs(batch: dict[str, Tensor], device: torch.device, model: nn.Module) -> dict[str, Tensor]:
    """The inputs that a model takes from a batch, on `device`; no token types if it has none.

    On a GPU the mask has the form that attention uses unchanged, if the model allows that: reading its values would
    wait for the GPU.
    """
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if takes_token_types(model.config) else [])]
    inputs = {name: batch[name].to(device, non_blocking=True) for name in names}
    if not devices.is_on_host(inputs["attention_mask"]) and takes_broadcast_mask(model.config):
        inputs["attention_mask"] = inputs["attention_mask"].bool()[:, None, None, :]
    return inputs
