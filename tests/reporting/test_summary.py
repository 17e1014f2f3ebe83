"""Warnings that name the flags to change, the final table, and a model card the Hub can read."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from torch import nn
from transformers import AutoConfig, BertForSequenceClassification

from emmental import MaskedBertConfig, MaskedBertForSequenceClassification
from emmental.errors import UserError
from emmental.patching import set_threshold
from emmental.reporting import summary as reported
from emmental.reporting.before_after import TrainedModels
from emmental.reporting.summary import (
    HIGH_CHURN,
    environment_facts,
    final_table,
    model_card,
    summary,
    warn_of_churn,
    warn_of_collapse,
)
from emmental.runs.processes import Processes
from emmental.runs.run import Run
from emmental.tasks.bag_of_words import Floor
from emmental.tasks.glue import resolve_task
from emmental.tasks.task import Layout, Task
from emmental.training.budgets import ShareTarget
from emmental.training.phases import FinePruning
from emmental.training.settings import TrainSettings


@pytest.fixture
def pruned(bert_dir) -> nn.Module:
    config = MaskedBertConfig.from_dense(AutoConfig.from_pretrained(bert_dir))
    model = MaskedBertForSequenceClassification.from_pretrained(bert_dir, config=config).eval()
    set_threshold(model, 0.25)
    return model


@pytest.fixture
def args(make_args: Callable[..., argparse.Namespace]) -> argparse.Namespace:
    return make_args(mask_scores_learning_rate=0.03, learning_rate=2e-4)


class TestWarnings:
    @pytest.fixture
    def args(self, args: Run) -> Run:
        args.phases = [FinePruning(Path(args.output_dir), TrainSettings.of(args.flags), None, False)]
        return args

    def test_high_churn_is_warned_of_once_in_a_row(self, args, caplog):
        high = 0
        for churn, expected in ((0.5, 0), (0.5, 0), (0.5, 1), (0.5, 1), (0.0, 1), (0.5, 1), (0.5, 1), (0.5, 2)):
            high = warn_of_churn(churn, high, 0.03)
            assert len(caplog.records) == expected
        assert "50.0 % of the mask entries" in caplog.text
        assert "--mask_scores_learning_rate (now 0.03)" in caplog.text
        assert "--mask_init magnitude" in caplog.text

    def test_low_churn_is_not(self, args, caplog):
        high = 0
        for _ in range(5):
            high = warn_of_churn(HIGH_CHURN, high, 0.03)
        assert high == 0
        assert not caplog.records

    def test_one_rank_warns_for_all(self, args, caplog):
        args.processes = Processes(rank=1, world_size=2)
        warn_of_collapse(args, 1)
        for _ in range(5):
            warn_of_churn(0.5, 2, 0.03, args.processes.is_main)
        assert not caplog.records

    def test_collapse(self, args, caplog):
        warn_of_collapse(args, None)
        assert not caplog.records
        warn_of_collapse(args, 1)
        assert "every prediction is class '1'" in caplog.text
        for flag in ("--mask_scores_learning_rate (now 0.03)", "--learning_rate (now 0.0002)", "--final_threshold"):
            assert flag in caplog.text

    def test_advice_against_a_collapse_fits_the_run(self, args, caplog):
        args.model_type = "bert"
        warn_of_collapse(args, 0, "checkpoint-7")
        assert "checkpoint-7: every prediction is class '0'" in caplog.text
        assert "--learning_rate (now 0.0002)" in caplog.text
        assert "--mask_scores_learning_rate" not in caplog.text
        caplog.clear()
        args.model_type, args.pruning_method, args.phases[-1].target = "masked_bert", "magnitude", ShareTarget(0.1)
        warn_of_collapse(args, 0)
        assert "--keep" in caplog.text
        assert "--mask_scores_learning_rate" not in caplog.text

    def test_one_class_of_most_rows_is_no_matter_of_learning_rates(self, args, caplog):
        labels = np.array([0] * 19 + [1])
        warn_of_collapse(args, 0, "", None, labels)
        assert "every prediction is class '0', and 95.0 % of the rows are of it" in caplog.text
        assert "balanced accuracy 0.50" in caplog.text
        assert "--learning_rate" not in caplog.text
        caplog.clear()
        warn_of_collapse(args, 1, "", None, labels)
        assert "--learning_rate" in caplog.text

    def test_a_model_that_was_hardly_pruned_is_not_to_be_pruned_less(self, args, caplog, pruned):
        warn_of_collapse(args, 0, "", pruned)
        assert "or prune less (--final_threshold)" in caplog.text
        caplog.clear()
        set_threshold(pruned, 1.0)
        warn_of_collapse(args, 0, "", pruned)
        assert "prune less" not in caplog.text
        assert "100.0 % of the weights are still there" in caplog.text

    def test_the_report_is_named_with_the_data_of_the_run(self, args):
        args.task = Task("custom", ("no", "yes"), ("acc",), "acc", "p.tsv", None, None, None)
        args.train_file, args.text_column = "my tickets.csv", "text"
        assert reported._data_flags(args) == "--train_file 'my tickets.csv' --text_column text"
        args.validation_file = "dev.csv"
        assert reported._data_flags(args) == "--validation_file dev.csv --text_column text"


class TestFinalTable:
    def test_rows(self, args, pruned, tmp_path):
        pruned.save_pretrained(tmp_path / "out")
        (tmp_path / "out" / "train_log.jsonl").write_text("")
        lines = final_table(args, TrainedModels(pruned), {"acc": 0.87654, "entropy": 0.5}, 125.4).splitlines()
        assert set(lines[0]) == set(lines[-1]) == {"-"}
        rows = dict(line.split("  ", 1) for line in lines[1:-1])
        rows = {name.strip(): value.strip() for name, value in rows.items()}
        assert rows["acc"] == "0.8765"
        assert rows["remaining weights"].startswith("25.00 %")
        assert rows["size on disk"].startswith("0.0 MB (model.safetensors")
        assert rows["time"] == "2 min 05 s"
        assert rows["model"] == str(tmp_path / "out")
        assert rows["log"] == str(tmp_path / "out" / "train_log.jsonl")
        assert "pictures" not in rows
        command = f"next: python -m emmental.export.bertarize --model_name_or_path {tmp_path / 'out'} "
        assert lines[-2].startswith(command)

    def test_a_run_that_only_predicts_names_the_model_it_used_and_its_files(self, args, pruned, tmp_path):
        args.task, args.do_train, args.do_eval, args.do_predict = resolve_task("mnli"), False, False, True
        (tmp_path / "out").mkdir()
        for name in ("MNLI-m.tsv", "MNLI-mm.tsv"):
            (tmp_path / "out" / name).write_text("index\tprediction\n")
        lines = final_table(args, TrainedModels(pruned), {}, 1.0).splitlines()[1:-1]
        rows = [tuple(cell.strip() for cell in line.split("  ", 1)) for line in lines]
        assert ("model", str(args.model_name_or_path)) in rows
        assert ("predictions", str(tmp_path / "out" / "MNLI-m.tsv")) in rows
        assert ("predictions", str(tmp_path / "out" / "MNLI-mm.tsv")) in rows

    def test_before_anything_is_saved(self, args, pruned):
        assert "size on disk" not in final_table(args, TrainedModels(pruned), {}, 1.0)


class TestModelCard:
    def test_the_hub_reads_its_metrics(self, args, pruned):
        card = ModelCard(model_card(args, TrainedModels(pruned), {"acc": 0.876543, "entropy": 0.5}))
        data = card.data.to_dict()
        assert data["library_name"] == "transformers"
        assert data["pipeline_tag"] == "text-classification"
        assert data["tags"] == ["emmental", "pruning", "topK"]
        (result,) = card.data.eval_results
        assert (result.task_type, result.dataset_name) == ("text-classification", "GLUE sst-2")
        assert (result.metric_type, result.metric_value) == ("acc", 0.8765)

    def test_text(self, args, pruned):
        text = ModelCard(model_card(args, TrainedModels(pruned), {"acc": 0.876543})).text
        assert "| acc | 0.8765 |" in text
        assert "topK, threshold 0.25, 25.00 % remain" in text
        assert "import emmental" in text

    def test_without_results_or_masks(self, args, bert_dir):
        dense = BertForSequenceClassification.from_pretrained(bert_dir)
        card = ModelCard(model_card(args, TrainedModels(dense), {}))
        assert card.data.eval_results is None
        assert card.data.tags == ["emmental"]
        assert "Encoder: dense" in card.text

    def test_regression_on_own_files_is_called_so(self, args, pruned):
        layout = Layout(("mine.csv",), "sentence1", label="label")
        args.task = Task("custom", (), ("corr",), "corr", "predictions.tsv", layout, layout, None)
        card = ModelCard(model_card(args, TrainedModels(pruned), {"corr": 0.5}))
        (result,) = card.data.eval_results
        assert (result.dataset_type, result.dataset_name) == ("custom", "own files")
        assert "A bert regressor for custom" in card.text

    def test_a_folder_of_this_machine_is_not_named_as_a_base_model(self, args, pruned, bert_dir):
        assert str(bert_dir) not in model_card(args, TrainedModels(pruned), {})
        args.model_name_or_path = "google-bert/bert-base-uncased"
        assert (
            ModelCard(model_card(args, TrainedModels(pruned), {})).data.base_model == "google-bert/bert-base-uncased"
        )


def test_a_refused_upload_says_where_the_model_is(args, monkeypatch):
    class Refusing:
        def create_repo(self, *_: object, **__: object) -> None:
            raise ConnectionError("the Hub is away")

    monkeypatch.setattr(reported, "HfApi", Refusing)
    with pytest.raises(UserError, match=r"--push_to_hub: the Hub is away \(the finished model is in ") as refused:
        reported.push_to_hub(args.output_dir)
    assert str(args.output_dir) in str(refused.value)


def test_summary(args, pruned):
    history = [{"step": 4}, {"step": 10}, {"step": 10, "eval": {}}]
    found = summary(args, TrainedModels(pruned), {"acc": 0.5, "entropy": 0.1}, history, 12.34)
    json.dumps(found, allow_nan=False)
    assert found["metrics"] == {"acc": 0.5}
    assert (found["task"], found["method"], found["remaining"]) == ("sst-2", "topK", 25.0)
    assert (found["updates"], found["seconds"]) == (10, 12.3)


def test_the_bag_of_words_stands_beside_a_model_that_is_compared_with_no_other(args, pruned):
    made = TrainedModels(pruned, floor=Floor({"acc": 0.8}, np.zeros(100), 50, 0.1))
    lines = final_table(args, made, {"acc": 0.82}, 1.0).splitlines()
    assert "bag of words, acc  0.8000" in lines
    assert any(line.startswith("no significant gain over the bag of words") for line in lines)
    assert "| this model | 0.8200 |\n| bag of words | 0.8000 |" in model_card(args, made, {"acc": 0.82})
    (row,) = summary(args, made, {"acc": 0.82}, [], 1.0)["compared"]
    assert (row["name"], row["metric"]) == ("bag of words", 0.8)


def test_environment(args):
    line = environment_facts(args.processes)
    assert line["torch"] == torch.__version__
    assert (line["device"], line["processes"], line["threads"]) == ("cpu", 1, 1)
