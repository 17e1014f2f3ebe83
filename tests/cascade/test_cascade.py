"""A cascade from its models to its answers: built, read back, asked, and refused where it cannot be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from tiny_cascade import NAMES, built, rows, teach

from emmental import atomic
from emmental.cascade import Cascade, Rows, build_cascade, load
from emmental.cascade import models as models_module
from emmental.cascade.models import read_source, stage_engines
from emmental.cascade.serving import ReadyStage
from emmental.errors import UserError
from emmental.inference.engines import why_not_timed

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cascade(served) -> Cascade:
    return load(served, threads=1)


def test_the_record_adds_up(served, texts):
    record = json.loads((served / "cascade.json").read_text())
    assert [one["name"] for one in record["stages"]] == ["bag of words", "small", "dense"]
    assert record["promise"] == {"changed": 0.05, "delta": 0.05, "of": "dense"}
    assert record["measured"]["bound"] <= 0.05
    assert record["measured"]["rows"] == record["calibration"]["tested_on"] == 480
    assert sum(one["answered"] for one in record["stages"]) == 480
    assert sum(record["measured"]["shares"].values()) == pytest.approx(1)
    assert [one["milliseconds"] for one in record["models"]] == [1, 3, 30]
    shares = record["measured"]["shares"]
    spent = 1 + 3 * (1 - shares["bag of words"]) + 30 * shares["dense"]
    assert record["measured"]["milliseconds"] == pytest.approx(spent)
    assert record["models"][-1]["changed"] == 0
    promises = [one["promise"] for one in record["table"]]
    assert promises == sorted(promises)
    assert 0.05 in promises
    times = [one["milliseconds"] for one in record["table"]]
    assert times == sorted(times, reverse=True)
    atomic.verify_folder(served)
    assert not [file for file in served.rglob("*") if file.suffix in (".pkl", ".bin", ".pt", ".py")]
    for stage in record["stages"]:
        assert stage["sha256"] in {atomic.sha256_of(file) for file in (served / stage["folder"]).rglob("*.*")}
    assert "Left out" not in (served / "README.md").read_text()
    assert (served / "cascade.png").stat().st_size > 1000


def test_served_answers_are_those_that_were_calibrated(served, cascade, texts):
    """On the rows that tested the thresholds, the share of changed answers is the one that was measured."""
    record = json.loads((served / "cascade.json").read_text())
    design = np.random.default_rng(0).permutation(600)[:120]
    test = np.setdiff1d(np.arange(600), design)
    answers = cascade.classify([texts[row] for row in test])
    last = cascade.steps[-1].stage.logits([texts[row] for row in test]).argmax(1)
    changed = sum(one["label"] != cascade.labels[wanted] for one, wanted in zip(answers, last, strict=True))
    assert changed == record["measured"]["count"]
    for stage in record["stages"]:
        assert sum(one["stage"] == stage["name"] for one in answers) == stage["answered"]


def test_each_stage_sees_what_is_left(cascade, texts, monkeypatch):
    asked = {}

    class Listening:
        def __init__(self, name, stage):
            self.name, self.stage = name, stage

        def logits(self, given, batch_size=32):
            asked[self.name] = len(given)
            return self.stage.logits(given, batch_size)

    steps = [
        ReadyStage(one.name, Listening(one.name, one.stage), one.threshold, one.temperature) for one in cascade.steps
    ]
    heard = Cascade(cascade.labels, steps, False, False, {})
    answers = heard.classify(texts[:200])
    by = [one["stage"] for one in answers]
    assert asked["bag of words"] == 200
    assert asked["small"] == 200 - by.count("bag of words")
    assert asked.get("dense", 0) == by.count("dense")
    assert answers == cascade.classify(texts[:200])


def test_classes_are_matched_by_name(models, cascade, texts, labels):
    """The small model has its outputs in the other order."""
    assert [read_source(folder).labels for folder in models.values()] == [NAMES[::-1], NAMES]
    assert cascade.labels == NAMES
    for step in cascade.steps:
        right = np.mean(
            [NAMES[one] == label for one, label in zip(step.stage.logits(texts).argmax(1), labels, strict=True)]
        )
        assert right > 0.8, step.name


def test_a_stage_gives_the_logits_of_pytorch(models, cascade):
    import torch
    from transformers import AutoModelForSequenceClassification

    given = ["kasa lote mivo", "[SEP] nuzu", "", "peda " * 60]
    inputs = tiny.tokenizer()
    model = AutoModelForSequenceClassification.from_pretrained(models["dense"]).eval()
    backend = read_source(models["dense"]).tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    assert inputs is not None
    wanted = []
    for text in given:
        ids = backend.encode(text).ids
        ids = ids if len(ids) <= 32 else [*ids[:31], ids[-1]]
        with torch.no_grad():
            wanted.append(model(torch.tensor([ids])).logits[0].numpy())
    np.testing.assert_allclose(cascade.steps[-1].stage.logits(given, 2), wanted, atol=1e-5)


def test_it_is_called_like_a_pipeline(cascade):
    (one,) = cascade("kasa kate")
    assert one.keys() == {"label", "score"}
    assert one["label"] == "positive"
    assert 0.5 < one["score"] <= 1
    assert cascade(["kasa kate"]) == [one] == cascade({"text": "kasa kate"})
    assert cascade([]) == [] == cascade.classify([])


@pytest.mark.parametrize(
    "given", [[("a", "b")], [3], [None], "one text", [{"text": 3}], [{"text": "a", "text_pair": "b"}]]
)
def test_what_is_no_text_is_refused(cascade, given):
    with pytest.raises(UserError, match="text"):
        cascade.classify(given)


def test_a_large_promise_or_a_small_one_changes_the_thresholds(served, models, texts, tmp_path):
    strict = built([models["small"], models["dense"]], texts, tmp_path / "strict", changed=0.02, training=None)
    assert strict["measured"]["bound"] <= 0.02
    assert [one["name"] for one in strict["models"]] == ["small", "dense"]
    assert strict["measured"].get("accuracy") is None


def test_a_stage_that_does_not_pay_is_left_out(models, texts, tmp_path):
    """The small model takes longer than the dense one."""
    record = built([models["small"], models["dense"]], texts, tmp_path / "x", milliseconds=[40, 30], training=None)
    assert [one["name"] for one in record["stages"]] == ["dense"]
    assert record["measured"]["changed"] == 0
    assert "Left out, because they do not pay: small" in (tmp_path / "x" / "README.md").read_text()
    alone = load(tmp_path / "x", threads=1)
    assert {one["stage"] for one in alone.classify(texts[:5])} == {"dense"}


def test_pairs(tmp_path):
    """The second text has the class of the first, or not."""
    folder = teach(tmp_path / "dense", 5)
    pairs = [(text, other) for (text, _), (other, _) in zip(rows(500, 5), rows(500, 6), strict=True)]
    training = Rows(pairs[:100])  # the last stage labels them
    record = built([folder], pairs[100:], tmp_path / "served", changed=0.4, training=training, milliseconds=[1, 30])
    assert record["pairs"]
    cascade = load(tmp_path / "served", threads=1)
    assert len(cascade([("kasa", "kate"), ("a", "b")])) == 2
    assert cascade(("kasa", "kate")) == cascade([{"text": "kasa", "text_pair": "kate"}])
    with pytest.raises(UserError, match="a pair of strings"):
        cascade(["kasa"])


def test_several_labels_at_once(tmp_path, texts, labels):
    names = ("is_good", "is_bad")
    problem = {"problem_type": "multi_label_classification"}
    folder = teach_labels(tmp_path / "dense", names, problem)
    wanted = [["is_good"] if label == "positive" else ["is_bad"] for label in labels]
    train = rows(300, 1)
    training = Rows(
        [text for text, _ in train], [["is_good"] if one == "positive" else ["is_bad"] for _, one in train]
    )
    record = built(
        [folder], texts, tmp_path / "served", labels=wanted, changed=0.1, training=training, milliseconds=[1, 30]
    )
    assert record["several"]
    assert record["models"][-1]["accuracy"] > 0.8
    cascade = load(tmp_path / "served", threads=1)
    (one,) = cascade("kasa kate")
    assert one["label"] == ["is_good"]
    assert len(record["stages"]) == 2


def teach_labels(folder, names, problem):
    import torch
    from transformers import BertForSequenceClassification

    tiny.save_bert(folder, id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)}, **problem)
    model = BertForSequenceClassification.from_pretrained(folder)
    texts, labels = zip(*rows(400, seed=1), strict=True)
    inputs = tiny.tokenizer()(list(texts), padding=True, return_tensors="pt")
    wanted = torch.tensor([[label == "positive", label == "negative"] for label in labels]).float()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        model(**inputs, labels=wanted).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    return folder


def test_a_score_is_refused(tmp_path, models, texts):
    tiny.save_bert(tmp_path / "score", num_labels=1)
    with pytest.raises(UserError, match=r"--models .*score predicts a score, and nothing says how sure it is"):
        build_cascade([models["small"], tmp_path / "score"], texts, tmp_path / "out", engine="onnx")
    assert not (tmp_path / "out").exists()


def test_other_classes_are_refused(tmp_path, models, texts):
    other = tiny.save_bert(tmp_path / "other", id2label={0: "dull", 1: "witty"}, label2id={"dull": 0, "witty": 1})
    unnamed = tiny.save_bert(tmp_path / "unnamed")
    for folder in (other, unnamed):
        with pytest.raises(UserError, match="must have the same names"):
            build_cascade([folder, models["dense"]], texts, tmp_path / "out", engine="onnx")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": []}, "two or more models"),
        ({"texts": ["a"] * 30}, "--changed 0.01 needs at least 373 texts, got 30"),
        ({"texts": ["a", ("b", "c")]}, "--texts: text 1 is .'b', 'c'., where --texts has single texts"),
        ({"training": Rows([("a", "b")])}, "--train_file: text 0 is .'a', 'b'., where --texts has single texts"),
        ({"validation": Rows(["a", "b"], ["positive"])}, "--validation_file: 1 labels for 2 texts"),
        ({"labels": ["positive"]}, "--texts: 1 labels for 600 texts"),
        ({"engine": "abacus"}, "--engine accepts auto, torch"),
        ({"max_length": 100}, "--max_seq_length accepts 4 to 32"),
        ({"labels": ["dull"] * 600}, "label 'dull' is none of the last stage's classes: negative, positive"),
    ],
)
def test_mistakes_are_one_line(change, message, models, texts, tmp_path):
    given = {"stages": [models["small"], models["dense"]], "texts": texts, "engine": "onnx", "threads": 1, **change}
    with pytest.raises(UserError, match=message):
        build_cascade(output=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_a_foreign_folder_is_left_alone(models, texts, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="left alone"):
        build_cascade([models["small"], models["dense"]], texts, tmp_path / "mine", engine="onnx")


def test_rows_of_the_training_are_not_used(models, texts, tmp_path, caplog):
    training = Rows(texts[:200], [NAMES[row % 2] for row in range(200)])
    record = built([models["dense"]], texts, tmp_path / "x", changed=0.3, training=training, milliseconds=[1, 30])
    assert record["calibration"]["texts"] == 600 - sum(text in texts[:200] for text in texts)
    assert "are in --train_file and are not used" in caplog.text


def test_a_damaged_folder_is_named(served, tmp_path):
    import shutil

    shutil.copytree(served, tmp_path / "copy")
    file = next((tmp_path / "copy").glob("3-*/onnx/model.onnx"))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"model\.onnx"):
        load(tmp_path / "copy")
    with pytest.raises(UserError, match=r"no cascade\.json"):
        load(tmp_path)


BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "sklearn", "scipy", "safetensors", "onnx"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
"""


