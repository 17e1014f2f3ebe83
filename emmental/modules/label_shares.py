"""Where a new classifier of several labels begins: at the share of rows that have each label.

Rare labels have logits far below 0. A classifier that begins at 0 would spend hundreds of updates to get there.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from emmental.modules.output_linear import is_untrained, output_linear


def start_at_shares(model: nn.Module, labels: np.ndarray | None) -> None:
    """Set the bias of a new classifier of several labels to the log odds of each label. Others stay as they are.

    A share of n in N rows counts as (n + 1/2) / (N + 1), so that no log odds are infinite.

    Args:
        model: with (N, L) labels it is a classifier of several labels. It is new if its bias is exactly zero.
        labels: of the training rows; rows of NaN do not count.
    """
    if labels is None or labels.ndim != 2:
        return
    linear = output_linear(model)
    if not is_untrained(linear):
        return
    known = labels[~np.isnan(labels).any(axis=1)].astype(np.float64)
    shares = (known.sum(axis=0) + 0.5) / (len(known) + 1)
    with torch.no_grad():
        linear.bias.copy_(torch.from_numpy(np.log(shares / (1 - shares))))
