"""`--vocabulary` in the trainer: the small model reads fewer tokens, and its teacher the same rows in all of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import forked
import numpy as np
import onnxruntime
import pytest
import tiny_vocabulary
import torch
from faults.runs import Command, difference, last_lines, log_of
from safetensors.torch import load_file
from test_phases import even_table
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import masked_run_glue
from distiller import TaskDistiller
from emmental.cascade.stages import TOKENIZER_FILE
from emmental.export.onnx import export_onnx_folder
from emmental.export.sparse import load_sparse
from emmental.export.storage import save_package
from emmental.reporting import command as report
from emmental.reporting.before_after import TrainedModels, embeddings_share
from emmental.reporting.summary import final_table
from emmental.runs.output_folder import OutputFolder
from emmental.structured.vocabulary import embedding_weights

KINDS = {"bert": "WordPiece", "roberta": "BPE", "xlm-roberta": "Unigram"}
UNSTRUCTURED = ("--granularity", "unstructured")
LADDER = ("--keep", "0.5", "0.25")
SIZE, WHOLE = 150, 250
LETTERS = tiny_vocabulary.LETTERS[:7]
SPELT = {"padding": True, "truncation": True, "max_length": 16, "return_tensors": "pt"}


class World:
    """For each type a model whose tokenizer has more tokens than its texts use, and files of such texts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, count, seed in (("train", 64, 1), ("dev", 30, 2), ("test", 20, 3), ("more", 24, 4)):
            rows = [f"{text}\t{'ab'[text[0] in LETTERS]}" for text in tiny_vocabulary.texts(count, seed)]
            (folder / f"{name}.tsv").write_text("\n".join(["sentence1\tlabel", *rows]) + "\n")

    def command(self, *flags: str, model_type: str = "bert") -> Command:
        """The trainer: 20 dense updates, fewer tokens, a cut, 6 updates of recovery."""
        model = self.folder / model_type
        if not model.exists():
            tokenizer = tiny_vocabulary.tokenizer(model_type)
            tiny_vocabulary.model(model_type, tokenizer).save_pretrained(model)
            tokenizer.save_pretrained(model)
        given = (
            *("--train_file", str(self.folder / "train.tsv"), "--validation_file", str(self.folder / "dev.tsv")),
            *("--test_file", str(self.folder / "test.tsv"), "--do_train", "--do_eval", "--do_predict"),
            *("--model_name_or_path", str(model), "--feature_cache_dir", "{run}/caches", "--no_cuda", "--no-pictures"),
            *(
                "--max_seq_length",
                "16",
                "--no-engines",
                "--max_steps",
                "6",
                "--save_steps",
                "4",
                "--logging_steps",
                "3",
            ),
            *(flag.replace("{world}", str(self.folder)) for flag in flags),
        )
        main, stepper = masked_run_glue.main, TaskDistiller
        return Command(" ".join(flags), main, given, "--output_dir", "masked_run_glue.py", stepper)

    def finished(self, output: Path, *flags: str, model_type: str = "bert") -> Path:
        assert self.command(*flags, model_type=model_type).finish(output) is None
        return output


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def structured(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.finished(tmp_path_factory.mktemp("structured") / "out", "--vocabulary", str(SIZE))


@pytest.fixture(scope="module")
def unstructured(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("unstructured") / "out"
    return world.finished(output, "--vocabulary", str(SIZE), *UNSTRUCTURED)


def tokens(folder: Path) -> int:
    """Number of tokens of the model in a folder, which is that of its tokenizer."""
    embeddings = AutoModelForSequenceClassification.from_pretrained(folder).get_input_embeddings()
    assert embeddings.weight.shape[0] == len(AutoTokenizer.from_pretrained(folder))
    return embeddings.weight.shape[0]


def logits_of(folder: Path, texts: list[str]) -> torch.Tensor:
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    with torch.no_grad():
        return model.eval()(**tokenizer(texts, **SPELT)).logits


@pytest.mark.parametrize(("model_type", "size"), [("bert", "auto"), ("roberta", "480"), ("xlm-roberta", "90")])
def test_the_folder_has_the_tokens_that_the_texts_use(
    world: World, model_type: str, size: str, tmp_path: Path
) -> None:
    """What is predicted, exported and packaged is what the folder answers in its own tokens."""
    output = world.finished(tmp_path / "out", "--vocabulary", size, model_type=model_type)
    whole, kept = len(tiny_vocabulary.tokenizer(model_type)), tokens(output)
    assert json.loads((output / "tokenizer.json").read_text())["model"]["type"] == KINDS[model_type]
    assert (tokens(output / "dense"), tokens(output / "vocabulary")) == (whole, kept)
    assert kept < whole if size == "auto" else kept == int(size)
    assert json.loads((output / "summary.json").read_text())["vocabulary"] == {"tokens": kept, "dense": whole}
    assert f"vocabulary: {kept} of {whole} tokens stay" in log_of(output).read_text()
    answers = logits_of(output, tiny_vocabulary.texts(20, 3))
    rows = [line.split("\t") for line in (output / "predictions.tsv").read_text().splitlines()[1:]]
    names = AutoModelForSequenceClassification.from_pretrained(output).config.id2label
    assert [row[1] for row in rows] == [names[number] for number in answers.argmax(1).tolist()]
    checked = forked.run(check_exports, [str(output)], tmp_path / "exports.txt", lambda: None)
    assert checked == 0, (tmp_path / "exports.txt").read_text()


def check_exports(argv: list[str]) -> None:
    """ONNX in fp32 and int8, and the package, answer as the folder does, each with the tokenizer that lies in it."""
    output, texts = Path(argv[0]), tiny_vocabulary.texts(20, 3)
    answers, onnx, package = logits_of(output, texts), output.parent / "onnx", output.parent / "model.emmental"
    export_onnx_folder(output, onnx, True, texts=texts)
    tokenizer = Tokenizer.from_file(str(onnx / TOKENIZER_FILE))
    tokenizer.enable_truncation(16)
    encoding = tokenizer.encode(texts[0])
    names = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    for name, atol in (("model", 1e-4), ("model_quantized", 0.1)):
        session = onnxruntime.InferenceSession(onnx / "onnx" / f"{name}.onnx")
        given = {each.name: np.array([getattr(encoding, names[each.name])]) for each in session.get_inputs()}
        np.testing.assert_allclose(session.run(None, given)[0], answers[:1], atol=atol)
    save_package(output, package)
    encodings = AutoTokenizer.from_pretrained(output)(texts, **SPELT)
    torch.testing.assert_close(load_sparse(package)(**encodings).logits, answers, atol=1e-3, rtol=0)


KILLED = [
    (masked_run_glue, "tokenise", 1),  # the tokens are chosen and written, the rows not yet spelt again
    ("emmental.atomic", "_fsync", 1),  # while they are written
    (TaskDistiller, "step", 25),  # in the recovery, after its first checkpoint
    (OutputFolder, "save_model", 2),
    (masked_run_glue, "save", 1),
]


@pytest.mark.parametrize(("owner", "name", "call"), KILLED)
@pytest.mark.parametrize("flags", [(), UNSTRUCTURED], ids=["structured", "unstructured"])
def test_killed_anywhere_the_same_command_ends_with_the_same_bits(
    world: World, flags: tuple, owner: object, name: str, call: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    whole = request.getfixturevalue("unstructured" if flags else "structured")
    command, output = world.command("--vocabulary", str(SIZE), *flags), tmp_path / "out"
    kill: Callable[[], None] = forked.kill_at_call(owner, name, call) if not isinstance(owner, str) else in_phase(name)
    assert command.run(output, kill) == -9
    assert command.finish(output) is None
    assert difference(output, whole) is None


def in_phase(name: str) -> Callable[[], None]:
    """Kill at the first call of a function of `emmental.atomic` while the tokens are removed."""

    def before() -> None:
        phase = sys.modules["emmental.training.phases.fewer_tokens"].FewerTokens
        original = phase.run

        def run(*args: object) -> object:
            forked.kill_at_call(sys.modules["emmental.atomic"], name, 1)()
            return original(*args)

        phase.run = run

    return before


def test_the_teacher_reads_its_own_tokens(world: World, structured: Path, tmp_path: Path) -> None:
    """Its answers are those of a run that keeps all tokens, from the same cache, and the dense model's own."""
    assert world.command().finish(tmp_path / "out") is None
    caches = [[*(folder.parent / "caches").glob("teacher-*")] for folder in (structured, tmp_path / "out")]
    assert [folder.name for folder in caches[0]] == [folder.name for folder in caches[1]]
    logits = load_file(caches[0][0] / "logits.safetensors")["logits"]
    wanted = logits_of(structured / "dense", tiny_vocabulary.texts(64, 1))
    torch.testing.assert_close(logits, wanted, atol=0.02, rtol=0)


def test_a_ladder_has_one_vocabulary(world: World, tmp_path: Path) -> None:
    output = world.finished(tmp_path / "out", "--vocabulary", "auto", *LADDER)
    folders = [output / "keep-0.5", output / "keep-0.25", output]
    assert len({(folder / "tokenizer.json").read_bytes() for folder in folders}) == 1
    assert [(folder / "vocabulary").is_dir() for folder in folders] == [True, False, False]
    assert {*map(tokens, folders)} == {tokens(output / "keep-0.5" / "vocabulary")}


def test_a_speedup_is_that_of_the_model_with_fewer_tokens(world: World, structured: Path, tmp_path: Path) -> None:
    start = ("--model_name_or_path", str(structured / "dense"), "--no-dense_first", "--num_train_epochs", "0")
    flags = ("--vocabulary", "auto", "--speedup", "1.5", "--speedup_length", "16", "--max_steps", "-1")
    output = tmp_path / "out"
    assert world.command(*start, *flags).run(output, even_table) == 0
    assert tokens(output) == tokens(output / "vocabulary") < WHOLE
    assert "times as fast as dense (1 x 16, PyTorch fp32), 1.5 asked" in log_of(output).read_text()


def test_text_without_labels_counts(world: World, structured: Path, tmp_path: Path) -> None:
    start = ("--model_name_or_path", str(structured / "dense"), "--no-dense_first", "--num_train_epochs", "0")
    cut = (*start, "--max_steps", "-1", "--vocabulary", "auto")
    alone = world.finished(tmp_path / "alone" / "out", *cut)
    trained = (*start[:3], "--vocabulary", "auto", "--unlabeled_file", "{world}/more.tsv")
    more = world.finished(tmp_path / "more" / "out", *trained)
    used = [set(), set()]
    tokenizer = tiny_vocabulary.tokenizer("bert")
    for place, seeds in enumerate([[(64, 1)], [(64, 1), (24, 4)]]):
        texts = [text for count, seed in seeds for text in tiny_vocabulary.texts(count, seed)]
        ids = [number for text in texts for number in tokenizer(text)["input_ids"]]
        used[place] = {tokenizer.convert_ids_to_tokens(number) for number in ids if ids.count(number) > 1}
    vocabularies = [AutoTokenizer.from_pretrained(folder).get_vocab().keys() for folder in (alone, more)]
    assert used[0] <= vocabularies[0]
    assert used[1] <= vocabularies[1]
    assert not used[1] <= vocabularies[0]


@pytest.mark.parametrize(
    "flags",
    [
        ("--pruning_method", "topK"),
        ("--recipe", "paper", "--dense_first", "--final_threshold", "0.3"),
        ("--cascade", "--changed", "0.5"),
        ("--save_dtype", "float16"),
    ],
)
def test_every_route_from_a_dense_model(world: World, flags: tuple, tmp_path: Path) -> None:
    output = world.finished(tmp_path / "out", "--vocabulary", str(SIZE), *flags)
    assert tokens(output) == SIZE
    assert tokens(output / "dense") == WHOLE
    if "--cascade" in flags:
        settings = json.loads((output / "cascade" / "cascade.json").read_text())
        assert settings["stages"]


def test_two_processes_choose_the_same_tokens(world: World, structured: Path, tmp_path: Path) -> None:
    start = ("--model_name_or_path", str(structured / "dense"), "--num_train_epochs", "0", "--max_steps", "-1")
    command, output = (
        world.command("--vocabulary", str(SIZE), *start, "--no-dense_first", "--threads", "1"),
        tmp_path / "out",
    )
    assert command.run(output, forked.as_two_ranks(lambda rank: None)) == 0, last_lines(output)
    assert (output / "tokenizer.json").read_bytes() == (structured / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--vocabulary", "3"), r"--vocabulary accepts auto or 35 (characters and special tokens always stay) to 250"),
        (("--vocabulary", "some"), "--vocabulary accepts auto, all, or a number of tokens that stay, not 'some'"),
        (("--vocabulary", "0"), "--vocabulary accepts auto, all, or a number of tokens that stay, not '0'"),
        (("--vocabulary", "auto", "--recipe", "paper"), "takes tokens from a dense model; give --dense_first"),
        (("--vocabulary", "auto", "--model_type", "bert"), "--vocabulary is for pruned models"),
        (("--vocabulary", "auto", "--alpha_hidden_mse", "1"), "omit --alpha_hidden_cos and --alpha_hidden_mse"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(world: World, flags: tuple, message: str, tmp_path: Path) -> None:
    assert world.command(*flags).run(tmp_path / "out") == 2
    assert message in last_lines(tmp_path / "out", 1)
    assert not (tmp_path / "out").exists()


def test_auto_that_finds_nothing_says_what_to_give(
    world: World, structured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Answers always change: all tokens stay, and the warning names the number that the rows use twice."""
    monkeypatch.setattr("emmental.structured.vocabulary.MOST_CHANGED", 0.0)
    start = ("--model_name_or_path", str(structured / "dense"), "--no-dense_first", "--num_train_epochs", "0")
    masked_run_glue.main(world.command("--vocabulary", "auto", *start, "--max_steps", "-1").argv(tmp_path / "out"))
    fewest = json.loads((tmp_path / "out" / "vocabulary" / "vocabulary.json").read_text())["fewest"]
    assert 35 < fewest < WHOLE
    said, advice = f"all {WHOLE} tokens stay", f"--vocabulary {fewest} keeps those that the rows use twice"
    assert any(said in line and advice in line for line in capsys.readouterr().err.splitlines())


def test_another_number_in_the_same_folder_is_refused(world: World, structured: Path) -> None:
    assert world.command("--vocabulary", str(SIZE + 1)).run(structured) == 2
    assert "vocabulary '150' -> '151'" in last_lines(structured, 1)


def test_what_a_run_without_it_says(monkeypatch: pytest.MonkeyPatch, world: World, tmp_path: Path) -> None:
    """By hand: of 250 tokens 100 stay, 1,024 numbers each: 0.61 of the embeddings' 1.02 MB, of 2.13 in the file."""
    big = ("hidden_size", 1024), ("num_hidden_layers", 1), ("intermediate_size", 1), ("max_position_embeddings", 16)
    tokenizer = tiny_vocabulary.tokenizer("bert")
    model = tiny_vocabulary.model("bert", tokenizer, **dict(big))
    monkeypatch.setattr("emmental.structured.vocabulary.Vocabulary.seen_often", lambda *_: 100)
    monkeypatch.setattr("emmental.structured.vocabulary._WORTH_SAYING", 0.01)
    argv = world.command(model_type="bert").argv(tmp_path / "out")
    said = []
    original = masked_run_glue.final_table

    def shown(run: object, made: TrainedModels, *others: object) -> str:
        for vocabulary in ("all", "200"):
            run.vocabulary = vocabulary
            made.model, made.tokenizer = model, tokenizer
            said.append(final_table(run, made, *others).splitlines())
        return original(run, made, *others)

    monkeypatch.setattr(masked_run_glue, "final_table", shown)
    masked_run_glue.main(argv)
    whole = sum(each.numel() for each in model.parameters()) * 4e-6
    line = f"1 of {whole:.0f} MB are embeddings of tokens that your texts hardly use: --vocabulary auto"
    assert line in said[0]
    assert line not in said[1]
    share = 100 * embedding_weights(model) / sum(each.numel() for each in model.parameters())
    assert any(f"{share:.0f} % embeddings of tokens)" in row for row in said[0])
    assert embeddings_share(model) == pytest.approx(share / 100)


def test_the_card_says_the_share(structured: Path) -> None:
    share = json.loads((structured / "summary.json").read_text())["embeddings"]
    assert (
        f"- Vocabulary: 150 of 250 tokens; their embeddings are {100 * share:.0f} % of the file."
        in (structured / "README.md").read_text()
    )


def test_the_report_asks_each_model_in_its_own_tokens(world: World, structured: Path, tmp_path: Path) -> None:
    flags = ["--model_name_or_path", str(structured), "--validation_file", str(world.folder / "dev.tsv")]
    places = ["--output", str(tmp_path / "r.html"), "--results", str(tmp_path / "r.json"), "--model_card"]
    fast = ["--seconds", "0.01", "--batch_sizes", "1", "--lengths", "8"]
    status = forked.run(report.main, [*flags, *places, *fast], tmp_path / "log.txt", lambda: None)
    assert status == 0, (tmp_path / "log.txt").read_text()
    results = json.loads((tmp_path / "r.json").read_text())
    quality = {row["name"]: row["metrics"]["acc"] for row in results["quality"]}
    texts = tiny_vocabulary.texts(30, 2)
    labels = torch.tensor([int(text[0] in LETTERS) for text in texts])
    for name, folder in (("dense", structured / "dense"), ("torch", structured)):
        assert quality[name] == pytest.approx(float((logits_of(folder, texts).argmax(1) == labels).float().mean()))
    rows = {row["name"]: row["bytes"] - row["without_embeddings"] for row in results["sizes"]}
    hidden = AutoModelForSequenceClassification.from_pretrained(structured).config.hidden_size
    assert rows["dense"] - rows["bertarized"] == 4 * hidden * (WHOLE - SIZE)
    assert "| file | MB | without embeddings, MB | embeddings |" in (structured / "README.md").read_text()