def test_a_stage_holds_only_what_it_needs(served):
    """An ONNX file and a tokenizer; of a bag of words, its terms and weights. No configuration, no other weights."""
    found = {str(file.relative_to(served)) for file in served.rglob("*") if file.is_file()}
    assert found == {
        *("1-bag-of-words/words.json", "1-bag-of-words/weights.safetensors"),
        *(f"{stage}/{file}" for stage in ("2-small", "3-dense") for file in ("tokenizer.json", "onnx/model.onnx")),
        *("README.md", "cascade.json", "cascade.png", "manifest.json"),
    }


def test_int8_in_openvino_is_a_stage(models, texts, tmp_path):
    """Its two files are enough, and it answers as when it was calibrated."""
    pytest.importorskip("nncf")
    given = [models["small"], models["dense"]]
    record = built(given, texts[:200], tmp_path / "served", changed=0.3, engine="openvino-int8")
    for stage in record["stages"]:
        held = {file.name for file in (tmp_path / "served" / stage["folder"]).rglob("*.*")}
        assert held == {"tokenizer.json", *(f"openvino_model_qint8_quantized.{end}" for end in ("xml", "bin"))}
    cascade = load(tmp_path / "served", threads=1)
    assert served_elsewhere(tmp_path / "served", texts[200:230]) == [
        {**one, "score": pytest.approx(one["score"], abs=1e-4)} for one in cascade.classify(texts[200:230])
    ]
    damaged = next((tmp_path / "served").rglob("*.bin"))
    damaged.unlink()
    with pytest.raises(UserError, match=r"qint8_quantized\.bin"):
        load(tmp_path / "served")


