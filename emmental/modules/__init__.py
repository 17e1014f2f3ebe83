"""Masks from scores, and the linear layer that uses them."""

from emmental.modules.binarizer import MagnitudeBinarizer, ThresholdBinarizer, TopKBinarizer
from emmental.modules.masked_nn import MaskedLinear

__all__ = ["MagnitudeBinarizer", "MaskedLinear", "ThresholdBinarizer", "TopKBinarizer"]
