"""Blocks of columns, and products with them: sparse and dense alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from emmental.export.package import StoredMatrix
from emmental.inference.sparse_matrix import (
    DenseBlockLinear,
    SparseBlockLinear,
    block_shape,
    density,
    make_linear,
    stored_to_csr,
)


@pytest.mark.parametrize(
    ("tokens", "shape"),
    [
        (1, (1, 8)),
        (8, (1, 8)),
        (9, (1, 16)),
        (32, (1, 32)),
        (33, (2, 24)),
        (65, (3, 24)),
        (97, (4, 32)),
        (128, (4, 32)),
    ],
)
def test_block_shapes(tokens, shape):
    assert block_shape(tokens) == shape


@given(st.integers(1, 5000))
def test_blocks_hold_the_tokens(tokens):
    blocks, width = block_shape(tokens)
    assert blocks * width >= tokens
    assert width % 8 == 0
    assert width <= 32
    assert (blocks - 1) * 32 < tokens


def test_stored_to_csr_by_hand():
    stored = StoredMatrix(
        (3, 4), np.array([1, 3, 8]), np.array([5, 6, -7], np.int8), np.array([1, 9, 0.5], np.float32)
    )
    matrix = stored_to_csr(stored)
    assert matrix.toarray().tolist() == [[0, 5, 0, 6], [0, 0, 0, 0], [-3.5, 0, 0, 0]]
    assert (matrix.data.dtype, matrix.indices.dtype, matrix.indptr.dtype) == (np.float32, np.int32, np.int32)
    assert density(matrix) == 0.25
    assert density(csr_array((0, 4))) == 0.0


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 20),
    columns=st.integers(1, 20),
    tokens=st.integers(1, 80),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    form=st.sampled_from([SparseBlockLinear, DenseBlockLinear]),
)
def test_products(rows, columns, tokens, share, form):
    generator = np.random.default_rng(rows * 1000 + columns)
    weight = generator.standard_normal((rows, columns)).astype(np.float32)
    weight *= generator.random((rows, columns)) < share
    bias = generator.standard_normal(rows).astype(np.float32)
    blocks, width = block_shape(tokens)
    input = torch.from_numpy(generator.standard_normal((blocks, columns, width)).astype(np.float32))
    expected = torch.from_numpy(weight) @ input + torch.from_numpy(bias)[:, None]
    linear = form(csr_array(weight), bias)
    out = torch.full((rows, blocks * width), torch.nan).view(rows, blocks, width).transpose(0, 1)
    assert linear(input, out) is out
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
    linear.add_to(input, out)
    torch.testing.assert_close(out, 2 * expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("stored", "dense_above", "form"),
    [(1, 0.3, SparseBlockLinear), (2, 0.3, DenseBlockLinear), (4, 1.0, SparseBlockLinear), (0, -1, DenseBlockLinear)],
)
def test_density_decides(stored, dense_above, form):
    matrix = csr_array(np.eye(4, dtype=np.float32)[:1] if stored == 1 else np.arange(4)[None] < stored)
    assert type(make_linear(matrix.astype(np.float32), np.zeros(1, np.float32), dense_above)) is form
