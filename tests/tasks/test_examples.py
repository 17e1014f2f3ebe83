from __future__ import annotations

import math
from pathlib import Path

import pytest

from emmental.tasks import TASKS, Split, evaluation_tasks, read_split, resolve_task, split_files, user_task

MRPC = "#1 ID\t#2 ID\t#1 String\t#2 String"
STSB = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2"
QQP = "question1\tquestion2"
MNLI = "index\tc1\tc2\tc3\tc4\tc5\tc6\tc7\tsentence1\tsentence2"
NLI = "index\tsentence1\tsentence2"
STSB_ROW = "5\tg\tf\ty\to\ts\ts\ta\tb"
MNLI_ROW = "2\tx\tx\tx\tx\tx\tx\tx\ta\tb"
A, B = ["a"], ["b"]

# task, split, file, header or None, rows, expected texts a, texts b, labels, indices
LAYOUTS = [
    ("cola", "train", "train.tsv", None, ["g\t1\t\tA b.", "g\t0\t*\tC"], ["A b.", "C"], None, [1, 0], ["0", "1"]),
    ("cola", "dev", "dev.tsv", None, ["g\t0\t*\ta"], A, None, [0], ["0"]),
    ("cola", "test", "test.tsv", "index\tsentence", ["0\ta", "7\tb"], ["a", "b"], None, None, ["0", "7"]),
    ("sst-2", "train", "train.tsv", "sentence\tlabel", ["a \t1", "b\t0"], ["a ", "b"], None, [1, 0], ["0", "1"]),
    ("sst-2", "dev", "dev.tsv", "sentence\tlabel", ["a\t1"], A, None, [1], ["0"]),
    ("sst-2", "test", "test.tsv", "index\tsentence", ["3\ta"], A, None, None, ["3"]),
    ("mrpc", "train", "train.tsv", f"Quality\t{MRPC}", ["0\t8\t9\ta\tb"], A, B, [0], ["0"]),
    ("mrpc", "dev", "dev.tsv", f"Quality\t{MRPC}", ['1\t8\t9\t"a\tb"'], ['"a'], ['b"'], [1], ["0"]),
    ("mrpc", "test", "test.tsv", f"index\t{MRPC}", ["4\t8\t9\ta\tb"], A, B, None, ["4"]),
    ("sts-b", "train", "train.tsv", f"{STSB}\tscore", [f"{STSB_ROW}\t2.750"], A, B, [2.75], ["5"]),
    ("sts-b", "dev", "dev.tsv", f"{STSB}\tscore", [f"{STSB_ROW}\t0"], A, B, [0.0], ["5"]),
    ("sts-b", "test", "test.tsv", STSB, [STSB_ROW], A, B, None, ["5"]),
    ("qqp", "train", "train.tsv", f"id\tqid1\tqid2\t{QQP}\tis_duplicate", ["6\t1\t2\ta\tb\t1"], A, B, [1], ["6"]),
    ("qqp", "dev", "dev.tsv", f"id\tqid1\tqid2\t{QQP}\tis_duplicate", ["6\t1\t2\ta\tb\t0"], A, B, [0], ["6"]),
    ("qqp", "test", "test.tsv", f"id\t{QQP}", ["6\ta\tb"], A, B, None, ["6"]),
    ("mnli", "train", "train.tsv", f"{MNLI}\tl1\tgold", [f"{MNLI_ROW}\tneutral\tentailment"], A, B, [1], ["2"]),
    ("mnli", "dev", "dev_matched.tsv", f"{MNLI}\tgold", [f"{MNLI_ROW}\tcontradiction"], A, B, [0], ["2"]),
    ("mnli", "test", "test_matched.tsv", MNLI, [MNLI_ROW], A, B, None, ["2"]),
    ("mnli-mm", "train", "train.tsv", f"{MNLI}\tgold", [f"{MNLI_ROW}\tentailment"], A, B, [1], ["2"]),
    ("mnli-mm", "dev", "dev_mismatched.tsv", f"{MNLI}\tgold", [f"{MNLI_ROW}\tneutral"], A, B, [2], ["2"]),
    ("mnli-mm", "test", "test_mismatched.tsv", MNLI, [MNLI_ROW], A, B, None, ["2"]),
    ("qnli", "train", "train.tsv", "index\tquestion\tsentence\tlabel", ["1\ta\tb\tentailment"], A, B, [0], ["1"]),
    ("qnli", "dev", "dev.tsv", "index\tquestion\tsentence\tlabel", ["1\ta\tb\tnot_entailment"], A, B, [1], ["1"]),
    ("qnli", "test", "test.tsv", "index\tquestion\tsentence", ["1\ta\tb"], A, B, None, ["1"]),
    ("rte", "train", "train.tsv", f"{NLI}\tlabel", ["1\ta\tb\tnot_entailment"], A, B, [1], ["1"]),
    ("rte", "dev", "dev.tsv", f"{NLI}\tlabel", ["1\ta\tb\tentailment"], A, B, [0], ["1"]),
    ("rte", "test", "test.tsv", NLI, ["1\ta\tb"], A, B, None, ["1"]),
    ("wnli", "train", "train.tsv", f"{NLI}\tlabel", ["1\ta\tb\t1"], A, B, [1], ["1"]),
    ("wnli", "dev", "dev.tsv", f"{NLI}\tlabel", ["1\ta\tb\t0"], A, B, [0], ["1"]),
    ("wnli", "test", "test.tsv", NLI, ["1\ta\tb"], A, B, None, ["1"]),
    ("ax", "test", "AX.tsv", NLI, ["1\ta\tb"], A, B, None, ["1"]),
    ("ax", "test", "diagnostic.tsv", NLI, ["1\ta\tb"], A, B, None, ["1"]),
]


