"""Fewer tokens: nothing becomes unknown, ids and embeddings follow, and `auto` keeps the answers."""

from __future__ import annotations

import json
import random
import warnings
from collections import Counter

import pytest
import tiny_models
import tiny_vocabulary
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForMaskedLM,
    BertForTokenClassification,
    PreTrainedTokenizerFast,
    RobertaForMaskedLM,
    XLMRobertaTokenizer,
)

import emmental
from emmental.data.tokenization import plain_text_backend
from emmental.errors import UserError
from emmental.structured import vocabulary
from emmental.structured.smaller_tokenizer import (
    choose,
    id_order,
    needed_ids,
    pieces_of,
    read_state,
    smaller_tokenizer,
)
from emmental.structured.texts import material, spelt_again
from emmental.structured.vocabulary import embedding_weights, fewer_embeddings, reduce_vocabulary, reduced, saving
from emmental.task_heads import Answers, task_head

TEXTS = tiny_vocabulary.texts()


def fewer(tokenizer, counts, size=0):
    """The tokenizer with the tokens that must stay, and those of the highest counts up to `size`."""
    state = read_state(tokenizer)
    pieces = pieces_of(state)
    needed = needed_ids(state, pieces, tokenizer.all_special_ids)
    kept = choose(pieces, needed, Counter(counts), max(size, len(needed)))
    return smaller_tokenizer(tokenizer, state, pieces, id_order(state, pieces, kept))


def unknown_tokens(tokenizer, text):
    encoding = plain_text_backend(tokenizer).encode(text, add_special_tokens=False)
    return sum(number == tokenizer.unk_token_id for number in encoding.ids)


SOME = st.text(
    alphabet=st.one_of(st.sampled_from(tiny_vocabulary.LETTERS + " "), st.characters(codec="utf-8")), max_size=30
)
SMALLEST = {}


def smallest(model_type):
    """As few tokens as possible; made once."""
    if model_type not in SMALLEST:
        SMALLEST[model_type] = fewer(tiny_vocabulary.tokenizer(model_type), {})
    return SMALLEST[model_type]


@pytest.mark.parametrize("model_type", tiny_models.MODEL_TYPES)
@settings(max_examples=60, deadline=None)
@given(text=SOME)
def test_nothing_becomes_unknown(model_type, text):
    whole, small = tiny_vocabulary.tokenizer(model_type), smallest(model_type)
    assert len(small) < len(whole)
    if unknown_tokens(whole, text) == 0:
        assert unknown_tokens(small, text) == 0


def word_pieces(tokens):
    vocabulary = {token: number for number, token in enumerate(["[PAD]", "[UNK]", *tokens])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")


def unigrams(tokens, scores):
    vocabulary = [("<pad>", 0.0), ("<unk>", 0.0), *zip(tokens, scores, strict=False)]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=1))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>")


WORD = st.text("abcde", min_size=1, max_size=4)


