"""Files as programs write them: packed, with the quotes of pandas and R, with Excel's first line."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zipfile
from pathlib import Path

import pytest

from emmental.data.texts import read_texts
from emmental.errors import UserError
from emmental.tasks import read_split, user_task
from emmental.tasks.files import content
from emmental.tasks.own_files import Reading

CSV = b"sentence1,label\r\nkasa lote,x\r\nbote,y\r\n"


def zipped(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in members.items():
            packed.writestr(zipfile.ZipInfo(name), data)
    return file.getvalue()


def read(path: Path, data: bytes, **reading: object) -> tuple:
    """Classes, texts, labels and notes of a file with this content."""
    path.write_bytes(data)
    task = user_task(path, None, None, reading=Reading(**reading))
    split = read_split(task, None, "train")
    return task.labels, split.texts_a, split.labels, [note.partition(": ")[2] for note in split.notes]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv.gz", gzip.compress(CSV, mtime=0)),
        ("a.csv", gzip.compress(CSV, mtime=0)),
        ("a.CSV.bz2", bz2.compress(CSV)),
        ("a.csv.xz", lzma.compress(CSV)),
        ("a.csv.gz", gzip.compress(b"\xef\xbb\xbf" + CSV, mtime=0)),
        ("a.zip", zipped({"a.csv": CSV})),
        ("a.csv.zip", zipped({"a.dat": CSV})),
        ("a.zip", zipped({"folder/a.csv": CSV, "__MACOSX/a.csv": b"x"})),
        ("a.csv", zipped({"a.csv": CSV})),
    ],
)
def test_packed_files_are_read(tmp_path: Path, name: str, data: bytes) -> None:
    assert read(tmp_path / name, data) == (("x", "y"), ["kasa lote", "bote"], [0, 1], [])
    assert list(read_texts(str(tmp_path / name))) == ["kasa lote", "bote"] or ".csv" not in name.lower()


def test_packed_text_and_test_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"kasa\nlote\n", mtime=0))
    assert list(read_texts(str(tmp_path / "a.txt.gz"))) == ["kasa", "lote"]
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("ka\u2028sa\x85\n\nlote".encode(), mtime=0))
    assert list(read_texts(str(tmp_path / "a.txt.gz"))) == ["ka\u2028sa\x85", "", "lote"]
    (tmp_path / "a.txt.gz").write_bytes(
        gzip.compress(b"kasa\rbote\nlote\n", mtime=0)
    )  # as in a file that is not packed
    with pytest.raises(UserError, match=r"a.txt.gz:1: a carriage return inside the line"):
        list(read_texts(str(tmp_path / "a.txt.gz")))
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(b'{"sentence1": "kasa"}\n', mtime=0))
    task = user_task(None, None, tmp_path / "t.jsonl.gz", ["x", "y"])
    assert read_split(task, None, "test").texts_a == ["kasa"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv.gz", gzip.compress(CSV, mtime=0)[:-9], "cannot be unpacked"),
        ("a.csv", b"PK\x03\x04" + b"x" * 100, "cannot be unpacked"),
        ("a.zip", zipped({"a.csv": CSV, "b.csv": CSV}), "holds 2 files where one is expected"),
        ("a.zip", zipped({}), "holds 0 files|cannot be unpacked"),
        ("a.csv", zipped({"xl/workbook.xml": b"x", "a.xml": b"y"}), "is an Excel workbook; save it as CSV"),
        ("a.csv", zipped({"mimetype": b"x"}), "is a document of an office program"),
        ("a.csv", b"\xd0\xcf\x11\xe0" + b"x" * 99, "is an Excel workbook; save it as CSV"),
        ("a.csv", b"PAR1xxx", "is a parquet file; name it .parquet"),
        ("a.csv", b"<!DOCTYPE html>\n<html>", "is a web page"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "is a Git LFS pointer"),
        ("a.gz", gzip.compress(CSV, mtime=0), r"no suffix where \.tsv, .* are accepted, also with \.gz, \.zip"),
        ("a.xlsx", CSV, r"\.xlsx suffix where"),
    ],
)
def test_what_is_no_table_is_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=rf"^--train_file [^\n]*({message})[^\n]*$"):
        read(tmp_path / name, data)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, lambda data: zipped({"a.csv": data})])
def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack) -> None:
    monkeypatch.setattr(content, "MOST_UNPACKED", 1 << 20)
    with pytest.raises(UserError, match="unpacks to more than 1 MiB"):
        read(tmp_path / "a.csv", pack(CSV + b"x" * (1 << 20)))


R_TABLE = b'"sentence1"\t"label"\n"1"\t"say \\"hi\\""\t"x"\n"2"\t"bote"\t"y"\n'
PANDAS = b'sentence1\tlabel\n"say ""hi"""\tx\n"two\nlines"\ty\n'
ENCLOSE = "its quotes enclose cells, as pandas and R write them, and are no part of the text"


