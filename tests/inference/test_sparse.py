"""Sparse models answer as the masked ones they come from, whatever the head, density and batch, and from the shell."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import tiny
import tiny_masked
import torch
from transformers import BertConfig, pipeline
from transformers.models.bert.modeling_bert import BertEncoder

from emmental.export.bertarize import bertarize, bertarize_folder
from emmental.export.package import write_package
from emmental.export.storage import save_package, to_package
from emmental.inference.predict import main
from emmental.inference.sparse import load_sparse, sparsify
from emmental.inference.sparse_encoder import SparseEncoder
from emmental.inference.sparse_matrix import DenseBlockLinear, SparseBlockLinear
from emmental.patching import masked_layers, set_threshold

SENTENCES = ["kasa lofi mite", "nuvo", "peda rizu kavo lote [SEP] mi", ""]


def prune(model, density):
    set_threshold(model, density)
    return model


def linears(model):
    return [m for m in model.modules() if isinstance(m, SparseBlockLinear | DenseBlockLinear)]


def ragged(batch, length=20, seed=0):
    """Token numbers and a mask with a sequence of each length from 1 on, then of random ones."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, tiny_masked.SIZES["vocab_size"], (batch, length), generator=generator)
    lengths = torch.randint(1, length + 1, (batch, 1), generator=generator)
    lengths[0] = length
    return ids, (torch.arange(length) < lengths).long()


@pytest.mark.parametrize("head", tiny_masked.HEADS)
def test_every_head(head):
    model = tiny_masked.make(head)
    sparse = sparsify(model)
    assert type(sparse).__name__ == head.removeprefix("Masked")
    ids, mask = ragged(4)
    types = (torch.arange(20) > 9).long().expand(4, 20)
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    if "MultipleChoice" in head:
        inputs = {name: value.view(2, 2, 20) for name, value in inputs.items()}
    with torch.no_grad():
        expected, found = model(**inputs), sparse(**inputs)
    assert list(found.keys()) == list(expected.keys())
    for name in expected:
        per_token = expected[name].shape[:2] == ids.shape
        kept = mask.bool() if per_token else slice(None)
        torch.testing.assert_close(found[name][kept], expected[name][kept], atol=1e-5, rtol=0)


