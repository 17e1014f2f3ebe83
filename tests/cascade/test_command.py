"""`python -m emmental.cascade`: builds, classifies, checks, and refuses in one line."""

from __future__ import annotations

import csv
import json
import shutil

import pytest
from tiny_cascade import rows

from emmental.cascade import building, load
from emmental.cascade.__main__ import main
from emmental.cascade.report import picture, table


def write(path, header, lines):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *lines])
    return str(path)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(building, "milliseconds", lambda stages, *_: [1, 3, 30])
    return tmp_path


def test_build_predict_and_check(place, models, capsys):
    held_out = write(place / "held-out.csv", ["sentence1", "label"], rows(400, 2))
    train = write(place / "train.csv", ["sentence1", "label"], rows(40, 1))
    new = write(place / "new.csv", ["sentence1"], [[text] for text, _ in rows(30, 3)])
    folders = [str(folder) for folder in models.values()]
    main(["--models", *folders, "--texts", held_out, "--train_file", train, "--changed", "0.05", "--engine", "onnx"])
    said = capsys.readouterr().out
    assert "| dense, onnx | " in said
    assert "promised: at most 5 % of the answers differ from dense's" in said
    assert said.splitlines()[-1] == "served"
    main(["--predict", new, "--output", "answers.jsonl"])
    answers = [json.loads(line) for line in (place / "answers.jsonl").read_text().splitlines()]
    wanted = load("served").classify([text for text, _ in rows(30, 3)])
    assert [{key: one[key] for key in ("label", "stage")} for one in answers] == [
        {key: one[key] for key in ("label", "stage")} for one in wanted
    ]
    assert [one["index"] for one in answers] == list(range(30))
    main(["--predict", new])
    assert len(capsys.readouterr().out.splitlines()) == 30
    main(["--check", held_out, "--model_name_or_path", "served"])
    assert "answers that differ from dense's" in capsys.readouterr().out
    neutral = [["risa rite rivo " + text.split()[0]] for text, _ in rows(90, 4)]
    strange = write(place / "strange.csv", ["sentence1"], neutral)
    with pytest.raises(SystemExit) as ended:
        main(["--check", strange])
    assert ended.value.code == 1
    assert "more of them reach the late stages" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give one of --models, --predict and --check"),
        (["--predict", "a.csv", "--check", "a.csv"], "give one of"),
        (["--models", "a", "b"], "--models needs --texts"),
        (["--models", "a", "b", "--texts", "none.csv"], "--texts none.csv is not a file"),
        (["--models", "a", "b", "--texts", "none.csv", "--changed", "3"], "--changed accepts a share between 0 and 1"),
        (["--predict", "there.csv", "--model_name_or_path", "x"], "x holds no cascade.json"),
        (["--models", "a", "b", "--texts", "there.csv", "--encoding", "foo"], "there.csv: --encoding accepts what"),
        (["--models", "a", "b", "--texts", "there.csv", "--delimiter", "ab"], "--delimiter accepts one character"),
        (["--models", "a", "a", "--texts", "there.csv", "--engine", "onnx"], "--models names a twice"),
        (["--models", "a", "--texts", "there.csv", "--engine", "onnx"], "--models accepts two or more models"),
        (["--predict", "a.csv", "--changed", "0.2"], "--changed is for --models, not for --predict"),
        (["--models", "a", "b", "--texts", "c.csv", "--sample", "3"], "--sample is for --check, not for --models"),
        (["--models", "a", "b", "--texts", "c.csv", "--batch_size", "3"], "--batch_size is for --predict and --check"),
        (["--check", "a.csv", "--validation_file", "b.csv"], "--validation_file is for --models, not for --check"),
        (["--predict", "a.csv"], "served holds no cascade.json"),
        (["--check", "a.csv", "--output", "x"], "--output is for --models and --predict, not for --check"),
        (["--predict", "a.csv", "--texts", "b.csv"], "--texts is for --models, not for --predict"),
        (["--predict", "a.csv", "--batch_size", "0"], "--batch_size"),
    ],
)
def test_mistakes_are_one_line(flags, message, place, capsys):
    (place / "there.csv").write_text("sentence1\na\n")
    with pytest.raises(SystemExit) as ended:
        main(flags)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_ctrl_c_leaves_nothing(place, models, capsys, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(building, "write_stages", stop)
    held_out = write(place / "held-out.csv", ["sentence1"], [[text] for text, _ in rows(400, 2)])
    with pytest.raises(SystemExit) as ended:
        main(["--models", *map(str, models.values()), "--texts", held_out, "--engine", "onnx"])
    assert ended.value.code == 130
    assert "stopped; nothing was written" in capsys.readouterr().err
    assert [file.name for file in place.iterdir()] == ["held-out.csv"]


def test_an_earlier_cascade_is_replaced_and_labels_of_the_validation_count(place, models, served, capsys, monkeypatch):
    monkeypatch.setattr(building, "milliseconds", lambda stages, *_: [3, 30])
    shutil.copytree(served, place / "served")
    held_out = write(place / "held-out.csv", ["sentence1"], [[text] for text, _ in rows(400, 2)])
    dev = write(place / "dev.csv", ["sentence1", "label"], rows(50, 4))
    flags = ["--models", *map(str, models.values()), "--texts", held_out, "--engine", "onnx", "--changed", "0.05"]
    main([*flags, "--validation_file", dev])
    assert load("served").record["judged_on"] == 50
    assert " accuracy | " in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*flags, "--validation_file", held_out])
    assert "--validation_file held-out.csv needs labels" in capsys.readouterr().err.replace(f"{place}/", "")


def test_labels_of_other_classes(place, models, capsys, caplog, monkeypatch):
    """A column that nobody named is not used, with a remark; one that the user named is refused."""
    monkeypatch.setattr(building, "milliseconds", lambda stages, *_: [3, 30])
    caplog.set_level("INFO")
    held_out = write(place / "held-out.csv", ["sentence1", "label"], [(text, "dull") for text, _ in rows(400, 2)])
    flags = ["--models", *map(str, models.values()), "--texts", held_out, "--changed", "0.05", "--engine", "onnx"]
    main(flags)
    assert "its labels are not used: label 'dull' is none of the last stage's classes" in caplog.text
    assert "accuracy" not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*flags, "--label_column", "label"])
    assert "--texts: label 'dull' is none" in capsys.readouterr().err


def test_other_files_are_left_alone(place, served, capsys):
    new = write(place / "new.csv", ["sentence1"], [["kasa"]])
    (place / "letter.txt").write_text("dear")
    with pytest.raises(SystemExit):
        main(["--model_name_or_path", str(served), "--predict", new, "--output", "letter.txt"])
    assert "left alone" in capsys.readouterr().err
    assert (place / "letter.txt").read_text() == "dear"


def test_the_table_and_the_picture(served):
    record = json.loads((served / "cascade.json").read_text())
    lines = table(record).splitlines()
    assert len(lines) == 2 + 3 + len(record["table"])
    assert lines[2].startswith("| bag of words, words | ")
    assert "1.00 (30.0 x)" in lines[2]
    assert [line for line in lines if "cascade, 5 % may change (served)" in line]
    chart = picture(record)
    assert [axes.get_ylabel() for axes in chart.axes] == ["answers changed (%)", "accuracy (%)"]
    for axes, key in zip(chart.axes, ("changed", "accuracy"), strict=True):
        for line, name in zip(axes.lines, ("models", "table"), strict=True):
            points = [[one["milliseconds"], 100 * one[key]] for one in record[name]]
            assert line.get_xydata().tolist() == [pytest.approx(point) for point in points]