@pytest.mark.parametrize(
    ("name", "data", "texts", "notes"),
    [
        ("r.tsv", R_TABLE, ['say "hi"', "bote"], [ENCLOSE, "its first column has no name in the header, as R writes"]),
        ("p.tsv", PANDAS, ['say "hi"', "two\nlines"], [ENCLOSE]),
        ("p.tsv", PANDAS.replace(b"two\nlines", b'a ""b""').replace(b"\n", b"\r\n"), ['say "hi"', 'a "b"'], [ENCLOSE]),
        ("t.tsv", b'sentence1\tlabel\n"kasa"\tx\nb\ty\n', ['"kasa"', "b"], ["quotes are part of the text, as in"]),
        ("t.tsv", b'sentence1\tlabel\na "b" c\tx\n"d\ty\n', ['a "b" c', '"d'], []),
        ("s.csv", b"sep=;\r\nsentence1;label\r\nkasa;x\r\nlote;y\r\n", ["kasa", "lote"], []),
        ("s.csv", b'\xef\xbb\xbf"sep=|"\nsentence1|label\nkasa|x\nlote|y\n', ["kasa", "lote"], []),
        (
            "j.csv",
            b'{"sentence1": "a", "label": "x"}\n{"sentence1": "b", "label": "y"}\n',
            ["a", "b"],
            ["it holds JSON"],
        ),
    ],
)
def test_what_programs_write(tmp_path: Path, name: str, data: bytes, texts: list[str], notes: list[str]) -> None:
    found = read(tmp_path / name, data)
    assert found[:3] == (("x", "y"), texts, [0, 1])
    assert [note[: len(start)] for note, start in zip(found[3], notes, strict=True)] == notes


def test_lines_are_counted_from_the_line_of_the_separator(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.csv:4: the quote that opens|a\.csv:4: not CSV: the quote that opens"):
        read(tmp_path / "a.csv", b'sep=;\nsentence1;label\na;x\nb;"y\n')


@pytest.mark.parametrize(
    ("cells", "values", "note"),
    [
        (["832,177", "950"], [832177, 950], "commas in the labels separate thousands: '832,177' is 832177"),
        (["1,250.5", "3"], [1250.5, 3], "commas in the labels separate thousands: '1,250.5' is 1250.5"),
        (["1.234,5", "2,5"], [1234.5, 2.5], "points in the labels separate thousands, commas are decimal"),
        (["1.234.567", "12"], [1234567, 12], "points in the labels separate thousands"),
        (["0,125", "2,500"], [0.125, 2.5], "commas in the labels are decimal commas: '0,125' is 0.125"),
        (["-1,234", "12,5"], [-1.234, 12.5], "commas in the labels are decimal commas: '-1,234' is -1.234"),
        (["1 234,5", "2"], [1234.5, 2], "spaces or apostrophes in the labels separate thousands"),
        (["1'234.5", "2"], [1234.5, 2], "spaces or apostrophes in the labels separate thousands"),
    ],
)
@pytest.mark.parametrize("semicolons", [True, False])
def test_numbers_as_people_write_them(tmp_path, cells, values, note, semicolons) -> None:
    if semicolons:
        text = "sentence1;label\r\n" + "".join(f"a;{cell}\r\n" for cell in cells)
        found = read(tmp_path / "a.csv", text.encode())
    else:
        text = "".join(json.dumps({"sentence1": "a", "label": cell}) + "\n" for cell in cells)
        with pytest.raises(UserError, match=r":[12]: label .* may be a number.*--task_kind regression reads"):
            read(tmp_path / "a.jsonl", text.encode())
        found = read(tmp_path / "a.jsonl", text.encode(), kind="regression")
    assert found[0] == ()
    assert found[2] == values
    assert found[3][-1].startswith(note)


@pytest.mark.parametrize(
    ("cells", "doubtful"),
    [
        (["832.177", "12.500", "950"], "'832.177' is 832.177"),
        (["832.177", "12.500", "0.5"], None),  # no thousands begin with 0, or have one digit behind the point
        (["832.177", "12.5"], None),
        (["1.250", "4.875"], None),  # as likely marks from 1 to 5
    ],
)
def test_points_that_may_separate_thousands_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, cells: list[str], doubtful: str | None
) -> None:
    rows = "".join(f"text {number};{cell}\r\n" for number, cell in enumerate(cells))
    read(tmp_path / "t.csv", f"sentence1;label\r\n{rows}".encode(), kind="regression")
    assert ("if they separate thousands, remove them" in caplog.text) == (doubtful is not None)
    assert (doubtful or "") in caplog.text