def write(folder: Path, name: str, *lines: str) -> Path:
    path = folder / name
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def message_of(task: str, folder: Path, split: str) -> str:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        read_split(resolve_task(task), folder, split)
    return str(caught.value)


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "bom"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout[0]}-{layout[2]}")
def test_layouts(tmp_path: Path, layout: tuple, mark: str) -> None:
    task, split, file, header, rows, *expected = layout
    lines = rows if header is None else [header, *rows]
    write(tmp_path, file, mark + lines[0], *lines[1:])
    assert read_split(TASKS[task], tmp_path, split) == Split(*expected)


def test_labels_metrics_and_files_of_the_tasks() -> None:
    table = {
        name: (task.num_labels, task.metrics, task.primary_metric, task.prediction_file)
        for name, task in TASKS.items()
    }
    both = ("acc", "f1", "acc_and_f1")
    assert table == {
        "cola": (2, ("mcc",), "mcc", "CoLA.tsv"),
        "sst-2": (2, ("acc",), "acc", "SST-2.tsv"),
        "mrpc": (2, both, "acc_and_f1", "MRPC.tsv"),
        "sts-b": (1, ("pearson", "spearmanr", "corr", "rmse", "mae"), "corr", "STS-B.tsv"),
        "qqp": (2, both, "acc_and_f1", "QQP.tsv"),
        "mnli": (3, ("mnli/acc",), "mnli/acc", "MNLI-m.tsv"),
        "mnli-mm": (3, ("mnli-mm/acc",), "mnli-mm/acc", "MNLI-mm.tsv"),
        "qnli": (2, ("acc",), "acc", "QNLI.tsv"),
        "rte": (2, ("acc",), "acc", "RTE.tsv"),
        "wnli": (2, ("acc",), "acc", "WNLI.tsv"),
        "ax": (3, (), None, "AX.tsv"),
    }
    assert [name for name, task in TASKS.items() if task.is_regression] == ["sts-b"]
    assert TASKS["mnli"].labels == TASKS["ax"].labels == ("contradiction", "entailment", "neutral")
    assert evaluation_tasks(TASKS["mnli"]) == (TASKS["mnli"], TASKS["mnli-mm"])
    assert evaluation_tasks(TASKS["rte"]) == (TASKS["rte"],)


@pytest.mark.parametrize(
    ("name", "task"), [("MRPC", "mrpc"), ("sst2", "sst-2"), ("STSB", "sts-b"), ("mnli_mismatched", "mnli-mm")]
)
def test_names_in_any_case_and_aliases(name: str, task: str) -> None:
    assert resolve_task(name) is TASKS[task]


def test_unknown_task_lists_the_names() -> None:
    with pytest.raises(
        ValueError, match="--task_name 'mprc' is none of cola, sst-2 or sst2, mrpc, sts-b or stsb, qqp, "
    ):
        resolve_task("mprc")