@pytest.mark.parametrize("density", [0.0, 0.01, 0.03, 0.1, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("dense_above", [-1.0, 0.3, 1.0])
def test_every_density(density, dense_above):
    model = prune(tiny_masked.make(), density)
    sparse = sparsify(model, dense_above)
    ids, mask = ragged(3)
    with torch.no_grad():
        torch.testing.assert_close(sparse(ids, mask).logits, model(ids, mask).logits, atol=1e-5, rtol=0)
    falls_back = density / dense_above > 0.9 if dense_above > 0 else True
    assert isinstance(sparse.bert.encoder, BertEncoder if falls_back else SparseEncoder)
    assert (SparseBlockLinear in {type(linear) for linear in linears(sparse)}) is not falls_back


def test_each_matrix_in_its_faster_form():
    model = bertarize(prune(tiny_masked.make(), 1.0))
    for name, parameter in model.bert.encoder.named_parameters():
        if parameter.dim() == 2 and ("layer.0" in name or "intermediate" in name):
            rows, columns = (torch.arange(size) for size in parameter.shape)
            parameter.data[(rows[:, None] + columns) % 8 != 0] = 0  # an eighth stays, in every row and column
    sparse = sparsify(model)
    first, second = sparse.bert.encoder.layer
    assert {type(linear) for linear in linears(first)} == {SparseBlockLinear}
    assert [type(getattr(second, name)) for name in ("qkv", "output", "up", "down")] == [
        DenseBlockLinear,
        DenseBlockLinear,
        SparseBlockLinear,
        DenseBlockLinear,
    ]
    ids, mask = ragged(3)
    with torch.no_grad():
        torch.testing.assert_close(sparse(ids, mask).logits, model(ids, mask).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["threshold", "sigmoied_threshold", "magnitude", "l0"])
def test_every_method(method):
    model = tiny_masked.make(method=method)
    for found, expected in zip(tiny_masked.outputs(sparsify(model)), tiny_masked.outputs(model), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("batch", [1, 2, 7, 40])
@pytest.mark.parametrize("threads", [1, 2])
def test_every_batch(batch, threads):
    model = tiny_masked.make()
    sparse = sparsify(model)
    ids, mask = ragged(batch, seed=batch)
    with torch.no_grad():
        expected = model(ids, mask).logits
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        found = sparse(ids, mask).logits
        torch.set_num_threads(before)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        alone = torch.cat([sparse(ids[i : i + 1, : int(mask[i].sum())]).logits for i in range(batch)])
        torch.testing.assert_close(alone, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("act", ["gelu", "relu", "gelu_new"])
@pytest.mark.parametrize(
    "pruned", ["query", "key", "value", "attention.output.dense", "intermediate", "1.output.dense", "layer"]
)
def test_empty_matrices(pruned, act):
    model = bertarize(tiny_masked.make(hidden_act=act))
    for name, parameter in model.bert.encoder.named_parameters():
        if parameter.dim() == 2 and pruned in name:
            torch.nn.init.zeros_(parameter)
    ids, mask = ragged(3)
    with torch.no_grad():
        torch.testing.assert_close(sparsify(model)(ids, mask).logits, model(ids, mask).logits, atol=1e-5, rtol=0)


def test_empty_head_and_neurons_are_gone():
    model = bertarize(tiny_masked.make())
    layer = model.bert.encoder.layer[0]
    torch.nn.init.zeros_(layer.attention.self.value.weight.data[:8])
    torch.nn.init.zeros_(layer.intermediate.dense.weight.data[5:])
    sparse = sparsify(model, dense_above=1.0)
    found = sparse.bert.encoder.layer[0]
    assert (found.heads, found.qkv.weight.shape, found.up.weight.shape[0]) == (1, (24, 16), 5)
    for one, other in zip(tiny_masked.outputs(sparse), tiny_masked.outputs(model), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_masks():
    model = tiny_masked.make()
    sparse = sparsify(model)
    ids, _ = ragged(2)
    holes = torch.ones_like(ids)
    holes[1, 3:6] = 0
    with torch.no_grad():
        for mask in (holes, holes.bool(), holes.float()):
            torch.testing.assert_close(sparse(ids, mask).logits, model(ids, holes).logits, atol=1e-5, rtol=0)
        torch.testing.assert_close(sparse(ids).logits, model(ids).logits, atol=1e-5, rtol=0)
        with pytest.raises(ValueError, match="padding goes to the right"):
            sparse(ids, holes.flip(1) * 0)
        with pytest.raises(ValueError, match=r"attention_mask accepts \(batch, length\)"):
            sparse(ids, torch.ones(2, 1, 20, 20))
    hidden = sparse.bert(ids, holes).last_hidden_state
    assert not hidden[1, 3:6].any()


def test_a_batch_of_no_rows():
    sparse = sparsify(tiny_masked.make())
    ids, mask = ragged(2)
    assert sparse(ids[:0], mask[:0]).logits.shape == (0, 2)


@pytest.mark.parametrize("settings", [{"is_decoder": True}, {"hidden_act": "prelu"}])
def test_what_the_sparse_encoder_cannot_compute_stays_dense(settings):
    """Tokens that see only those before them, and an activation with a weight of its own."""
    plain = bertarize(prune(tiny_masked.make(), 0.03))
    model = type(plain)(BertConfig(**{**plain.config.to_dict(), **settings})).eval()
    model.load_state_dict(plain.state_dict(), strict=False)
    for parameter in model.bert.encoder.parameters():
        if parameter.shape == (1,):
            torch.nn.init.constant_(parameter, 0.7)
    sparse = sparsify(model)
    assert linears(sparse) == []
    ids, mask = ragged(3)
    with torch.no_grad():
        assert torch.equal(sparse(ids, mask).logits, model(ids, mask).logits)
        assert not torch.allclose(model(ids, mask).logits, plain(ids, mask).logits)


def test_what_a_call_returns_is_not_up_to_the_stored_configuration(tmp_path):
    model = tiny_masked.save(tmp_path / "m", output_hidden_states=True, return_dict=False)
    sparse = load_sparse(tmp_path / "m")
    ids, mask = ragged(3)
    with torch.no_grad():
        torch.testing.assert_close(sparse(ids, mask).logits, model(ids, mask)[0], atol=1e-5, rtol=0)


def test_what_cannot_be_given_is_refused():
    sparse = sparsify(tiny_masked.make())
    ids, mask = ragged(2)
    for name in ("output_attentions", "output_hidden_states"):
        with pytest.raises(ValueError, match=f"{name} is not for sparse models"):
            sparse(ids, mask, **{name: True})
    assert not any(parameter.requires_grad for parameter in sparse.parameters())


def test_the_same_bits_every_time():
    sparse = sparsify(tiny_masked.make())
    ids, mask = ragged(5)
    assert torch.equal(sparse(ids, mask).logits, sparse(ids, mask).logits)


def test_masked_folder_bertarized_folder_and_package(tmp_path):
    model = tiny_masked.save(tmp_path / "masked")
    bertarize_folder(tmp_path / "masked", tmp_path / "plain")
    save_package(tmp_path / "masked", tmp_path / "m.emmental")
    expected = tiny_masked.outputs(model)[0]
    outputs = [tiny_masked.outputs(load_sparse(tmp_path / name))[0] for name in ("masked", "plain", "m.emmental")]
    torch.testing.assert_close(outputs[0], expected, atol=1e-5, rtol=0)
    assert torch.equal(outputs[1], outputs[0])
    assert torch.equal(outputs[2], outputs[0])
    other = load_sparse(tmp_path / "masked", threshold=0.5)
    torch.testing.assert_close(tiny_masked.outputs(other)[0], tiny_masked.outputs(prune(model, 0.5))[0])
    assert len(masked_layers(other)) == 0


def test_pipeline(tmp_path):
    model = tiny_masked.make(id2label={0: "bad", 1: "good"})
    tokenizer = tiny.tokenizer()
    answers = [
        pipeline("text-classification", model=each, tokenizer=tokenizer, device="cpu")(SENTENCES[:3], batch_size=2)
        for each in (sparsify(model), bertarize(model))
    ]
    assert [answer["label"] for answer in answers[0]] == [answer["label"] for answer in answers[1]]
    for one, other in zip(*answers, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)


def test_command(tmp_path, capsys):
    model = tiny_masked.save(tmp_path / "masked", id2label={0: "bad", 1: "good"})
    save_package(tmp_path / "masked", tmp_path / "m.emmental", "int8")
    (tmp_path / "in.txt").write_text("".join(f"{line}\n" for line in SENTENCES))
    main(["--model", str(tmp_path / "masked"), "--input", str(tmp_path / "in.txt"), "--batch_size", "3"])
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["index"] for answer in answers] == [0, 1, 2, 3]
    with torch.no_grad():
        logits = model(**tiny.tokenizer()(SENTENCES[0], return_tensors="pt")).logits[0]
    assert answers[0]["label"] == ("bad", "good")[logits.argmax()]
    assert answers[0]["score"] == pytest.approx(logits.softmax(0).max().item(), abs=1e-6)
    assert sum(answers[0]["probabilities"].values()) == pytest.approx(1.0)
    flags = ["--model", str(tmp_path / "m.emmental"), "--input", str(tmp_path / "in.txt"), "--threads", "1"]
    main([*flags, "--output", str(tmp_path / "out.jsonl")])
    stored = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [answer["score"] for answer in stored] == pytest.approx([a["score"] for a in answers], abs=0.05)
    main([*flags, "--output", str(tmp_path / "out.jsonl")])  # earlier predictions give way
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == stored


def test_command_reads_standard_input(tmp_path, capsys, monkeypatch):
    tiny_masked.save(tmp_path / "masked")
    capsys.readouterr()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"kasa\nlote mi\n")))
    main(["--model", str(tmp_path / "masked")])
    assert [json.loads(line)["index"] for line in capsys.readouterr().out.splitlines()] == [0, 1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "missing"], "--model_name_or_path missing is not a package and has no config.json"),
        (["--model", "bare"], "--model_name_or_path bare is not a package and has no config.json"),
        (["--model", "damaged"], "damaged is not a package, or is damaged"),
        (["--model", "m", "--batch_size", "0"], "--batch_size accepts numbers from 1, not 0"),
        (["--model", "m", "--threads", "-1"], "--threads accepts numbers from 1, not -1"),
        (["--model", "m", "--dense_above", "nan"], "--dense_above accepts numbers from 0, not nan"),
        (["--model", "m", "--input", "nowhere.txt"], "--input nowhere.txt is not a file"),
        (["--model", "m", "--max_seq_length", "3"], "--max_seq_length accepts 4 to 32 for this model, not 3"),
        (
            ["--model", "m", "--output", "m"],
            "--output m would remove or replace --model_name_or_path m, which is read",
        ),
        (
            ["--model", "m", "--output", "in.txt"],
            "--output in.txt would remove or replace --input in.txt, which is read",
        ),
        (["--model", "m", "--tokenizer_name", "bare"], "bare holds no tokenizer"),
        (["--model", "m", "--threshold", "30"], "not in %"),
        (["--model", "answers"], "this command accepts sequence classifiers only"),
        (["--model", "m", "--precision", "9"], "unrecognized arguments: --precision 9"),
        ([], "the following arguments are required: --model"),
    ],
)
def test_mistakes(flags, message, tmp_path, monkeypatch, capsys):
    tiny_masked.save(tmp_path / "m")
    tiny_masked.save(tmp_path / "answers", "MaskedBertForQuestionAnswering")
    (tmp_path / "damaged").write_bytes(b"\x10" * 40)
    (tmp_path / "bare").mkdir()
    (tmp_path / "in.txt").write_text("kasa\n")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main(["--input", "in.txt", *flags])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert (tmp_path / "in.txt").read_text() == "kasa\n"