def test_the_fastest_engine_that_loses_nothing_is_taken(models, texts, tmp_path):
    """All engines of this machine are tried, OpenVINO's int8 too, the last one first here."""
    tried = stage_engines("auto")
    assert {"onnx", "onnx-int8"} <= {*tried}
    assert ("openvino-int8" in tried) == (why_not_timed("openvino-int8") is None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models_module, "_MOST_CHANGED", 1.0)
        record = built([models["small"], models["dense"]], texts[:200], tmp_path / "x", changed=0.3, engine="auto")
    assert record["models"][0]["engine"] == tried[-1]


def test_it_is_served_without_pytorch(served, cascade, texts):
    """NumPy, tokenizers and ONNX Runtime are enough; the answers are the same."""
    for one, wanted in zip(served_elsewhere(served, texts[:60]), cascade.classify(texts[:60]), strict=True):
        assert one == {**wanted, "score": pytest.approx(wanted["score"], abs=1e-6)}


def served_elsewhere(served, texts):
    """Answers of a process that cannot import PyTorch."""
    program = f"""{BLOCKED}
import json
import emmental.cascade
print(json.dumps(emmental.cascade.load({str(served)!r}, threads=1).classify(json.loads(sys.stdin.read()))))
assert not {{"torch", "transformers", "sklearn", "scipy"}} & {{*sys.modules}}
"""
    run = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(texts),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


