"""The trainer's command line on tiny models: every task, every phase, and what it leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

import masked_run_glue
import visualizing_image
from emmental.methods import method_of
from emmental.pruning import remaining_weights
from emmental.tasks import resolve_task
from emmental.training.arguments import parse_arguments

PREDICTION_FILES = {"mnli": ("MNLI-m.tsv", "MNLI-mm.tsv")}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dense models with 1, 2 and 3 outputs, in folders of these names."""
    folder = tmp_path_factory.mktemp("models")
    for labels in (1, 2, 3):
        tiny.save_bert(folder / str(labels), num_labels=labels, seed=labels)
    return folder


def flags(models: Path, tmp_path: Path, name: str, *others: str) -> list[str]:
    if not (tmp_path / name).exists():
        tiny.write_task(tmp_path / name, name)
    labels = resolve_task(name).num_labels
    return [
        *("--data_dir", str(tmp_path / name), "--task_name", name, "--model_name_or_path", str(models / str(labels))),
        *("--output_dir", str(tmp_path / "out"), "--feature_cache_dir", str(tmp_path / "cache"), "--no_cuda"),
        *(
            "--recipe",
            "paper",
            "--max_seq_length",
            "32",
            "--max_steps",
            "6",
            "--warmup_steps",
            "1",
            "--save_steps",
            "3",
        ),
        *("--logging_steps", "2", "--learning_rate", "1e-3", *others),
    ]


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", tiny.TASK_NAMES)
def test_every_task_trains_distils_evaluates_and_predicts(models: Path, tmp_path: Path, name: str) -> None:
    task = resolve_task(name)
    teacher = models / str(task.num_labels)
    argv = flags(models, tmp_path, name, "--do_train", "--do_eval", "--do_predict", "--eval_all_checkpoints")
    results = masked_run_glue.main([*argv, "--teacher_name_or_path", str(teacher), "--evaluate_during_training"])
    output = tmp_path / "out"
    assert set(resolve_task(name).metrics) <= set(results)
    if name == "mnli":
        assert {"mnli/acc", "mnli-mm/acc"} <= set(results)
        assert json.loads((output / "MM" / "eval_results.json").read_text())["mnli-mm/acc"] == results["mnli-mm/acc"]
    assert [row["step"] for row in json.loads((output / "eval_all_checkpoints.json").read_text())] == [3, 6]
    assert json.loads((output / "eval_all_checkpoints.json").read_text())[-1][task.primary_metric] == pytest.approx(
        results[task.primary_metric]
    )
    for file in PREDICTION_FILES.get(name, (task.prediction_file,)):
        lines = (output / file).read_text().splitlines()
        assert lines[0] == "index\tprediction"
        assert len(lines) == 1 + 6
    log = rows(output / "train_log.jsonl")
    assert [row["step"] for row in log] == [2, 3, 4, 6, 6]
    assert log[0]["losses"]["distil"] > 0
    text = dict(line.split(" = ") for line in (output / "eval_results.txt").read_text().splitlines())
    assert float(text[task.primary_metric]) == results[task.primary_metric]


@pytest.mark.parametrize("method", tiny.METHODS)
def test_every_method_ends_as_asked_and_predicts_the_same_when_loaded(
    models: Path, tmp_path: Path, method: str
) -> None:
    options = tiny.METHODS[method]
    argv = flags(models, tmp_path, "sst-2", "--pruning_method", method, *options)
    results = masked_run_glue.main(argv)
    output = tmp_path / "out"
    model = AutoModelForSequenceClassification.from_pretrained(output).eval()
    last = rows(output / "train_log.jsonl")[-1]
    assert last["step"] == 6
    assert model.config.threshold == float(options[options.index("--final_threshold") + 1])
    if method_of(method).by_share:
        assert remaining_weights(model) == 25.0
    assert masked_run_glue.main([*argv[:-1], argv[-1], "--do_eval"]) == results
    summary = json.loads((output / "summary.json").read_text())
    assert summary["remaining"] == remaining_weights(model)
    assert summary["updates"] == 6


