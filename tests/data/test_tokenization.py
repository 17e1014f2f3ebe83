"""Settings of a finished model's tokenisation."""

from __future__ import annotations

import pytest
import tiny
from transformers import BertConfig

from emmental.data.tokenization import check_token_ids, trained_length
from emmental.errors import UserError


@pytest.mark.parametrize(
    ("recorded", "length"), [(None, None), (16, 16), (32, 32), (33, None), (0, None), ("16", None), (True, None)]
)
def test_the_length_of_the_training_counts_where_the_model_takes_it(recorded, length):
    config = BertConfig(max_position_embeddings=32)
    if recorded is not None:
        config.max_seq_length = recorded
    assert trained_length(config) == length


def test_an_id_beyond_the_embeddings_is_named():
    """The tiny vocabulary has the ids 0 to 40."""
    check_token_ids(tiny.tokenizer(), BertConfig(vocab_size=41), "--tokenizer_name x", "the model y")
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["printer"])
    with pytest.raises(UserError, match=r"--tokenizer_name x: the tokenizer has the id 41 \('printer'\), the model y"):
        check_token_ids(tokenizer, BertConfig(vocab_size=41), "--tokenizer_name x", "the model y")
    with pytest.raises(UserError, match="has the id 40"):
        check_token_ids(tiny.tokenizer(), BertConfig(vocab_size=40), "--tokenizer_name x", "the model y")