@settings(max_examples=300, deadline=None)
@given(
    words=st.sets(WORD, min_size=3, max_size=12),
    later=st.sets(WORD, min_size=3, max_size=12),
    texts=st.lists(st.text("abcde", min_size=1, max_size=9), min_size=20, max_size=40),
    seed=st.integers(0, 9),
)
def test_vocabularies_without_all_characters(words, later, texts, seed):
    """Any set of tokens, however odd: a token goes only where the others spell every text that it was in."""
    ordered = [sorted(words), sorted(later)]
    drawing = random.Random(seed)
    scores = [-drawing.uniform(1, 15) for _ in range(12)]
    for whole in (word_pieces([*ordered[0], *(f"##{each}" for each in ordered[1])]), unigrams(ordered[0], scores)):
        counts = {number: drawing.randint(0, 3) for number in range(len(whole))}
        for size in (0, len(whole) * 2 // 3):
            small = fewer(whole, counts, size)
            known = [text for text in texts if unknown_tokens(whole, text) == 0]
            assert [text for text in known if unknown_tokens(small, text)] == []


def test_a_token_that_others_do_not_spell_stays():
    """Worked by hand: "##cd" has no "##c". Without "ab", the word "abcd" would be "a", "##bc", and then unknown."""
    whole = word_pieces(["a", "##b", "ab", "##bc", "##cd", "xy", "x", "##y"])
    small = fewer(whole, {})
    assert whole.tokenize("abcd") == small.tokenize("abcd") == ["ab", "##cd"]
    assert whole.tokenize("xy") == ["xy"]
    assert small.tokenize("xy") == ["x", "##y"]


def test_a_token_that_no_word_holds_goes():
    """Punctuation splits "[new]" before WordPiece sees it, so it does not matter that "[" is no token."""
    whole = word_pieces(["a", "##b", "ab", "[new]"])
    assert "[new]" not in fewer(whole, {}).get_vocab()
    assert "[new]" in fewer(whole, {5: 1}, size=5).get_vocab()


def test_merges_that_lead_nowhere_go():
    """Kept: "low", with the syllable on its way, and the 256 bytes. The merges that are left keep their order."""
    merges = [("o", "w"), ("e", "r"), ("l", "ow"), ("low", "er")]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<pad>", "<unk>", *alphabet, *("".join(pair) for pair in merges)]
    backend = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>")
    small = fewer(whole, {tokens.index("low"): 5, tokens.index("lower"): 1}, size=260)
    assert len(small) == 260
    assert read_state(small)["model"]["merges"] == [["o", "w"], ["l", "ow"]]
    assert whole.tokenize("lower") == ["lower"]
    assert small.tokenize("lower") == ["low", "e", "r"]
    assert fewer(whole, {tokens.index("low"): 5}, size=259).tokenize("low") == ["l", "ow"]


def test_scores_of_unigrams_stay():
    whole = unigrams(["a", "b", "ab", "ba"], [-3.0, -4.0, -1.0, -2.0])
    small = fewer(whole, {4: 5}, size=5)
    assert read_state(small)["model"]["vocab"] == [
        ["<pad>", 0.0],
        ["<unk>", 0.0],
        ["a", -3.0],
        ["b", -4.0],
        ["ab", -1.0],
    ]
    assert small.tokenize("abba") == ["ab", "b", "a"]


@pytest.mark.parametrize("model_type", tiny_models.MODEL_TYPES)
def test_a_text_of_tokens_that_stay_gets_the_same_answer(model_type, tmp_path):
    """After saving and loading too, with padding, for one text and for a pair."""
    tokenizer = tiny_vocabulary.tokenizer(model_type)
    model = tiny_vocabulary.model(model_type, tokenizer)
    size = len(smallest(model_type)) + 60
    small, fewer_tokens = reduce_vocabulary(model, tokenizer, TEXTS, size)
    assert len(fewer_tokens) == small.config.vocab_size == small.get_input_embeddings().num_embeddings == size
    for name in ("pad", "cls", "sep", "mask", "unk", "bos", "eos"):
        assert getattr(fewer_tokens, f"{name}_token") == getattr(tokenizer, f"{name}_token")
        number = getattr(small.config, f"{name}_token_id", None)
        assert number in (None, getattr(fewer_tokens, f"{name}_token_id"))
    small.save_pretrained(tmp_path)
    fewer_tokens.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    read = AutoTokenizer.from_pretrained(tmp_path)
    same = [text for text in TEXTS if tokenizer.tokenize(text) == fewer_tokens.tokenize(text)][:6]
    assert len(same) >= 2
    for inputs in ((same,), (same[:1], same[1:2])):
        options = {"padding": True, "truncation": True, "return_tensors": "pt"}
        with torch.no_grad():
            expected = model(**tokenizer(*inputs, **options)).logits
            for each, its in ((small, fewer_tokens), (again, read)):
                torch.testing.assert_close(each(**its(*inputs, **options)).logits, expected)


@pytest.mark.parametrize("model_type", tiny_models.MODEL_TYPES)
def test_the_folder_spells_as_the_object_does(model_type, tmp_path):
    small = smallest(model_type)
    small.save_pretrained(tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS[:40], "Kein Wort: ÄÖ €5 <mask> [SEP]"]:
        assert read(text)["input_ids"] == small(text)["input_ids"]
        assert max(read(text)["input_ids"]) < len(small)
    assert {file.name for file in tmp_path.iterdir()} <= {"tokenizer.json", "tokenizer_config.json"}
    assert json.loads((tmp_path / "tokenizer.json").read_text())["padding"] is None


def padding_late(model_type):
    """A tokenizer whose padding token stands behind tokens that go."""
    tokenizer = tiny_vocabulary.tokenizer(model_type)
    state = read_state(tokenizer)
    pad = state["model"]["vocab"].pop("<pad>")
    assert pad == 1
    vocabulary = {token: number - (number > pad) for token, number in state["model"]["vocab"].items()}
    state["model"]["vocab"] = {**vocabulary, "<pad>": len(vocabulary)}
    state["added_tokens"] = []
    state["post_processor"] = None
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)))
    made.add_special_tokens({"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>"})
    return made


