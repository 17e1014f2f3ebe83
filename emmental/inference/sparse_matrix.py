"""Products with the matrices of a pruned encoder: compressed sparse rows in MKL, or dense if that is faster.

Activations are feature-major and lie in blocks: (blocks, features, width), each block contiguous, a column for each
token. The sparse product of MKL is fastest on `WIDTH` columns: their 32 sums stay in registers for a whole row.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod

import numpy as np
import scipy.sparse
import torch
from torch import Tensor, nn

from emmental.export.package import StoredMatrix

WIDTH = 32
"""Most columns of a block. With 33 to 128 the sparse product has 3/4 of the speed of 32."""
_STEP = 8
"""Widths are multiples of this; others are slower by up to a third."""
DENSE_ABOVE = 0.3
"""Density above which a matrix is multiplied dense.

The time of a sparse product grows with its non-zeros, that of a dense one with all weights. Measured, one
non-zero costs as much as 2.5 dense weights (AVX-512, 1 and 2 threads, 32 to 1024 tokens); 3 leaves some reserve.
"""


def block_shape(tokens: int) -> tuple[int, int]:
    """(blocks, width) for a number of tokens, with little padding."""
    blocks = math.ceil(tokens / WIDTH)
    return blocks, _STEP * math.ceil(tokens / blocks / _STEP)


def stored_to_csr(matrix: StoredMatrix) -> scipy.sparse.csr_array:
    """The non-zeros of a stored matrix, float32 with int32 indices."""
    rows, columns = matrix.shape
    row_of, column_of = np.divmod(matrix.positions, columns)
    starts = np.zeros(rows + 1, dtype=np.int32)
    np.cumsum(np.bincount(row_of, minlength=rows), out=starts[1:])
    return scipy.sparse.csr_array((matrix.weights(), column_of.astype(np.int32), starts), shape=matrix.shape)


def density(matrix: scipy.sparse.csr_array) -> float:
    """Share of the entries that are stored; 0 for a matrix without entries."""
    rows, columns = matrix.shape
    return matrix.nnz / (rows * columns) if rows * columns else 0.0


def make_linear(matrix: scipy.sparse.csr_array, bias: np.ndarray, dense_above: float = DENSE_ABOVE) -> BlockLinear:
    """The faster form of x -> W x + b.

    Args:
        matrix: (out, in) float32.
        bias: (out,) float32.
        dense_above: density above which the dense form is taken.
    """
    form = DenseBlockLinear if density(matrix) > dense_above else SparseBlockLinear
    return form(matrix, bias)


class BlockLinear(nn.Module, ABC):
    """x -> W x + b on blocks of columns."""

    bias: Tensor

    def __init__(self, bias: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("bias", torch.from_numpy(bias.astype(np.float32))[:, None])  # (out, 1)

    @abstractmethod
    def forward(self, blocks: Tensor, out: Tensor) -> Tensor:
        """Write W x + b.

        Args:
            blocks: (blocks, in, width) float32, contiguous.
            out: (blocks, out, width) float32, any strides in which a row of a block is contiguous.

        Returns:
            `out`.
        """

    @abstractmethod
    def add_to(self, blocks: Tensor, out: Tensor) -> Tensor:
        """Add W x + b to `out`; arguments as for `forward`."""


class SparseBlockLinear(BlockLinear):
    """W in compressed sparse rows."""

    weight: Tensor

    def __init__(self, matrix: scipy.sparse.csr_array, bias: np.ndarray) -> None:
        super().__init__(bias)
        parts = (matrix.indptr.astype(np.int32), matrix.indices.astype(np.int32), matrix.data.astype(np.float32))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta", category=UserWarning)
            # MKL takes 32-bit indices unchanged; PyTorch would convert 64-bit ones at every call.
            weight = torch.sparse_csr_tensor(*map(torch.from_numpy, parts), size=matrix.shape, check_invariants=True)
        self.register_buffer("weight", weight)

    def forward(self, blocks: Tensor, out: Tensor) -> Tensor:
        """See `BlockLinear.forward`."""
        return self._accumulate(blocks, out.copy_(self.bias))

    def add_to(self, blocks: Tensor, out: Tensor) -> Tensor:
        """See `BlockLinear.add_to`."""
        return self._accumulate(blocks, out.add_(self.bias))

    def _accumulate(self, blocks: Tensor, out: Tensor) -> Tensor:
        for block, result in zip(blocks, out, strict=True):
            torch.addmm(result, self.weight, block, out=result)
        return out


class DenseBlockLinear(BlockLinear):
    """W with all its zeros; one product over all blocks, because dense products are faster with many columns."""

    weight: Tensor

    def __init__(self, matrix: scipy.sparse.csr_array, bias: np.ndarray) -> None:
        super().__init__(bias)
        self.register_buffer("weight", torch.from_numpy(matrix.toarray().astype(np.float32)))

    def forward(self, blocks: Tensor, out: Tensor) -> Tensor:
        """See `BlockLinear.forward`."""
        return out.copy_(self._product(blocks))

    def add_to(self, blocks: Tensor, out: Tensor) -> Tensor:
        """See `BlockLinear.add_to`."""
        return out.add_(self._product(blocks))

    def _product(self, blocks: Tensor) -> Tensor:
        """(blocks, out, width), in which all columns of a feature are adjacent."""
        count, features, width = blocks.shape
        columns = blocks.transpose(0, 1).reshape(features, count * width)
        return torch.addmm(self.bias, self.weight, columns).view(-1, count, width).transpose(0, 1)
