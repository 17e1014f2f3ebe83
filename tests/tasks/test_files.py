from __future__ import annotations

from pathlib import Path

import pytest

from emmental.tasks.files import read_table, table_format


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def test_only_newlines_end_a_line(tmp_path: Path) -> None:
    odd = "a\u2028b\x0bc\x0cd\x85e\x1cf\rg"
    table = read_table(write(tmp_path, "t.tsv", f"h1\th2\r\n{odd}\tx\r\n1\ty\r\n"), "tsv")
    assert table.header == ["h1", "h2"]
    assert table.rows == [(2, [odd, "x"]), (3, ["1", "y"])]


def test_byte_order_mark_and_quotes_in_tsv(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "t.tsv", b'\xef\xbb\xbfa\tb\n"x\ty"\n'), "tsv")
    assert table.header == ["a", "b"]
    assert table.rows == [(2, ['"x', 'y"'])]


def test_csv_quotes_and_counts_lines_inside_cells(tmp_path: Path) -> None:
    content = 'sentence1, label\n"one, ""two""\nthree",0\nfour,1\n'
    table = read_table(write(tmp_path, "t.csv", content), "csv")
    assert table.header == ["sentence1", "label"]
    assert table.rows == [(2, ['one, "two"\nthree', "0"]), (4, ["four", "1"])]


def test_json_lines_keep_the_asked_keys_as_text(tmp_path: Path) -> None:
    content = '{"sentence1": "a", "label": 1, "meta": [1]}\n{"label": 2.5, "sentence1": "b\\u00e9"}\n'
    table = read_table(write(tmp_path, "t.jsonl", content), "jsonl", keys=("sentence1", "label"))
    assert table.header == ["sentence1", "label"]
    assert table.rows == [(1, ["a", "1"]), (2, ["bé", "2.5"])]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.tsv", b"", ":1: the file is empty"),
        ("t.tsv", b"\xef\xbb\xbf\n\n", ":1: the file is empty"),
        ("t.tsv", b"a\tb\n", ":1: a header and no examples"),
        ("t.tsv", b"a\tb\n1\t2\n3\n", ":3: 1 columns where the header has 2"),
        ("t.tsv", b"a\tb\n1\t2\t3\n", ":2: 3 columns where the header has 2"),
        (
            "t.tsv",
            b"a\tb\n1\t2\n\xff\t1\n",
            ":3: byte 0xff is not UTF-8;",
        ),
        (
            "t.tsv",
            b"\xef\xbb\xbfa\tb\n1\t\xe9\n",
            ":2: byte 0xe9 is not UTF-8;",
        ),
        (
            "t.csv",
            b'a,b\n1,2\n"x,3\n',
            ":3: not CSV: the quote that opens here is never closed",
        ),
        (
            "t.csv",
            b'a,b\n"x"y,3\n',
            ":2: not CSV: text after a closing quote",
        ),
        ("t.jsonl", b'{"a": 1}\n{"a": \n', ":2: not JSON; one object a line is expected"),
        ("t.jsonl", b"[" * 100_000 + b"\n", ":1: not JSON; one object a line is expected; the"),
        ("t.jsonl", b'{"a": 1}\n[1]\n', ":2: a JSON object is expected"),
        (
            "t.jsonl",
            b'{"a": 1}\n{"b": 1}\n',
            ":2: its columns are b; those of line 1 are a",
        ),
        ("t.jsonl", b'{"a": 1}\n{"a": null}\n', ":2: 'a' is missing (null); it must be a string or a number"),
        ("t.jsonl", b'{"a": "\\ud800"}\n', ":1: 'a' has half of a surrogate pair, which is no character"),
    ],
)
def test_faults_name_file_and_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        read_table(path, table_format(path), keys=("a",))
    assert str(caught.value).startswith(f"{path}{message}")


def test_columns_by_position_and_by_name(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "t.tsv", "a\tb\ta\n1\t2\t3\n"), "tsv")
    assert [table.column(-1), table.column(0), table.column("b")] == [2, 0, 1]
    for column, message in (
        (3, "3 columns where at least 4 are expected"),
        ("a", "more than one column named 'a'; the columns are a, b, a"),
        ("c", "no column named 'c'; the columns are a, b, a"),
    ):
        with pytest.raises(ValueError, match=message):
            table.column(column)


def test_suffixes() -> None:
    assert [table_format(f"x{s}") for s in (".tsv", ".CSV", ".json", ".jsonl")] == ["tsv", "csv", "jsonl", "jsonl"]
    with pytest.raises(ValueError, match=r"x\.txt: \.txt suffix where \.tsv, \.csv, .*, \.parquet are accepted"):
        table_format("x.txt")


def test_a_column_name_over_two_lines_does_not_break_the_message(tmp_path):
    (tmp_path / "a.csv").write_text('"two\nlines",b\n1,2\n')
    table = read_table(tmp_path / "a.csv", "csv")
    with pytest.raises(ValueError, match=r"a\.csv:1: no column named 'label'; the columns are two lines, b$"):
        table.column("label")
