"""Packing by hand, attention against PyTorch's own, and the norm over columns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from emmental.inference import sparse_encoder
from emmental.inference.sparse_encoder import ColumnNorm, Workspace, attend, pack

MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 1], [1, 0, 0, 0]], dtype=torch.bool)


def test_packing_by_hand():
    (packing,) = pack(MASK)
    assert packing.index.tolist() == [4, 12, 0, 1, 2, 8, 9, 11]
    assert packing.groups == ((2, 1), (2, 3))
    assert (packing.blocks, packing.width, packing.columns) == (1, 8, 8)


@pytest.mark.parametrize(
    ("tokens_at_once", "parts"),
    [(8, [((2, 1), (2, 3))]), (7, [((2, 1), (1, 3)), ((1, 3),)]), (2, [((2, 1),), ((1, 3),), ((1, 3),)])],
)
def test_parts_of_a_batch(tokens_at_once, parts):
    packings = pack(MASK, tokens_at_once)
    assert [packing.groups for packing in packings] == parts
    assert torch.cat([packing.index for packing in packings]).tolist() == [4, 12, 0, 1, 2, 8, 9, 11]


def test_long_sequences_attend_alone():
    (packing,) = pack(torch.ones(2, 49, dtype=torch.bool))
    assert packing.groups == ((1, 49), (1, 49))
    assert pack(torch.ones(2, 48, dtype=torch.bool))[0].groups == ((2, 48),)


def test_first_tokens_are_needed():
    with pytest.raises(ValueError, match="first token of every sequence"):
        pack(torch.tensor([[True, True], [False, True]]))


@pytest.mark.parametrize("sequences", [1, 3])
@pytest.mark.parametrize("at_once", [1, 60, 1 << 20])
def test_attention(sequences, at_once, monkeypatch):
    monkeypatch.setattr(sparse_encoder, "_SCORES_AT_ONCE", at_once)
    torch.manual_seed(0)
    heads, size, length = 2, 4, 5
    columns = torch.randn(3, heads, size, 2 + sequences * length)
    out = torch.full((heads, size, 2 + sequences * length), 7.0)
    attend(columns[..., 2:], out[..., 2:], sequences, Workspace())
    q, k, v = columns[..., 2:].view(3, heads, size, sequences, length).permute(0, 3, 1, 4, 2)
    expected = F.scaled_dot_product_attention(q, k, v, scale=1.0).permute(1, 3, 0, 2).reshape(heads, size, -1)
    torch.testing.assert_close(out[..., 2:], expected, atol=1e-6, rtol=0)
    assert (out[..., :2] == 7).all()


def test_norm_over_columns():
    torch.manual_seed(0)
    weight, bias = np.arange(6, dtype=np.float32), np.ones(6, np.float32)
    blocks = 3 + torch.randn(2, 6, 8)
    expected = F.layer_norm(blocks.transpose(1, 2), (6,), torch.from_numpy(weight), torch.from_numpy(bias), 1e-5)
    norm = ColumnNorm(weight, bias, 1e-5)
    assert norm(blocks, Workspace()) is blocks
    torch.testing.assert_close(blocks, expected.transpose(1, 2), atol=1e-5, rtol=0)


def test_workspace_keeps_its_memory():
    workspace = Workspace()
    large = workspace.take("a", 2, 3, 4)
    small = workspace.take("a", 5)
    assert (large.shape, small.shape, small.data_ptr()) == ((2, 3, 4), (5,), large.data_ptr())
    assert workspace.take("b", 5).data_ptr() != large.data_ptr()
    assert workspace.take("a", 25).numel() == 25
    assert workspace.take("a", 0, 4).shape == (0, 4)