WEIGHT, BIAS = "bert.encoder.layer.1.output.dense.weight", "bert.encoder.layer.1.output.dense.bias"
LIES = {
    "no bias": (lambda p: p.tensors.pop(BIAS), f"{BIAS} is missing"),
    "another bias": (lambda p: p.tensors.update({BIAS: np.zeros(3, np.float32)}), r"has shape \[3\], not \[16\]"),
    "NaN": (lambda p: p.tensors[BIAS].fill(np.nan), "holds NaN"),
    "NaN weight": (lambda p: p.matrices[WEIGHT].values.fill(np.nan), "holds NaN"),
    "too many": (lambda p: p.tensors.update({f"{BIAS}2": np.zeros(3, np.float32)}), "bias2 is not part of the model"),
    "unknown activation": (lambda p: p.config.update(hidden_act="os.system"), "no model can be made"),
    "no heads": (lambda p: p.config.update(num_attention_heads=0), "num_attention_heads"),
    "odd heads": (lambda p: p.config.update(num_attention_heads=5), "no model can be made"),
    "layers": (lambda p: p.config.update(num_hidden_layers=3), "num_hidden_layers is 3, the arrays say 2"),
    "no class": (lambda p: p.config.update(architectures=["Popen"]), "architectures must hold one of"),
    "no head": (lambda p: p.tensors.pop("classifier.bias"), "classifier.bias is missing"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_in_packages(lie, tmp_path):
    package = to_package(bertarize(tiny_masked.make()))
    package = replace(package, tensors={name: array.copy() for name, array in package.tensors.items()})
    change, message = LIES[lie]
    change(package)
    write_package(tmp_path / "m.emmental", package)
    with pytest.raises(ValueError, match=message) as refused:
        load_sparse(tmp_path / "m.emmental")
    assert str(tmp_path / "m.emmental") in str(refused.value)
    assert "\n" not in str(refused.value)


def test_truncated_package(tmp_path):
    path = tmp_path / "m.emmental"
    save_package(tiny_masked.make(), path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="is not a package, or is damaged"):
        load_sparse(path)
    with pytest.raises(ValueError, match="are for masked models"):
        load_sparse(path, threshold=0.5)