def test_mismatched_mnli_alone(models: Path, tmp_path: Path) -> None:
    tiny.write_task(tmp_path / "mnli-mm", "mnli")
    argv = flags(models, tmp_path, "mnli-mm", "--do_train", "--do_eval", "--do_predict", "--eval_all_checkpoints")
    results = masked_run_glue.main([*argv, "--teacher_name_or_path", str(models / "3")])
    output = tmp_path / "out"
    assert set(results) == {"mnli-mm/acc", "entropy"}
    last = json.loads((output / "eval_all_checkpoints.json").read_text())[-1]
    assert last == {"step": 6, "remaining": pytest.approx(70, abs=0.1), **results}
    assert len((output / "MNLI-mm.tsv").read_text().splitlines()) == 1 + 6
    assert not (output / "MM").exists()


def test_the_diagnostic_set_is_predicted_alone_with_a_model_of_mnli(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    masked_run_glue.main(flags(models, tmp_path, "mnli", "--do_train"))
    (tmp_path / "ax").mkdir()
    (tmp_path / "ax" / "diagnostic.tsv").write_text("index\tsentence1\tsentence2\n7\tkasa\tlote\n9\tpete\tkasa\n")
    capsys.readouterr()
    argv = flags(models, tmp_path, "ax", "--do_predict", "--output_dir", str(tmp_path / "predicted"))
    assert masked_run_glue.main([*argv, "--model_name_or_path", str(tmp_path / "out")]) == {}
    header, *lines = (tmp_path / "predicted" / "AX.tsv").read_text().splitlines()
    assert header == "index\tprediction"
    assert [line.split("\t")[0] for line in lines] == ["7", "9"]
    assert {line.split("\t")[1] for line in lines} <= {"contradiction", "entailment", "neutral"}
    table = capsys.readouterr().out
    assert str(tmp_path / "predicted" / "AX.tsv") in table
    assert f"model              {tmp_path / 'out'}" in table


def test_evaluation_alone_reads_the_output_folder_and_keeps_its_method(models: Path, tmp_path: Path) -> None:
    argv = flags(models, tmp_path, "mrpc", "--pruning_method", "magnitude", "--final_threshold", "0.25")
    results = masked_run_glue.main([*argv, "--do_train", "--do_eval"])
    plain = [
        *("--data_dir", str(tmp_path / "mrpc"), "--task_name", "MRPC", "--output_dir", str(tmp_path / "out")),
        *("--max_seq_length", "32", "--feature_cache_dir", str(tmp_path / "cache"), "--no_cuda", "--do_eval"),
    ]
    assert masked_run_glue.main(plain) == results


def test_global_topk_keeps_exactly_its_share_of_all_weights(models: Path, tmp_path: Path) -> None:
    options = ["--global_topk", "--global_topk_frequency_compute", "4", "--final_threshold", "0.1"]
    masked_run_glue.main(flags(models, tmp_path, "rte", *options, "--mask_init", "kaiming"))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    total = 2 * (4 * 16 * 16 + 2 * 16 * 32)
    assert remaining_weights(model) == 100 * (total // 10) / total
    last = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "checkpoint-6")
    assert last.config.global_boundary == model.config.global_boundary


def test_own_files_train_predict_and_are_evaluated_by_a_finished_model(models: Path, tmp_path: Path) -> None:
    lines = ["sentence1,label"] + [
        f'"kasa lote {word}",{"yes" if i % 2 else "no"}' for i, word in enumerate(tiny.WORDS)
    ]
    (tmp_path / "train.csv").write_text("\n".join(lines))
    (tmp_path / "dev.jsonl").write_text(
        '{"sentence1": "kasa", "label": "yes"}\n{"sentence1": "lote", "label": "no"}\n'
    )
    (tmp_path / "test.tsv").write_text("sentence1\nkasa\nlote\n")
    finish = [
        *("--validation_file", str(tmp_path / "dev.jsonl"), "--test_file", str(tmp_path / "test.tsv")),
        *("--do_eval", "--do_predict", "--no_cuda", "--max_seq_length", "16", "--output_dir", str(tmp_path / "o")),
        *("--feature_cache_dir", str(tmp_path / "cache"), "--no-pictures"),
    ]
    training = ["--do_train", "--train_file", str(tmp_path / "train.csv"), "--max_steps", "4"]
    results = masked_run_glue.main([*finish, *training, "--model_name_or_path", str(models / "2")])
    assert set(results) == {"acc", "f1", "entropy"}
    predictions = [line.split("\t")[1] for line in (tmp_path / "o" / "predictions.tsv").read_text().splitlines()[1:]]
    assert len(predictions) == 2
    assert set(predictions) <= {"yes", "no"}
    assert json.loads((tmp_path / "o" / "config.json").read_text())["id2label"] == {"0": "no", "1": "yes"}
    (tmp_path / "o" / "predictions.tsv").unlink()
    assert masked_run_glue.main(finish) == results
    assert [line.split("\t")[1] for line in (tmp_path / "o" / "predictions.tsv").read_text().splitlines()[1:]] == (
        predictions
    )


def test_what_is_watched_does_not_change_what_is_trained(models: Path, tmp_path: Path) -> None:
    weights = []
    variants = (
        ["--no-pictures", "--logging_steps", "6", "--save_steps", "6"],
        ["--evaluate_during_training", "--logging_steps", "1", "--save_steps", "1"],
        ["--num_workers", "2", "--per_gpu_eval_batch_size", "3", "--evaluate_during_training"],
    )
    dropout = tiny.save_bert(tmp_path / "dropout", hidden_dropout_prob=0.2)
    for index, variant in enumerate(variants):
        argv = flags(models, tmp_path, "mrpc", "--output_dir", str(tmp_path / f"out{index}"), *variant)
        masked_run_glue.main([*argv, "--model_name_or_path", str(dropout), "--mask_init", "kaiming"])
        weights.append(load_file(tmp_path / f"out{index}" / "model.safetensors"))
    for other in weights[1:]:
        assert all(torch.equal(weights[0][name], other[name]) for name in weights[0])


def test_pictures_tensorboard_and_card_are_where_the_table_says(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    masked_run_glue.main(flags(models, tmp_path, "mrpc"))
    output = tmp_path / "out"
    assert {"overview-3.png", "overview-6.png", "overview.png", "curves.png"} <= {
        file.name for file in (output / "pictures").iterdir()
    }
    assert list((output / "tensorboard").glob("events.out.tfevents.*"))
    assert "model-index" in (output / "README.md").read_text()
    table = capsys.readouterr().out
    for word in ("acc_and_f1", "remaining weights", "size on disk", "time", str(output / "pictures")):
        assert word in table


def test_what_a_kill_leaves_of_a_picture_is_removed(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(picture: object, saveas: Path) -> None:
        saveas.parent.mkdir(parents=True)
        (saveas.parent / ".incomplete-query.png-1").write_text("half")
        raise RuntimeError("killed")

    argv = flags(models, tmp_path, "mrpc")
    with monkeypatch.context() as patch:
        patch.setattr(visualizing_image.SingleImageViz, "save", killed)
        with pytest.raises(RuntimeError, match="killed"):
            masked_run_glue.main(argv)
    masked_run_glue.main(argv)
    drawn = [file.name for file in (tmp_path / "out" / "pictures" / "masks").iterdir()]
    assert ".incomplete-query.png-1" not in drawn
    assert "bert.encoder.layer.0.attention.self.query.png" in drawn


def test_starting_afresh_removes_only_what_the_program_wrote(models: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    mine = {
        "notes.txt": output / "notes.txt",
        "data": output / "data" / "x.tsv",
        "fake": output / "checkpoint-9" / "a",
    }
    for file in mine.values():
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
    masked_run_glue.main(flags(models, tmp_path, "mrpc", "--seed", "1"))
    (output / "pictures" / "mine.png").write_text("mine")
    masked_run_glue.main(flags(models, tmp_path, "mrpc", "--seed", "2", "--overwrite_output_dir", "--no-pictures"))
    assert all(file.read_text() == "mine" for file in mine.values())
    assert [file.name for file in (output / "pictures").iterdir()] == ["mine.png"]
    assert json.loads((output / "training_args.json").read_text())["seed"] == 2


def test_only_the_newest_and_the_best_checkpoints_are_kept(models: Path, tmp_path: Path) -> None:
    argv = flags(models, tmp_path, "sst-2", "--evaluate_during_training", "--save_total_limit", "1")
    masked_run_glue.main([*argv, "--save_steps", "1", "--max_steps", "8"])
    output = tmp_path / "out"
    metric = [(row["step"], row["eval"]["acc"]) for row in rows(output / "train_log.jsonl") if "eval" in row]
    best = max(metric, key=lambda pair: (pair[1], -pair[0]))[0]
    kept = {int(path.name.split("-")[1]) for path in output.glob("checkpoint-*")}
    assert kept == {best, 8}


def test_the_newest_two_checkpoints_are_kept_unless_all_are_evaluated(models: Path, tmp_path: Path) -> None:
    argv = flags(models, tmp_path, "sst-2", "--save_steps", "1", "--max_steps", "5")
    masked_run_glue.main(argv)
    assert {path.name for path in (tmp_path / "out").glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-5"}
    masked_run_glue.main([*argv, "--overwrite_output_dir", "--eval_all_checkpoints"])
    assert len(list((tmp_path / "out").glob("checkpoint-*"))) == 5


def test_the_best_checkpoint_at_the_final_threshold_is_handed_over(models: Path, tmp_path: Path) -> None:
    schedule = ("--initial_warmup", "1", "--final_warmup", "4", "--warmup_steps", "1", "--learning_rate", "0.05")
    argv = flags(
        models, tmp_path, "sst-2", "--save_steps", "1", "--max_steps", "8", "--save_total_limit", "9", *schedule
    )
    masked_run_glue.main([*argv, "--load_best_model_at_end"])
    output = tmp_path / "out"
    metric = [(row["step"], row["eval"]["acc"]) for row in rows(output / "train_log.jsonl") if "eval" in row]
    best = max((pair for pair in metric if pair[0] >= 8 - 4), key=lambda pair: (pair[1], -pair[0]))[0]
    handed_over = load_file(output / "model.safetensors")
    expected = load_file(output / f"checkpoint-{best}" / "model.safetensors")
    assert all(torch.equal(handed_over[name], value) for name, value in expected.items())


def test_the_finished_model_in_half_precision(models: Path, tmp_path: Path) -> None:
    masked_run_glue.main(flags(models, tmp_path, "sst-2", "--save_dtype", "float16"))
    assert {value.dtype for value in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.float16}
    assert masked_run_glue.main(flags(models, tmp_path, "sst-2", "--do_eval"))["acc"] >= 0


def test_text_without_labels_is_labelled_by_the_teacher(models: Path, tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("kasa lote\npesa nuda\n" * 8)
    argv = flags(models, tmp_path, "sst-2", "--unlabeled_file", str(tmp_path / "more.txt"), "--save_steps", "2")
    argv += ["--teacher_name_or_path", str(models / "2")]
    results = masked_run_glue.main([*argv, "--max_steps", "4"])
    assert np.isfinite(results["entropy"])
    losses = [row["losses"] for row in rows(tmp_path / "out" / "train_log.jsonl") if "losses" in row]
    assert all(np.isfinite(list(each.values())).all() for each in losses)
    (tmp_path / "more.txt").write_text("other text\n")
    with pytest.raises(SystemExit):  # other data: the run cannot go on
        masked_run_glue.main([*argv, "--max_steps", "4"])


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "the file is empty"), (b"\n \n", "no text"), (b"\x80\x81", "is not UTF-8"), (None, "is not a file")],
)
def test_files_that_hold_no_text(models: Path, tmp_path: Path, capsys, content: bytes | None, message: str) -> None:
    file = tmp_path / "more.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SystemExit):
        masked_run_glue.main(
            flags(
                models, tmp_path, "sst-2", "--unlabeled_file", str(file), "--teacher_name_or_path", str(models / "2")
            )
        )
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert f"--unlabeled_file {file}" in line
    assert message in line


def test_dry_run_shows_the_plan_and_writes_nothing(
    models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert masked_run_glue.main(flags(models, tmp_path, "mrpc", "--dry_run")) == {}
    assert not (tmp_path / "out").exists()


def test_a_dry_run_refuses_what_a_run_would(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    masked_run_glue.main(flags(models, tmp_path, "sst-2"))
    with pytest.raises(SystemExit):
        masked_run_glue.main(flags(models, tmp_path, "sst-2", "--seed", "9", "--dry_run"))
    shown = capsys.readouterr().err
    assert "holds another run (checkpoint-6): seed 42 -> 9" in shown.splitlines()[-1]
    assert "phases: " not in shown.rpartition("dev data")[2]
    argv = [word for word in flags(models, tmp_path, "sst-2") if word not in ("--recipe", "paper")]
    at = argv.index("--max_steps")
    del argv[at : at + 2]
    with pytest.raises(SystemExit):
        masked_run_glue.main([*argv, "--output_dir", str(tmp_path / "new"), "--num_train_epochs", "0", "--dry_run"])
    assert "--num_train_epochs 0 needs a model fine-tuned for the task" in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(SystemExit):
        masked_run_glue.main(
            [*argv, "--output_dir", str(tmp_path / "new"), "--dry_run", "--teacher_name_or_path", "no"]
        )
    shown = capsys.readouterr().err
    assert "--teacher_name_or_path no cannot be loaded: there is no such folder" in shown.splitlines()[-1]
    assert "phase 1, dense" not in shown


def test_a_loss_that_is_not_finite_ends_the_run_without_saving_it(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = masked_run_glue.TaskDistiller.step

    def poisoned(self: object, batch: dict, *others: object) -> bool:
        if self.global_step == 4:
            with torch.no_grad():
                self.student.classifier.bias.fill_(float("nan"))
        return original(self, batch, *others)

    monkeypatch.setattr(masked_run_glue.TaskDistiller, "step", poisoned)
    with pytest.raises(SystemExit) as ended:
        masked_run_glue.main(flags(models, tmp_path, "mrpc"))
    assert ended.value.code == 1
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-3"]
    assert all(
        np.isfinite(tensor).all() for tensor in load_file(tmp_path / "out/checkpoint-3/model.safetensors").values()
    )
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert "NaN" not in (tmp_path / "out" / "train_log.jsonl").read_text()


def test_the_word_checkpoint_in_the_path_is_harmless(models: Path, tmp_path: Path) -> None:
    output = tmp_path / "checkpoint-2020" / "checkpoint"
    results = masked_run_glue.main([*flags(models, tmp_path, "mrpc"), "--output_dir", str(output)])
    stored = json.loads((output / "eval_results.json").read_text())
    assert {name: value for name, value in stored.items() if name != "positive_label"} == results
    assert stored["positive_label"] == "equivalent"
    assert len(rows(output / "train_log.jsonl")) == 3


@pytest.mark.parametrize("precision", ["--bf16", "--fp16"])
def test_mixed_precision_trains(models: Path, tmp_path: Path, precision: str) -> None:
    results = masked_run_glue.main(flags(models, tmp_path, "sst-2", precision))
    assert 0 <= results["acc"] <= 1
    assert rows(tmp_path / "out" / "train_log.jsonl")[-1]["loss"] > 0


@pytest.mark.parametrize(
    ("given", "done"),
    [
        ([], (True, True)),
        (["--do_train"], (True, False)),
        (["--do_eval"], (False, True)),
        (["--do_predict"], (False, False)),
        (["--do_predict", "--do_eval"], (False, True)),
    ],
)
def test_what_is_asked_for_is_done_and_nothing_else(given: list[str], done: tuple[bool, bool]) -> None:
    args = parse_arguments(["--test_file", "t.csv", "--train_file", "a.csv", "--validation_file", "b.csv", *given])
    assert (args.do_train, args.do_eval) == done