def test_positions_that_count_from_the_padding_move_with_it():
    """RoBERTa's first token has position `pad_token_id + 1`: its row of the position embeddings moves."""
    tokenizer = padding_late("roberta")
    pad = tokenizer.pad_token_id
    assert pad == len(tokenizer) - 1 > 400
    longest = pad + 1 + tiny_models.LONGEST
    model = tiny_vocabulary.model("roberta", tokenizer, max_position_embeddings=longest)
    small, fewer_tokens = reduce_vocabulary(model, tokenizer, TEXTS, 300)
    assert small.config.pad_token_id == fewer_tokens.pad_token_id < 300
    assert small.config.max_position_embeddings - small.config.pad_token_id == longest - pad
    embeddings = [each.roberta.embeddings for each in (model, small)]
    assert [each.position_embeddings.padding_idx for each in embeddings] == [pad, fewer_tokens.pad_token_id]
    assert torch.equal(*(each.position_embeddings.weight[-tiny_models.LONGEST :] for each in embeddings))
    same = [text for text in TEXTS if tokenizer.tokenize(text) == fewer_tokens.tokenize(text)][:6]
    with torch.no_grad():
        expected, reached = (
            each(**its(same, padding=True, return_tensors="pt")).logits
            for each, its in ((model, tokenizer), (small, fewer_tokens))
        )
    torch.testing.assert_close(reached, expected)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("model_type", "cls"), [("bert", BertForMaskedLM), ("roberta", RobertaForMaskedLM)])
def test_output_embeddings_follow(model_type, cls, tied):
    tokenizer = tiny_vocabulary.tokenizer(model_type)
    config = tiny_vocabulary.model(model_type, tokenizer, tie_word_embeddings=tied).config
    model = cls(config).eval()
    torch.nn.init.normal_(model.get_output_embeddings().bias)
    found = reduced(model, tokenizer, TEXTS, len(smallest(model_type)) + 60)
    inputs, outputs = found.model.get_input_embeddings().weight, found.model.get_output_embeddings().weight
    assert (inputs is outputs) == tied
    text = next(text for text in TEXTS if tokenizer.tokenize(text) == found.tokenizer.tokenize(text))
    with torch.no_grad():
        before = model(**tokenizer(text, return_tensors="pt")).logits[..., found.order]
        after = found.model(**found.tokenizer(text, return_tensors="pt")).logits
    torch.testing.assert_close(after, before)


def test_added_tokens_stay_with_their_embeddings():
    tokenizer = tiny_models.tokenizer("bert").train_new_from_iterator(TEXTS, 250)
    tokenizer.add_tokens(["<price>"])
    model = tiny_vocabulary.model("bert", tokenizer)
    small, fewer_tokens = reduce_vocabulary(model, tokenizer, TEXTS, 150)
    old, new = (each.convert_tokens_to_ids("<price>") for each in (tokenizer, fewer_tokens))
    assert (old, new) == (len(tokenizer) - 1, 149)
    assert fewer_tokens.tokenize("abc<price>")[-1] == "<price>"
    assert torch.equal(small.get_input_embeddings().weight[new], model.get_input_embeddings().weight[old])


def test_dtype_mode_and_originals_stay():
    tokenizer = tiny_vocabulary.tokenizer("bert")
    model = tiny_vocabulary.model("bert", tokenizer).to(torch.bfloat16).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    small, _ = reduce_vocabulary(model, tokenizer, TEXTS, 150)
    assert (small.dtype, small.training, model.config.vocab_size) == (torch.bfloat16, True, len(tokenizer))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_fewer_rows_by_hand():
    tokenizer = tiny_vocabulary.tokenizer("bert")
    model = tiny_vocabulary.model("bert", tokenizer)
    small = fewer_embeddings(model, [0, 7, 3])
    assert torch.equal(small.get_input_embeddings().weight, model.get_input_embeddings().weight[[0, 7, 3]])
    ids = (small.config.pad_token_id, small.config.sep_token_id, small.config.cls_token_id)
    assert ids == (0, 2, None)  # they were 0, 3 and 2; no token has the old 2 now