@pytest.mark.parametrize(
    ("task", "split", "file", "lines", "message"),
    [
        ("rte", "dev", "dev.tsv", ["index\tsentence1\tsentence2\tlabel", "0\ta\tb\tentailment", "1\ta\tb"],
         ":3: 3 columns where the header has 4"),
        ("rte", "dev", "dev.tsv", ["index\tsentence1\tsentence2\tlabel", "0\ta\tb\tmaybe"],
         ":2: label 'maybe' is none of entailment, not_entailment"),
        ("rte", "dev", "dev.tsv", ["0\ta\tb\tentailment"] * 2, ":1: an example where the header is expected"),
        ("rte", "test", "test.tsv", ["0\ta\tb"] * 2, ":1: an example where the header is expected"),
        ("rte", "dev", "dev.tsv", ["index\tsentence2\tsentence1\tlabel", "0\ta\tb\tentailment"],
         ":1: 'sentence1' is column 2 where task rte has column 1, counted from 0"),
        ("sst-2", "test", "test.tsv", ["sentence\tlabel", "a\t1"],
         ":1: 'sentence' is column 0 where task sst-2 has column 1, counted from 0"),
        ("sst-2", "dev", "dev.tsv", ["label\tsentence", "1\ta"],
         ":1: 'sentence' is column 1 where task sst-2 has column 0, counted from 0"),
        ("mrpc", "dev", "dev.tsv", ["q\ta\tb", "1\ta\tb"], ":1: 3 columns where at least 4 are expected"),
        ("cola", "dev", "dev.tsv", ["g\t1\t\ta", "g\t1\t*"], ":2: 3 columns where at least 4 are expected"),
        ("cola", "dev", "dev.tsv", ["g\t1\t\ta", "g\t2\t\ta"], ":2: label '2' is none of 0, 1"),
        ("cola", "dev", "dev.tsv", [""], ":1: the file is empty"),
    ],
)  # fmt: skip
def test_faults_name_file_and_line(
    tmp_path: Path, task: str, split: str, file: str, lines: list[str], message: str
) -> None:
    path = write(tmp_path, file, *lines)
    assert message_of(task, tmp_path, split) == f"{path}{message}"


@pytest.mark.parametrize("score", ["high", "inf", "5.001", "-0.1", "1_0", "٣", "2,5"])
def test_scores_out_of_range(tmp_path: Path, score: str) -> None:
    path = write(tmp_path, "dev.tsv", f"{STSB}\tscore", f"{STSB_ROW}\t5.000", f"{STSB_ROW}\t{score}")
    assert message_of("sts-b", tmp_path, "dev") == (
        f"{path}:3: score {score!r} where a number from 0 to 5 is expected"
    )


def test_missing_files_and_splits(tmp_path: Path) -> None:
    assert message_of("mnli-mm", tmp_path, "dev") == (
        f"--data_dir {tmp_path}: dev_mismatched.tsv is missing, the dev split of --task_name mnli-mm"
    )
    assert message_of("ax", tmp_path, "test") == (
        f"--data_dir {tmp_path}: AX.tsv or diagnostic.tsv is missing, the test split of --task_name ax"
    )
    assert message_of("ax", tmp_path, "dev").startswith("--task_name ax has no dev split")
    path = write(tmp_path, "train.tsv", "x")
    assert split_files(TASKS["mnli-mm"], tmp_path, "train") == [path]


def test_own_csv_pairs_with_discovered_integer_labels(tmp_path: Path) -> None:
    train = write(tmp_path, "t.csv", "label,sentence1,sentence2", '10,"a, b",c', "9,d,e", "-1,f,g")
    test = write(tmp_path, "p.csv", "sentence1,sentence2,index", "x,y,n7")
    task = user_task(train, None, test)
    assert (task.name, task.labels, task.metrics, task.primary_metric) == (
        "custom",
        ("-1", "9", "10"),
        ("acc", "f1"),
        "acc",
    )
    assert read_split(task, None, "train") == Split(["a, b", "d", "f"], ["c", "e", "g"], [2, 1, 0], ["0", "1", "2"])
    assert read_split(task, None, "test") == Split(["x"], ["y"], None, ["n7"])
    with pytest.raises(ValueError, match="--validation_file is not given"):
        read_split(task, None, "dev")


def test_own_json_lines_with_words_as_labels(tmp_path: Path) -> None:
    train = write(tmp_path, "t.jsonl", '{"sentence1": "a", "label": "pos"}', '{"label": "neg", "sentence1": "b"}')
    test = write(tmp_path, "p.jsonl", '{"sentence1": "c", "label": null}')
    task = user_task(train, train, test)
    assert task.labels == ("neg", "pos")
    assert read_split(task, None, "dev") == Split(["a", "b"], None, [1, 0], ["0", "1"])
    assert read_split(task, None, "test") == Split(["c"], None, None, ["0"])


