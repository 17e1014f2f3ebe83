"""Settings of a finished model's tokenisation."""

from __future__ import annotations

import pytest
from transformers import BertConfig

from emmental.data.tokenization import trained_length


@pytest.mark.parametrize(
    ("recorded", "length"), [(None, None), (16, 16), (32, 32), (33, None), (0, None), ("16", None), (True, None)]
)
def test_the_length_of_the_training_counts_where_the_model_takes_it(recorded, length):
    config = BertConfig(max_position_embeddings=32)
    if recorded is not None:
        config.max_seq_length = recorded
    assert trained_length(config) == length