def automatic(model_type, texts):
    """Model, tokenizer, and what "auto" finds for the texts."""
    tokenizer = tiny_vocabulary.tokenizer(model_type)
    model = tiny_vocabulary.model(model_type, tokenizer)
    rows = material(tokenizer, texts, max_length=tiny_models.LONGEST, head=task_head(model))
    return rows, tokenizer, reduced(model, tokenizer, texts, "auto", rows)


def test_auto_keeps_what_the_texts_use_twice_and_the_answers():
    _, tokenizer, found = automatic("bert", TEXTS)
    assert found.changed < 0.01
    counts = Counter(number for text in TEXTS for number in tokenizer(text, add_special_tokens=False)["input_ids"])
    assert {number for number, count in counts.items() if count >= 2} <= {*found.order}


@pytest.mark.parametrize(
    ("others", "tried", "size"),
    [((), [250, 110], 110), ((2,), [250, 110, 220], 220), ((2, 3), [250, 110, 220], 250)],
)
def test_auto_doubles_until_few_answers_change(monkeypatch, others, tried, size):
    """110 tokens are used twice. `others`: attempts (the first: the whole model) in which an answer changes."""
    sizes = []

    def remembered(model, batches, head):
        sizes.append(model.config.vocab_size)
        last = int(len(sizes) in others)
        return Answers(torch.eye(2)[[0] * 9 + [last]], torch.ones(10, dtype=torch.int64))

    monkeypatch.setattr(vocabulary, "answers", remembered)
    monkeypatch.setattr(vocabulary.Vocabulary, "seen_often", lambda source, counts: 110)
    _, _, found = automatic("bert", TEXTS)
    assert sizes == tried
    assert (found.changed, found.model.config.vocab_size) == (0.0, size)


def test_auto_needs_answers_to_whole_texts():
    tokenizer = tiny_vocabulary.tokenizer("bert")
    config = tiny_vocabulary.model("bert", tokenizer).config
    with pytest.raises(UserError, match="vocabulary auto: the answers of token classifiers change with the tokens"):
        reduce_vocabulary(BertForTokenClassification(config), tokenizer, TEXTS)
    small, _ = reduce_vocabulary(BertForTokenClassification(config), tokenizer, TEXTS, 150)
    assert small.config.vocab_size == 150


def test_prune_returns_the_tokenizer_too():
    """Heads, neurons and tokens go together. The recovery is taught by the dense model on its own tokens."""
    tokenizer = tiny_vocabulary.tokenizer("bert")
    model = tiny_vocabulary.model("bert", tokenizer)
    torch.nn.init.ones_(model.classifier.bias)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small, fewer_tokens = emmental.prune(model, tokenizer, TEXTS, keep=0.5, vocabulary=150, updates=2)
        several, _ = emmental.prune(model, tokenizer, iter(TEXTS), keep=[0.5, 0.3], vocabulary="auto")
    assert len(fewer_tokens) == small.config.vocab_size == 150
    assert [type(each).__name__ for each in several] == ["SmallBertForSequenceClassification"] * 2
    assert model.config.vocab_size == len(tokenizer)
    assert small(**fewer_tokens(TEXTS[0], return_tensors="pt")).logits.shape == (1, 2)
    tokens = BertForTokenClassification(model.config)
    torch.nn.init.ones_(tokens.classifier.bias)
    with pytest.raises(UserError, match="vocabulary is for answers to whole texts, not for token classifiers"):
        emmental.prune(tokens, tokenizer, TEXTS, keep=0.5, vocabulary=150)


def test_the_teacher_reads_its_own_tokens():
    """Row by row the same texts, in the order of the dense model's, also those that are held out."""
    tokenizer = tiny_vocabulary.tokenizer("bert")
    model = tiny_vocabulary.model("bert", tokenizer)
    rows = material(tokenizer, TEXTS, max_length=tiny_models.LONGEST, head=task_head(model))
    again = spelt_again(rows, smallest("bert"))
    for one, other in ((rows.encodings, again.encodings), (rows.check, again.check)):
        assert len(one) == len(other)
    held_out = [row for batch in again.check for row in batch["input_ids"]]
    for parts, row in zip(rows.held_out, held_out, strict=True):
        wanted = smallest("bert")(*parts, truncation=True, max_length=tiny_models.LONGEST)["input_ids"]
        assert row[: len(wanted)].tolist() == wanted