def test_own_regression(tmp_path: Path) -> None:
    train = write(tmp_path, "t.tsv", "sentence1\tlabel", '"a\t1', "b\t-7.25")
    dev = write(tmp_path, "d.tsv", "sentence1\tlabel", "a\tinf")
    task = user_task(train, dev, None)
    assert (task.is_regression, task.num_labels, task.primary_metric) == (True, 1, "corr")
    assert read_split(task, None, "train") == Split(['"a', "b"], None, [1.0, -7.25], ["0", "1"])
    with pytest.raises(ValueError, match=r"d\.tsv:2: score 'inf' where a number that is finite is expected"):
        read_split(task, None, "dev")


def test_whole_numbers_are_classes_even_as_floats(tmp_path: Path) -> None:
    train = write(tmp_path, "t.tsv", "sentence1\tlabel", "a\t1.0", "b\t2.0")
    assert user_task(train, None, None).labels == ("1.0", "2.0")


def test_given_labels_keep_their_order(tmp_path: Path) -> None:
    dev = write(tmp_path, "d.tsv", "sentence1\tlabel", "a\tno", "b\tmaybe")
    task = user_task(None, dev, None, labels=["yes", "no"])
    with pytest.raises(ValueError, match=r"d\.tsv:3: label 'maybe' is none of yes, no"):
        read_split(task, None, "dev")
    assert user_task(None, dev, None, labels=[]).is_regression


def test_faults_of_own_files(tmp_path: Path) -> None:
    good = write(tmp_path, "good.tsv", "sentence1\tlabel", "a\t0", "b\t1")
    pair = write(tmp_path, "pair.tsv", "sentence1\tsentence2\tlabel", "a\tb\t0")
    bare = write(tmp_path, "bare.tsv", "sentence1", "a")
    many = write(tmp_path, "many.tsv", "sentence1\tlabel", *(f"a\t{math.sqrt(n + 2)}" for n in range(1001)), "a\t1,5")
    cases = [
        ((None, None, None), "--train_file, --validation_file or --test_file is required"),
        ((None, None, bare), "--train_file or --validation_file is required to know the labels"),
        ((tmp_path / "no.csv", None, None), "--train_file .*no.csv is not a file"),
        ((write(tmp_path, "x.txt", "a"), None, None), r"--train_file .*x\.txt: \.txt suffix where"),
        ((good, pair, None), "some have a column 'sentence2', others do not"),
        ((bare, None, None), r"bare\.tsv:1: no column named 'label'; the columns are sentence1"),
        ((good, bare, None), r"bare\.tsv:1: no column named 'label'"),
        ((pair, None, None), r"pair\.tsv: one label only, '0'"),
        (
            (many, None, None),
            r"many\.tsv:1003: '1,5' is not a number, but most labels are; correct it, or give --task_kind",
        ),
    ]
    for files, message in cases:
        with pytest.raises(ValueError, match=message):
            user_task(*files)
    with pytest.raises(ValueError, match="two or more different ones"):
        user_task(good, None, None, labels=["0", "0"])


@pytest.mark.glue
@pytest.mark.parametrize(
    ("task", "folder", "train", "dev"),
    [
        ("mrpc", "MRPC", 3668, 408),
        ("rte", "RTE", 2490, 277),
        ("sts-b", "STS-B", 5749, 1500),
        ("sst-2", "SST-2", 67349, 872),
    ],
)
def test_real_files_have_the_documented_sizes(glue_dir: Path, task: str, folder: str, train: int, dev: int) -> None:
    splits = [read_split(TASKS[task], glue_dir / folder, split) for split in ("train", "dev")]
    assert [len(split.texts_a) for split in splits] == [train, dev]
    assert all(len(split.labels or []) == len(split.texts_a) == len(split.indices) for split in splits)


@pytest.mark.glue
def test_real_mrpc_is_read_literally(glue_dir: Path) -> None:
    train = read_split(TASKS["mrpc"], glue_dir / "MRPC", "train")
    assert train.texts_a[0].startswith('Amrozi accused his brother, whom he called "the witness", of')
    assert sum(train.labels or []) == 2474
