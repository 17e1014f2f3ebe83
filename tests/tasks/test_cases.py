"""Cases from the field: every file of a folder of them has its right answer, and each kind has a few lines here."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from emmental.errors import UserError
from emmental.tasks import read_split, resolve_task, user_task
from emmental.tasks.labels import scores
from emmental.tasks.own_files import Reading

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("EMMENTAL_CASES_DIR", REPOSITORY.parent / "shared" / "cases"))

READ = {
    "three_classes/train.csv": (60, ("bad", "good", "plain")),
    "three_classes/dev.csv": (30, ("bad", "good", "plain")),
    "labels/true_and_True.csv": (60, ("False", "True", "true")),
    "labels/1_and_1.0.csv": (60, ("0", "1", "1.0")),
    "labels/invisible_character.csv": (60, ("bad", "bad\u200b", "good", "plain")),
    "scores/train.csv": (60, ()),
    "scores/decimal_comma.csv": (60, ()),
    "scores/whole_numbers.csv": (60, ("0", "1", "2", "3", "4", "5")),
    "files/carriage_returns_only.csv": (60, ("bad", "good", "plain")),
    "files/empty_texts_at_the_end.tsv": (5, None),
    "qqp/train.tsv": (23, ("0", "1")),
    "qqp/dev.tsv": (24, ("0", "1")),
    "data/other_files/gz.csv": (200, ("bad", "good")),
    "data/other_files/sep.csv": (29, ("bad", "good")),
    "data/other_files/r_write_table.tsv": (30, ("bad", "good")),
    "data/other_files/pandas_quoted.tsv": (30, ("bad", "good")),
    "data/thousands/prices_semicolon.csv": (120, ()),
}
"""File -> its rows and classes (none: scores; None: no labels)."""
REFUSED = {
    "labels/empty_cell.csv": "--train_file .*:{line}: the label is missing",
    "labels/commas_at_the_end.csv": "--train_file .*:{line}: a line of nothing but commas",
    "labels/null_and_nan.jsonl": "--train_file .*: 'label' is missing",
    "labels/second_header.csv": "--train_file .*:22: the header occurs again",
    "scores/one_not_a_number.csv": "--train_file .*:17: 'n/a' is not a number, .* --task_kind classification",
    "files/quote_never_closed.csv": "--train_file .*:2: not CSV: the quote that opens here is never closed",
    "data/other_files/book.csv": "--train_file .*book.csv is an Excel workbook; save it as CSV",
    "data/other_files/lfs.csv": "--train_file .*lfs.csv is a Git LFS pointer, not the file itself; `git lfs pull`",
    "data/other_files/textcol.jsonl": "no column named 'sentence1'; the columns are text, label, id ",
    "data/other_files/combined_class.csv": "'Home, Garden' is several labels .*--task_kind classification",
    "data/thousands/prices.csv": "label '832,177' may be a number.*--task_kind regression reads it as 832177",
    "files/columns_differ.jsonl": "--train_file .*: its columns are .*; those of line 1 are sentence1, label",
}
LOOK_ALIKE = {
    "labels/true_and_True.csv": "true",
    "labels/1_and_1.0.csv": "1",
    "labels/invisible_character.csv": "bad",
}


def case(name: str) -> Path:
    if not FOLDER.is_dir():
        pytest.skip(f"no cases at {FOLDER}: set EMMENTAL_CASES_DIR")
    return FOLDER / name


def test_every_case_has_an_answer() -> None:
    folders = ("three_classes", "labels", "scores", "files", "qqp", "data/other_files")
    files = [path for name in folders for path in case(name).rglob("*.*") if path.suffix not in (".md", ".txt")]
    assert {str(path.relative_to(FOLDER)) for path in files} <= {*READ, *REFUSED}


@pytest.mark.parametrize("name", READ)
def test_cases_that_are_read(name: str, caplog: pytest.LogCaptureFixture) -> None:
    rows, labels = READ[name]
    path = case(name)
    if name.startswith("qqp"):
        task = resolve_task("qqp")
        split = read_split(task, path.parent, path.stem)
    elif labels is None:
        task = user_task(None, None, path, ["a", "b"])
        split = read_split(task, None, "test")
    else:
        task = user_task(path, None, None)
        split = read_split(task, None, "train")
        assert task.labels == labels
    assert len(split.texts_a) == len(split.indices) == rows
    assert [message for message in caplog.messages if "look alike" in message] == (
        [] if name not in LOOK_ALIKE else [caplog.messages[0]]
    )
    if name in LOOK_ALIKE:
        assert f"'{LOOK_ALIKE[name]}' (" in caplog.messages[0]


@pytest.mark.parametrize("name", REFUSED)
def test_cases_that_are_refused(name: str) -> None:
    path = case(name)
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        user_task(path, None, None)
    assert caught.match(REFUSED[name].replace("{line}", "[0-9]+"))
    assert len(str(caught.value)) < 400


def own(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("label", ["", " ", "nan", "NaN", "NULL", "null", "<NA>", "\\N", "''", "\ufeff", "\u3164"])
@pytest.mark.parametrize("split", ["train", "dev"])
def test_a_missing_label_is_never_a_class(tmp_path: Path, label: str, split: str) -> None:
    good = own(tmp_path, "good.csv", "sentence1,label\na,x\nb,y\n")
    bad = own(tmp_path, "bad.csv", f"sentence1,label\na,x\nb,y\nc,{label}\n")
    files = (bad, None, None) if split == "train" else (good, bad, None)
    flag = "--train_file" if split == "train" else "--validation_file"
    with pytest.raises(UserError, match=rf"^{flag} .*bad\.csv:4: the label is missing"):
        read_split(user_task(*files), None, split)


def test_none_is_a_class(tmp_path: Path) -> None:
    assert user_task(own(tmp_path, "t.csv", "sentence1,label\na,None\nb,none\nc,x\n"), None, None).labels == (
        "None",
        "none",
        "x",
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "sentence1,label\na,0.5\nb,n/a\nc,1.5\nd,2\n",
            r":3: 'n/a' is not a number, but most labels are.*--task_kind",
        ),
        ("sentence1,label\na,a|b\nb,a\nc,b\n", r":2: label 'a\|b' is several labels in a cell"),
        ('sentence1,label\na,"a, b"\nb,"b, c"\nc,"c, a"\n', r":2: label 'a, b' is several labels in a cell"),
        ("sentence1,label\na,['a']\nb,x\n", r":2: label \"\['a'\]\" is a list"),
        ("sentence1,label\na,x\n,\nb,y\n", r":3: a line of nothing but commas"),
        ("sentence1,label\na,x\nsentence1,label\nb,y\n", r":3: the header occurs again"),
        ("sentence1,label\na,x\nSENTENCE1,Label\nb,y\n", r":3: the header occurs again"),
        ("sentence1,label\ra,x\rb,y\r\n", r":1: a carriage return inside the line; end all lines with a newline"),
        ("sentence1,label\na,x\nb,x\n", r": one label only, 'x'"),
        ('sentence1,label\na,x\n"b\nc",y\n"d,x\n', r":5: not CSV: the quote that opens here is never closed"),
        ('sentence1,label\na,x\nb,"y\n', r":3: not CSV: the quote that opens here is never closed"),
        (f'sentence1,label\na,x\n"{"b" * 140_000}",y\n', r":3: a cell of more than 131,072 characters begins here"),
        ("sentence1,label\na\rb,x\n", r":2: not CSV: a carriage return in a cell without quotes"),
        (
            "text,target\na,x\n",
            r":1: no columns named 'sentence1', 'label'; the columns are text, target .*--te",
        ),
        ("sentence1,label\na,1\nb,2\nc,inf\n", r":4: score 'inf' where a number that is finite is expected"),
        ("sentence1,label\na,1.5\nb,1e39\n", r":3: score '1e39' is too large"),
        (b"sentence1,label\nd\xe9j\xe0,x\nb,y\n", r":2: byte 0xe9 is not UTF-8; .* --encoding latin-1"),
        (b"sentence1,label\na \x96 b,x\nb,y\n", r":2: byte 0x96 is not UTF-8; .* --encoding cp1252"),
    ],
)
def test_csv_that_is_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = own(tmp_path, "t.csv", content)
    with pytest.raises(UserError, match=rf"^--train_file [^\n]*t\.csv{message}[^\n]*$"):
        read_split(user_task(path, None, None), None, "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"sentence1": "a", "label": "x"}\n{"sentence1": "b"}\n',
            r":2: its columns are sentence1; those of line 1 are",
        ),
        ('{"sentence1": "a", "label": ["x", ["y"]]}\n', r":1: 'label' is a list; a string or a number is expected"),
        ('{"sentence1": "a", "label": NaN}\n', r":1: 'label' is missing \(NaN\)"),
        ('{"sentence1": "a", "label": "x", "label": "y"}\n', r":1: 'label' occurs twice in one object"),
        ('[{"sentence1": "a",\n"label": "x"}]\n', r":1: not JSON; .*the file is one JSON array"),
        ('[{"sentence1": "a", "label": "x"}]\n', r":1: a JSON object is expected"),
    ],
)
def test_json_lines_that_are_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"^--train_file [^\n]*t\.jsonl{message}[^\n]*$"):
        user_task(own(tmp_path, "t.jsonl", content), None, None)


ROWS = [("one, two", "x"), ('a "quoted" word', "y"), ("déjà vu", "x")]


@pytest.mark.parametrize(
    ("name", "content", "reading", "note"),
    [
        ("t.csv", 'sentence1;label\none, two;x\n"a ""quoted"" word";y\ndéjà vu;x\n', {}, "separated by semicolons"),
        ("t.csv", 'sentence1\tlabel\none, two\tx\n"a ""quoted"" word"\ty\ndéjà vu\tx\n', {}, "separated by tabs"),
        ("t.csv", 'sentence1,label\r"one, two",x\r"a ""quoted"" word",y\rdéjà vu,x', {}, "a carriage return alone"),
        ("t.tsv", 'sentence1,label\n"one, two",x\n"a ""quoted"" word",y\ndéjà vu,x\n', {}, "separated by commas"),
        ("t.csv", 'sentence1,label\n"one, two",x\n\n"a ""quoted"" word",y\ndéjà vu,x\n\n', {}, "1 blank line skipped"),
        ("t.csv", 'a#b\none, two#x\n"a ""quoted"" word"#y\ndéjà vu#x\n',
         {"text": "a", "label": "b", "delimiter": "#"}, ""),
        ("t.jsonl", '{"t": "one, two", "label": "x"}\n\n{"t": "a \\"quoted\\" word", "label": "y"}\n'
         '{"t": "d\\u00e9j\\u00e0 vu", "label": "x"}\n', {"text": "t"}, ""),
    ],
)  # fmt: skip
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_files_as_people_have_them(
    tmp_path: Path, name: str, content: str, reading: dict, note: str, encoding: str
) -> None:
    given = {"encoding": encoding} if encoding == "latin-1" else {}
    path = own(tmp_path, name, content.encode(encoding))
    split = read_split(user_task(path, None, None, reading=Reading(**reading, **given)), None, "train")
    assert list(zip(split.texts_a, split.labels or [], strict=True)) == [(text, label == "y") for text, label in ROWS]
    assert note in " ".join(split.notes)
    assert not encoding.startswith(("utf-16", "utf-32")) or f"read as {encoding.upper()}" in split.notes[0]


def test_the_kind_of_task_as_the_user_says_it(tmp_path: Path) -> None:
    path = own(tmp_path, "t.csv", "sentence1,label\na,1\nb,2\nc,3\n")
    assert user_task(path, None, None).labels == ("1", "2", "3")
    task = user_task(path, None, None, reading=Reading(kind="regression"))
    assert read_split(task, None, "train").labels == [1.0, 2.0, 3.0]
    path = own(tmp_path, "t.csv", "sentence1,label\na,0.5\nb,n/a\nc,1.5\n")
    assert user_task(path, None, None, reading=Reading(kind="classification")).labels == ("0.5", "1.5", "n/a")
    with pytest.raises(UserError, match=r"t\.csv:3: score 'n/a' where a number that is finite is expected"):
        read_split(user_task(path, None, None, reading=Reading(kind="regression")), None, "train")


def test_decimal_commas(tmp_path: Path) -> None:
    path = own(tmp_path, "t.csv", "sentence1;label\na;2,5\nb;3\nc;-0,25\n")
    task = user_task(path, None, None)
    assert task.is_regression
    assert read_split(task, None, "train").labels == [2.5, 3.0, -0.25]


def test_a_score_is_written_in_ascii() -> None:
    task = user_task_of_scores()
    for cell in ("1_000", "１２", "٣", "0x10", "1,5"):
        with pytest.raises(UserError, match=r"^f:1: score .* where a number that is finite is expected"):
            scores("f", [(1, [cell])], 0, task)
    assert scores("f", [(1, [" 1e3 "]), (2, [".5"]), (3, ["-2."])], 0, task) == [1000.0, 0.5, -2.0]


def user_task_of_scores():
    from emmental.tasks.task import Task

    return Task("custom", (), ("corr",), "corr", "predictions.tsv", None, None, None)


def test_many_labels_are_cut_in_messages(tmp_path: Path) -> None:
    rows = "".join(f"a,class{number}\n" for number in range(900))
    train = own(tmp_path, "t.csv", f"sentence1,label\n{rows}")
    dev = own(tmp_path, "d.csv", "sentence1,label\na,other\n")
    with pytest.raises(UserError, match=r"d\.csv:2: label 'other' is none of class0, .* and 890 more$") as caught:
        read_split(user_task(train, dev, None), None, "dev")
    assert len(str(caught.value)) < 400


def test_a_label_of_another_case_is_refused_with_the_one_it_looks_like(tmp_path: Path) -> None:
    train = own(tmp_path, "t.csv", "sentence1,label\na,good\nb,bad\n")
    dev = own(tmp_path, "d.csv", "sentence1,label\na,Good\n")
    with pytest.raises(UserError, match="label 'Good' is none of bad, good; it looks like 'good'"):
        read_split(user_task(train, dev, None), None, "dev")


def test_look_alikes_are_warned_of_with_their_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = own(tmp_path, "t.csv", "sentence1,label\na,New York\nb,new  york\nc,new york\nd,x\n")
    with caplog.at_level(logging.WARNING):
        user_task(path, None, None)
    (message,) = caplog.messages
    assert "labels that look alike are different classes: 'New York' (1 rows), 'new  york' (1 rows)" in message


def test_every_row_of_one_column_counts(tmp_path: Path) -> None:
    for name, content in (("t.tsv", "sentence1\na\n\nb\n\n\n"), ("t.csv", "sentence1\na\n\nb\n\n\n")):
        split = read_split(user_task(None, None, own(tmp_path, name, content), ["x", "y"]), None, "test")
        assert split.texts_a == ["a", "", "b", "", ""]


def test_words_that_may_stand_for_a_missing_label_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert user_task(own(tmp_path, "t.csv", "sentence1,label\na,N/A\nb,x\n"), None, None).labels == ("N/A", "x")
    assert "these labels are read as classes: 'N/A' (1 rows); remove these rows" in caplog.text


def test_a_carriage_return_inside_a_line_is_said(tmp_path: Path) -> None:
    split = read_split(user_task(None, None, own(tmp_path, "t.tsv", "sentence1\na\rb\nc\n"), ["x", "y"]), None, "test")
    assert split.texts_a == ["a\rb", "c"]
    assert split.notes[0].endswith("t.tsv:2: a carriage return inside a line is text (1 lines have one)")
    with pytest.raises(UserError, match=r"t\.tsv:2: 3 columns where the header has 2; a carriage return inside"):
        user_task(own(tmp_path, "t.tsv", "sentence1\tlabel\na\tx\rb\ty\n"), None, None)


def test_a_header_among_json_lines(tmp_path: Path) -> None:
    rows = '{"sentence1": "a", "label": "x"}\n{"sentence1": "sentence1", "label": "label"}\n'
    with pytest.raises(UserError, match=r"t\.jsonl:2: the header occurs again"):
        user_task(own(tmp_path, "t.jsonl", rows), None, None)