def test_what_fewer_tokens_would_save(monkeypatch):
    """Worked by hand: 100 of 250 tokens stay, 1,024 numbers each, so 0.6144 MB go."""
    tokenizer = tiny_vocabulary.tokenizer("bert")
    model = tiny_vocabulary.model("bert", tokenizer, hidden_size=1024, num_hidden_layers=1, intermediate_size=1)
    assert embedding_weights(model) == 250 * 1024
    monkeypatch.setattr(vocabulary.Vocabulary, "seen_often", lambda source, counts: 100)
    monkeypatch.setattr(vocabulary, "_WORTH_SAYING", 0.0)
    whole = sum(each.numel() for each in model.parameters()) * 4e-6
    hardly = "MB are embeddings of tokens that your texts hardly use: --vocabulary auto"
    assert saving(model, tokenizer, Counter(), "--vocabulary") == f"1 of {whole:.0f} {hardly}"
    monkeypatch.setattr(vocabulary, "_WORTH_SAYING", 0.2)
    assert saving(model, tokenizer, Counter(), "--vocabulary") is None


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (3, r"vocabulary accepts auto or \d+ \(characters and special tokens always stay\) to 250 tokens, not 3"),
        (251, "to 250 tokens, not 251"),
        ("some", "vocabulary accepts auto or a number of tokens that stay, not 'some'"),
        (0.5, "not 0.5"),
        (True, "not True"),
    ],
)
def test_sizes_that_cannot_be(size, message):
    tokenizer = tiny_vocabulary.tokenizer("bert")
    with pytest.raises(UserError, match=message):
        reduce_vocabulary(tiny_vocabulary.model("bert", tokenizer), tokenizer, TEXTS, size)


def test_tokenizers_whose_words_nothing_spells():
    backend = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "ab": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    whole = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")
    with pytest.raises(UserError, match="accepts tokenizers of the kinds WordPiece, BPE, Unigram, not WordLevel"):
        fewer(whole, {})


@pytest.mark.slow
def test_the_file_of_a_multilingual_vocabulary_falls_by_nine_tenths(tmp_path):
    """XLM-R's size: 250,002 tokens, of which the texts use some 100. The folder is read back and spells all texts."""
    drawing, letters = random.Random(0), [chr(number) for number in range(0x4E00, 0x4E00 + 5000)]
    used = [(f"▁{word}", -8.0) for word in {word for text in TEXTS for word in text.split()}]
    words = {"".join(drawing.choices(letters, k=drawing.randint(2, 5))) for _ in range(260_000)}
    characters = [(letter, -14.0) for letter in [*letters, *tiny_vocabulary.LETTERS, "▁"]]
    special = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    pieces = [*special, *used, *characters]
    pieces += [(word, -12.0) for word in sorted(words)[: 250_001 - len(pieces)]] + [("<mask>", 0.0)]
    tokenizer = XLMRobertaTokenizer(vocab=pieces, model_max_length=32)
    assert len(tokenizer) == 250_002
    model = tiny_vocabulary.model("xlm-roberta", tokenizer)
    small, fewer_tokens = reduce_vocabulary(model, tokenizer, TEXTS, 10_000)
    for folder, each in (("whole", model), ("small", small)):
        each.save_pretrained(tmp_path / folder)
    fewer_tokens.save_pretrained(tmp_path / "small")
    sizes = [(tmp_path / folder / "model.safetensors").stat().st_size for folder in ("whole", "small")]
    assert sizes[1] < 0.1 * sizes[0]
    read = AutoTokenizer.from_pretrained(tmp_path / "small")
    assert read(TEXTS[0], return_tensors="pt")["input_ids"].max() < len(read) == 10_000
    assert read.decode(read(TEXTS[0])["input_ids"], skip_special_tokens=True) == TEXTS[0]
    same = [each(**made(TEXTS[0], return_tensors="pt")).logits for each, made in ((model, tokenizer), (small, read))]
    torch.testing.assert_close(*same)
    for text in ("".join(drawing.choices(letters, k=30)) for _ in range(20)):
        assert unknown_tokens(read, text) == unknown_tokens(tokenizer, text) == 0
