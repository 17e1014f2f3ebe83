"""Texts that a vocabulary cannot spell: their share, an example, and how many become equal."""

from __future__ import annotations

import pytest
import tiny

from emmental.data.unknown_tokens import UnknownCounter, UnknownTokens, problem
from emmental.errors import UserError
from emmental.structured.texts import material

UNKNOWN = 1


def counted(texts: list) -> UnknownTokens:
    tokenizer = tiny.tokenizer()
    ids = [tokenizer(*([text] if isinstance(text, str) else text))["input_ids"] for text in texts]
    special = tokenizer.num_special_tokens_to_add(pair=not isinstance(texts[0], str))
    return UnknownCounter(tokenizer.unk_token_id, special).add(texts, ids).found()


def test_tokens_texts_and_equal_ones_by_hand():
    # kasa [UNK], kasa [UNK], kasa, [UNK] [UNK] [UNK]
    found = counted(["kasa xx", "kasa yy", "kasa", "aa bb cc"])
    assert found == UnknownTokens(tokens=8, unknown=5, texts=4, equal=2, example="aa bb cc")
    assert str(found).startswith(
        "62 % of the tokens are unknown to the tokenizer, as in 'aa bb cc'; 2 of 4 different texts have the same"
    )


def test_pairs_and_repeated_texts():
    found = counted([("kasa", "xx"), ("kasa", "xx"), ("kasa", "yy")])
    assert (found.tokens, found.unknown, found.texts, found.equal) == (6, 3, 2, 2)


def test_parts_are_one_whole_and_bytes_know_every_text():
    counter = UnknownCounter(UNKNOWN, 0)
    counter.add(["a"], [[UNKNOWN, 9]]).add(["b"], [[UNKNOWN, 9]])
    assert counter.found().equal == 2
    assert UnknownCounter(None, 0).add(["a"], [[UNKNOWN]]).found() == UnknownTokens()


def test_few_unknown_tokens_are_no_problem():
    assert problem(UnknownTokens(1000, 9, 100, 0, "x"), "dev data", False) is None
    assert problem(UnknownTokens(), "dev data", False) is None


@pytest.mark.parametrize("found", [UnknownTokens(1000, 10, 100, 0, "x"), UnknownTokens(1000, 2, 100, 2, "x")])
def test_a_warning_from_one_percent_of_tokens_or_texts(found):
    assert problem(found, "dev data", False).startswith("dev data: ")


def test_more_than_half_is_refused_unless_the_user_insists():
    found = UnknownTokens(100, 51, 100, 0, "x")
    with pytest.raises(UserError, match="give a model of this language, or --accept_unknown_tokens"):
        problem(found, "dev data", False)
    assert "51 %" in problem(found, "dev data", True)
    assert problem(UnknownTokens(4, 3, 2, 0, "x"), "dev data", False)  # of so few tokens it is only said


def test_pruning_reads_no_texts_in_an_unknown_script():
    texts = [f"ስልኩ በጣም ጥሩ {number}" for number in range(40)]
    with pytest.raises(UserError, match=r"100 % of the tokens are unknown.*accept_unknown_tokens=True"):
        material(tiny.tokenizer(), texts)
    with pytest.warns(UserWarning, match="40 of 40 different texts have the same tokens"):
        material(tiny.tokenizer(), texts, accept_unknown_tokens=True)