STAND_IN = """
import types
class FastAPI:  # takes what server.py says, and serves nothing
    def __init__(self, title): pass
    def post(self, path): return lambda function: function
sys.modules["fastapi"] = types.ModuleType("fastapi")
sys.modules["fastapi"].FastAPI = FastAPI
"""


def test_the_server_of_the_docs_serves_it(served, cascade, texts):
    program = f"""{BLOCKED}{STAND_IN}
import json, runpy
server = runpy.run_path({str(ROOT / "docs" / "server.py")!r})
print(json.dumps(server["classify"](json.loads(sys.stdin.read()))))
assert not {{"torch", "transformers", "sklearn", "scipy"}} & {{*sys.modules}}
"""
    run = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(texts[:10]),
        env={**os.environ, "PYTHONPATH": str(ROOT), "MODEL": str(served)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert [one["label"] for one in json.loads(run.stdout)] == [one["label"] for one in cascade.classify(texts[:10])]


def test_pytorch_serves(models, texts, tmp_path):
    """Weights, configuration and tokenizer.json; of the tokenizer's other files none is needed."""
    record = built([models["small"], models["dense"]], texts[:200], tmp_path / "served", changed=0.3, engine="torch")
    cascade = load(tmp_path / "served", threads=1)
    answers = cascade.classify(texts[200:260])
    assert {one["stage"] for one in answers} <= {"small", "dense"}
    assert {one["engine"] for one in record["models"]} == {"torch"}
    held = {file.name for file in (tmp_path / "served" / record["stages"][-1]["folder"]).iterdir()}
    assert held == {"config.json", "model.safetensors", "tokenizer.json"}


def test_labels_of_other_rows_give_the_accuracies(models, texts, labels, tmp_path):
    """All rows of the validation are called wrong, so no model and no promise has a right answer among them."""
    wrong = [NAMES[1 - NAMES.index(label)] for label in labels[:50]]
    given = [models["small"], models["dense"]]
    right = build_with(given, texts, tmp_path / "a", labels, Rows(texts[:50], labels[:50]))
    turned = build_with(given, texts, tmp_path / "b", labels, Rows(texts[:50], wrong))
    for name in ("models", "table"):
        for one, other in zip(right[name], turned[name], strict=True):
            assert one["accuracy"] + other["accuracy"] == pytest.approx(1)
            assert one["changed"] == other["changed"]
    assert right["judged_on"] == turned["judged_on"] == 50
    assert "Accuracies: on 50 labelled rows." in (tmp_path / "a" / "README.md").read_text()


def build_with(stages, texts, output, labels, validation):
    return built(stages, texts, output, labels=labels, validation=validation)


def test_pairs_may_be_lists(tmp_path):
    folder, other = teach(tmp_path / "dense", 5), teach(tmp_path / "small", 4)
    pairs = [[text, other] for (text, _), (other, _) in zip(rows(300, 5), rows(300, 6), strict=True)]
    record = built([other, folder], pairs, tmp_path / "served", changed=0.4, engine="onnx-int8")
    assert record["pairs"]
    assert len(load(tmp_path / "served", threads=1)([["kasa", "kate"], ("a", "b")])) == 2


def test_what_is_stopped_leaves_the_earlier_cascade(served, models, texts, tmp_path, monkeypatch):
    import shutil

    from emmental.cascade import building

    shutil.copytree(served, tmp_path / "served")

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(building, "calibrate", stop)
    with pytest.raises(KeyboardInterrupt):
        built([models["small"], models["dense"]], texts, tmp_path / "served")
    assert [file.name for file in tmp_path.iterdir()] == ["served"]
    assert len(load(tmp_path / "served", threads=1)(texts[:3])) == 3
