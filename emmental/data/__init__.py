"""Tokenised features, their cache, and batches."""

from emmental.data.batching import LengthGroupedBatches, RowBatch, SequentialBatches, padding_share
from emmental.data.features import FeatureDataset, batch_loader, load_features

__all__ = [
    "FeatureDataset",
    "LengthGroupedBatches",
    "RowBatch",
    "SequentialBatches",
    "batch_loader",
    "load_features",
    "padding_share",
]