def test_train_and_dev_files_are_read_alike(tmp_path: Path) -> None:
    """All commas of the dev file are before three digits. Those of the training file show that they are decimal."""
    for name, cells in (("t.csv", ("1,5", "2,25")), ("d.csv", ("1,250", "2,125"))):
        (tmp_path / name).write_text("sentence1;label\n" + "".join(f"a;{cell}\n" for cell in cells))
    task = user_task(tmp_path / "t.csv", tmp_path / "d.csv", None)
    assert read_split(task, None, "dev").labels == [1.25, 2.125]


def test_classes_that_are_numbers_are_in_order_of_number(tmp_path: Path) -> None:
    rows = "".join(f"a,{number}.0\n" for number in (10, 2, 0, 1))
    assert read(tmp_path / "a.csv", b"sentence1,label\n" + rows.encode())[0] == ("0.0", "1.0", "2.0", "10.0")
    found = read(tmp_path / "b.csv", b"sentence1,label\na,10\nb,2.5\nc,-1\n", kind="classification")
    assert found[0] == ("-1", "2.5", "10")


def test_a_class_may_have_a_comma(tmp_path: Path) -> None:
    data = b'sentence1,label\na,"Home, Garden"\nb,Home\nc,Garden\nd,Home\ne,Garden\n'
    with pytest.raises(UserError, match=r"several labels .* --task_kind classification takes the whole"):
        read(tmp_path / "a.csv", data)
    assert read(tmp_path / "a.csv", data, kind="classification")[0] == ("Garden", "Home", "Home, Garden")


def test_class_names_in_parquet_are_taken(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    feature = {"names": ["spam", "ham"], "_type": "ClassLabel"}
    metadata = {b"huggingface": json.dumps({"info": {"features": {"label": feature}}}).encode()}

    def write(name: str, labels: list[int]) -> Path:
        table = pyarrow.table({"sentence1": ["a"] * len(labels), "label": labels})
        parquet.write_table(table.replace_schema_metadata(metadata), tmp_path / name)
        return tmp_path / name

    task = user_task(write("a.parquet", [1, 0, 1]), None, None)
    assert (task.labels, task.positive_label) == (("spam", "ham"), "ham")
    assert read_split(task, None, "train").labels == [1, 0, 1]
    assert user_task(tmp_path / "a.parquet", None, None, ["0", "1"]).labels == ("0", "1")
    assert user_task(tmp_path / "a.parquet", None, None, reading=Reading(kind="regression")).labels == ()
    (tmp_path / "d.csv").write_text("sentence1,label\nx,spam\ny,ham\n")
    assert read_split(user_task(tmp_path / "a.parquet", tmp_path / "d.csv", None), None, "dev").labels == [0, 1]
    with pytest.raises(UserError, match=r"b\.parquet:2: label -1 where 0 to 1 are expected"):
        read_split(user_task(write("b.parquet", [0, -1]), None, None), None, "train")
