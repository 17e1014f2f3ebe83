"""Tokenizer and model as the flags ask for them, and every contradiction in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
from transformers import AutoConfig, BertConfig, BertForSequenceClassification

from emmental import MaskedBertConfig, MaskedBertForSequenceClassification
from emmental.errors import UserError
from emmental.patching import masked_layers, set_threshold
from emmental.tasks import resolve_task
from emmental.training.models import load_model, load_tokenizer, model_to_evaluate
from emmental.training.tasks import find_task


@pytest.fixture
def masked_dir(tmp_path: Path, bert_dir: Path) -> Path:
    """A masked checkpoint: soft movement at 0.3, scores around 2."""
    config = MaskedBertConfig.from_dense(
        BertConfig.from_pretrained(bert_dir), pruning_method="sigmoied_threshold", mask_scale=2.0
    )
    model = MaskedBertForSequenceClassification.from_pretrained(bert_dir, config=config)
    set_threshold(model, 0.3)
    model.save_pretrained(tmp_path / "masked")
    tiny.tokenizer().save_pretrained(tmp_path / "masked")
    return tmp_path / "masked"


class TestTokenizer:
    def test_that_of_the_model(self, make_args):
        assert load_tokenizer(make_args()).get_vocab() == tiny.tokenizer().get_vocab()

    def test_another(self, make_args, tmp_path):
        other = tiny.tokenizer()
        other.add_tokens(["extra"])
        other.save_pretrained(tmp_path / "tokenizer")
        assert "extra" in load_tokenizer(make_args(tokenizer_name=tmp_path / "tokenizer")).get_vocab()

    def test_a_length_beyond_the_tokenizers(self, make_args):
        with pytest.raises(ValueError, match="--max_seq_length 33 is more than the 32 tokens"):
            load_tokenizer(make_args(max_seq_length=33))

    def test_missing(self, make_args, tmp_path):
        with pytest.raises(UserError, match="nowhere"):
            load_tokenizer(make_args(model_name_or_path=tmp_path / "nowhere"))


class TestModel:
    def test_sizes_that_are_not_those_of_the_weights(self, make_args, tmp_path):
        """They never become random weights, in training either."""
        folder = tiny.save_bert(tmp_path / "misfit")
        settings = json.loads((folder / "config.json").read_text()) | {"intermediate_size": 24}
        (folder / "config.json").write_text(json.dumps(settings))
        args = make_args(model_name_or_path=folder)
        with pytest.raises(UserError, match=r"do not fit the weights \(bert.encoder.layer.0.intermediate"):
            load_model(args, args.task, tiny.tokenizer())

    def test_a_dense_checkpoint_is_masked_as_the_flags_say(self, make_args, bert_dir):
        args = make_args(
            pruning_method="sigmoid_threshold", mask_scale=2.197, initial_threshold=0, final_threshold=0.1
        )
        model = load_model(args, args.task, tiny.tokenizer())
        assert isinstance(model, MaskedBertForSequenceClassification)
        for layer in masked_layers(model).values():
            assert layer.pruning_method == "sigmoied_threshold"
            assert torch.equal(layer.mask_scores, torch.full_like(layer.weight, 2.197))
        dense = BertForSequenceClassification.from_pretrained(bert_dir)
        assert torch.equal(model.classifier.weight, dense.classifier.weight)
        assert model.config.id2label == {0: "negative", 1: "positive"}

    def test_dense_training(self, make_args):
        args = make_args(model_type="bert")
        model = load_model(args, args.task, tiny.tokenizer())
        assert type(model) is BertForSequenceClassification
        assert model.config.model_type == "bert"

    def test_a_head_for_other_labels_starts_anew_and_is_named(self, make_args, caplog):
        args = make_args("mnli")
        with caplog.at_level("INFO"):
            model = load_model(args, args.task, tiny.tokenizer())
        assert model.classifier.weight.shape == (3, 16)
        assert model.config.id2label == {0: "contradiction", 1: "entailment", 2: "neutral"}
        assert model.config.problem_type == "single_label_classification"
        assert "so started at random: classifier.bias, classifier.weight" in caplog.text

    def test_regression_has_one_output(self, make_args):
        args = make_args("sts-b")
        model = load_model(args, args.task, tiny.tokenizer())
        assert model.classifier.weight.shape == (1, 16)
        assert model.config.problem_type == "regression"

    def test_a_masked_checkpoint_keeps_its_own_masking(self, make_args, masked_dir):
        args = make_args(model_name_or_path=masked_dir)
        model = load_model(args, args.task, tiny.tokenizer())
        assert args.pruning_method == model.config.pruning_method == "sigmoied_threshold"
        assert model.config.threshold == 0.3
        layer = next(iter(masked_layers(model).values()))
        assert (layer.pruning_method, layer.threshold) == ("sigmoied_threshold", 0.3)
        assert torch.equal(layer.mask_scores, torch.full_like(layer.weight, 2.0))


class TestContradictions:
    @staticmethod
    def refused(args: object) -> str:
        with pytest.raises(ValueError, match=" ") as caught:
            load_model(args, args.task, tiny.tokenizer())
        message = str(caught.value)
        assert "\n" not in message
        return message

    def test_flags_against_a_masked_checkpoint(self, make_args, masked_dir):
        assert "--pruning_method topK contradicts" in self.refused(
            make_args(model_name_or_path=masked_dir, pruning_method="topK")
        )
        assert "--mask_scale 0.5 contradicts" in self.refused(make_args(model_name_or_path=masked_dir, mask_scale=0.5))
        args = make_args(
            model_name_or_path=masked_dir,
            pruning_method="sigmoied_threshold",
            initial_threshold=0,
            final_threshold=0.5,
        )
        assert load_model(args, args.task, tiny.tokenizer()).config.pruning_method == "sigmoied_threshold"

    def test_a_masked_checkpoint_without_a_threshold_is_evaluated_at_one_that_is_given(self, make_args, masked_dir):
        """As masked BERTs of other programs are; without one it is refused rather than evaluated as dense."""
        config = json.loads((masked_dir / "config.json").read_text())
        (masked_dir / "config.json").write_text(json.dumps({**config, "threshold": None}))
        given = {"model_name_or_path": masked_dir, "do_eval": True}
        args = make_args(**given)
        with pytest.raises(UserError, match="records no threshold: give the one to use with --final_threshold"):
            load_model(args, args.task, tiny.tokenizer())
        args = make_args(**given, final_threshold=0.05)
        model = load_model(args, args.task, tiny.tokenizer())
        assert {layer.threshold for layer in masked_layers(model).values()} == {model.config.threshold} == {0.05}

    def test_a_recorded_threshold_is_used_unless_another_is_given(self, make_args, masked_dir):
        for given, used in (({}, 0.3), ({"final_threshold": 0.3}, 0.3), ({"final_threshold": 0.2}, 0.2)):
            args = make_args(model_name_or_path=masked_dir, do_eval=True, **given)
            assert load_model(args, args.task, tiny.tokenizer()).config.threshold == used

    def test_dense_training_of_a_masked_checkpoint(self, make_args, masked_dir):
        assert "--model_type bert trains dense" in self.refused(
            make_args(model_name_or_path=masked_dir, model_type="bert")
        )

    @pytest.mark.parametrize(
        ("model_type", "message"),
        [
            ("t5", "is an encoder-decoder (t5); encoders are accepted: bert, roberta, "),
            ("gpt2", "is a decoder (gpt2); encoders are accepted: bert, roberta, "),
            ("funnel", "is not known; known are bert, roberta, "),
        ],
    )
    def test_no_known_encoder(self, make_args, tmp_path, model_type, message):
        AutoConfig.for_model(model_type).save_pretrained(tmp_path / "other")
        assert message in self.refused(make_args(model_name_or_path=tmp_path / "other"))

    def test_another_type_than_asked_for(self, make_args):
        assert "--model_type roberta, but " in self.refused(make_args(model_type="roberta"))

    def test_more_tokens_than_positions(self, make_args, tmp_path):
        tiny.save_bert(tmp_path / "short", max_position_embeddings=8)
        message = self.refused(make_args(model_name_or_path=tmp_path / "short"))
        assert "--max_seq_length 16 is more than the 8 positions" in message

    def test_a_tokenizer_of_a_larger_vocabulary(self, make_args, tmp_path):
        tiny.save_bert(tmp_path / "small", vocab_size=20)
        message = self.refused(make_args(model_name_or_path=tmp_path / "small"))
        assert "the tokenizer has the id 40" in message
        assert message.endswith("has 20 tokens: they do not belong together")

    def test_evaluating_with_the_wrong_number_of_outputs(self, make_args):
        args = make_args("mnli", do_eval=True)
        with pytest.raises(UserError, match=r"has 2 outputs, --task_name mnli needs 3: LABEL_0, LABEL_1 against "):
            find_task(args)

    def test_training_on_other_classes(self, make_args, tmp_path):
        args = make_args("mnli", model_name_or_path=tiny.save_bert(tmp_path / "b", id2label={0: "cat", 1: "dog"}))
        with pytest.raises(UserError, match=r"has 2 outputs, --task_name mnli needs 3: cat, dog against "):
            find_task(args)

    def test_evaluating_what_is_not_fine_tuned(self, make_args, tmp_path, bert_dir):
        dense = BertForSequenceClassification.from_pretrained(bert_dir)
        dense.bert.save_pretrained(tmp_path / "bare")
        message = self.refused(make_args(model_name_or_path=tmp_path / "bare", do_eval=True))
        assert "is not fine-tuned: it has no classifier.bias" in message


class TestModelToEvaluate:
    @pytest.fixture
    def trained(self, tmp_path: Path) -> Path:
        """An output folder with a finished model that started from "base"."""
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "config.json").write_text("{}")
        (tmp_path / "out" / "training_args.json").write_text(json.dumps({"model_name_or_path": "base"}))
        return tmp_path / "out"

    def test_the_finished_model_also_when_the_command_names_where_it_came_from(self, make_args, trained):
        assert model_to_evaluate(make_args(do_eval=True, model_name_or_path="base")) == str(trained)

    def test_another_model_that_is_named(self, make_args, trained):
        assert model_to_evaluate(make_args(do_eval=True, model_name_or_path="other")) == "other"

    @pytest.mark.parametrize("text", ["", "[]", "{}"])
    def test_a_damaged_record_does_not_matter(self, make_args, trained, text):
        (trained / "training_args.json").write_text(text)
        assert model_to_evaluate(make_args(do_eval=True, model_name_or_path="other")) == "other"

    def test_without_a_finished_model(self, make_args, bert_dir):
        assert model_to_evaluate(make_args(do_eval=True)) == str(bert_dir)


def test_every_task_has_the_outputs_that_a_model_gets():
    assert [resolve_task(name).num_labels for name in tiny.TASK_NAMES] == [2, 2, 2, 1, 2, 3, 2, 2, 2]
