"""ONNX: same outputs at every shape, int8 close by, and refusals of files that are damaged or reach outside."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny
import tiny_masked
import tiny_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from transformers import AutoTokenizer, BertForSequenceClassification

from emmental import atomic
from emmental.architectures import DOWN, encoder_layers
from emmental.errors import UserError
from emmental.export import onnx as export
from emmental.export import onnx_session
from emmental.export.bertarize import bertarize
from emmental.export.onnx import (
    INT8_FILE,
    MODEL_FILE,
    export_onnx,
    export_onnx_folder,
    largest_difference,
    load_session,
    main,
    quantize_int8,
)
from emmental.patching import masked_layers


@pytest.fixture(scope="module")
def model():
    return tiny_masked.make(num_labels=3)


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "m.onnx"
    export_onnx(model, path)
    return path


@pytest.mark.parametrize("head", tiny_masked.HEADS)
def test_every_head_at_every_shape(head, tmp_path):
    model = tiny_masked.make(head)
    assert export_onnx(model, tmp_path / "m.onnx") <= 1e-5
    session = load_session(tmp_path / "m.onnx")
    for rows, length in ((1, 1), (1, 32), (4, 9)):
        ids = torch.arange(4, 4 + rows * length).remainder(36).view(rows, length)
        mask = (torch.arange(length) < (length - torch.arange(rows)).clamp(min=1)[:, None]).long()
        inputs = [ids, mask, ids.remainder(2)]
        if "MultipleChoice" in head:
            inputs = [torch.stack([value, value.flip(0), value], dim=1) for value in inputs]
        names = ("input_ids", "attention_mask", "token_type_ids")
        with torch.no_grad():
            wanted = model(**dict(zip(names, inputs, strict=True)))
        got = session(*inputs)
        assert set(got) == set(wanted)
        for name, value in wanted.items():
            assert got[name].shape == value.shape
            assert (got[name] - value).abs().max() <= 1e-5


def test_a_plain_model_and_defaults_of_the_inputs(model, tmp_path):
    plain = bertarize(model)
    export_onnx(plain, tmp_path / "m.onnx")
    ids = torch.tensor([[2, 5, 9, 3]])
    with torch.no_grad():
        assert (load_session(tmp_path / "m.onnx", threads=2)(ids).logits - plain(ids).logits).abs().max() <= 1e-5


def test_the_model_stays_as_it_is(model, tmp_path):
    model.train()
    before, attention = masked_layers(model).keys(), model.config._attn_implementation
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_onnx(model, tmp_path / "m.onnx")
    assert model.training
    assert masked_layers(model).keys() == before
    assert model.config._attn_implementation == attention
    model.eval()


def test_pruned_weights_are_zeros_in_the_graph(model, exported):
    plain = bertarize(model)
    initializers = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(exported).graph.initializer]
    weight = plain.bert.encoder.layer[0].intermediate.dense.weight.detach().numpy()
    assert any(array.shape == weight.T.shape and (array == weight.T).all() for array in initializers)
    assert (weight == 0).mean() == 0.75


def test_axes_have_names(exported):
    graph = onnx.load(exported).graph
    for value in graph.input:
        assert [axis.dim_param for axis in value.type.tensor_type.shape.dim] == ["batch", "length"]
    (logits,) = graph.output
    assert [axis.dim_param or axis.dim_value for axis in logits.type.tensor_type.shape.dim] == ["batch", 3]


def test_int8_of_a_tiny_model_is_close(model, tmp_path, exported):
    quantize_int8(exported, tmp_path / "tiny.onnx")
    assert 1e-5 < largest_difference(model, load_session(tmp_path / "tiny.onnx")) < 0.2


def test_int8_warns_of_nothing(exported, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    quantize_int8(exported, tmp_path / "int8.onnx")
    assert caplog.records == []
    assert [path.name for path in tmp_path.iterdir()] == ["int8.onnx"]


def test_a_model_that_magnifies_rounding_may_differ_more(model, tmp_path, monkeypatch):
    assert export.own_rounding(bertarize(model)) < 1e-6
    monkeypatch.setattr(export, "largest_difference", lambda *_: 3e-5)
    for rounding, accepted in ((4e-6, True), (2e-6, False)):
        monkeypatch.setattr(export, "own_rounding", lambda _, rounding=rounding: rounding)
        if accepted:
            assert export_onnx(model, tmp_path / "model.onnx") == 3e-5
        else:
            with pytest.raises(UserError, match="2e-05 is accepted"):
                export_onnx(model, tmp_path / "model.onnx")


def test_a_difference_is_refused(model, exported, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "own_rounding", lambda _: 1e-7)
    monkeypatch.setattr(export, "largest_difference", lambda *_: 2e-3)
    with pytest.raises(ValueError, match=r"differ by 2.0e-03, 1e-05 is accepted; not kept"):
        export_onnx(model, tmp_path / "m.onnx")
    monkeypatch.setattr(export, "largest_difference", lambda *_: float("nan"))
    with pytest.raises(ValueError, match="differ by nan"):
        export_onnx(model, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_another_model_differs(exported):
    assert largest_difference(tiny_masked.make(num_labels=3, method="magnitude"), load_session(exported)) > 1e-3


def test_too_large(model, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "LARGEST_FILE", 10_000)
    monkeypatch.setattr(onnx_session, "LARGEST_FILE", 10_000)
    with pytest.raises(ValueError, match="one ONNX file holds"):
        export_onnx(model, tmp_path / "m.onnx")
    (tmp_path / "m.onnx").write_bytes(bytes(10_001))
    with pytest.raises(ValueError, match="is larger than"):
        load_session(tmp_path / "m.onnx")


def test_folder(tmp_path):
    model = tiny_masked.save(tmp_path / "masked", num_labels=3)
    for _ in range(2):  # what it wrote itself, it replaces
        result = export_onnx_folder(tmp_path / "masked", tmp_path / "onnx", int8=True)
    written = {path.relative_to(tmp_path / "onnx").as_posix() for path in (tmp_path / "onnx").rglob("*")}
    assert written == {
        "README.md",
        "config.json",
        "manifest.json",
        "onnx",
        "onnx/model.onnx",
        "onnx/model_quantized.onnx",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert result.difference <= 1e-5 < result.int8_difference
    assert result.size == (tmp_path / "onnx" / MODEL_FILE).stat().st_size
    config = json.loads((tmp_path / "onnx" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("bert", ["BertForSequenceClassification"])
    session = load_session(tmp_path / "onnx")
    assert session.config.num_labels == 3
    encoded = AutoTokenizer.from_pretrained(tmp_path / "onnx")(
        ["kasa lote", "kasa"], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        difference = session(encoded.input_ids, encoded.attention_mask).logits - model(**encoded).logits
    assert difference.abs().max() <= 1e-5


def test_a_dense_folder(tmp_path):
    tiny.save_bert(tmp_path / "dense")
    export_onnx_folder(tmp_path / "dense", tmp_path / "onnx")
    dense = BertForSequenceClassification.from_pretrained(tmp_path / "dense")
    assert largest_difference(dense.eval(), load_session(tmp_path / "onnx")) <= 1e-5
    assert not (tmp_path / "onnx" / INT8_FILE).exists()


def test_a_folder_of_the_first_version(tmp_path):
    """It held model.onnx and model-int8.onnx beside config.json; it is read, and replaced by a new export."""
    model = tiny_masked.save(tmp_path / "masked")
    export_onnx_folder(tmp_path / "masked", tmp_path / "new", int8=True)
    with atomic.atomic_folder(tmp_path / "old") as folder:
        shutil.copy(tmp_path / "new" / "config.json", folder)
        shutil.copy(tmp_path / "new" / MODEL_FILE, folder / "model.onnx")
        shutil.copy(tmp_path / "new" / INT8_FILE, folder / "model-int8.onnx")
    for path in (tmp_path / "old", tmp_path / "old" / "model.onnx"):
        assert load_session(path).config.num_labels == 2
        assert largest_difference(model, load_session(path)) <= 1e-5
    assert 1e-5 < largest_difference(model, load_session(tmp_path / "old", int8=True)) < 0.1
    export_onnx_folder(tmp_path / "masked", tmp_path / "old")
    assert not (tmp_path / "old" / "model.onnx").exists()


def test_the_card_of_the_model_goes_along(tmp_path):
    tiny_masked.save(tmp_path / "masked")
    (tmp_path / "masked" / "README.md").write_text(
        "---\nlibrary_name: transformers\ntags:\n- x\n---\n# Mine\n\nText.\n"
    )
    export_onnx_folder(tmp_path / "masked", tmp_path / "onnx", int8=True)
    card = (tmp_path / "onnx" / "README.md").read_text()
    head = "---\nlibrary_name: transformers.js\npipeline_tag: text-classification\ntags:\n- x\n---\n# masked, ONNX\n"
    assert card.startswith(head)
    assert card.endswith("# Mine\n\nText.\n")
    assert "| onnx/model_quantized.onnx | `q8` |" in card


@pytest.mark.parametrize("model_type", [name for name in tiny_models.MODEL_TYPES if name != "albert"])
def test_the_file_computes_the_last_layer_for_the_first_token(tmp_path, model_type):
    """The last product of each layer gives a row for each of seven tokens, that of the last layer one row."""
    model = tiny_models.model(model_type)
    export_onnx(model, tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx")
    shapes = []
    for layer in (encoder_layers(model)[0], encoder_layers(model)[-1]):
        scope = f"/{layer.linears[DOWN].replace('.', '/')}/MatMul"
        (node,) = (node for node in graph.graph.node if node.name.replace(".", "/").endswith(scope))
        graph.graph.output.append(helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None))
        session = onnxruntime.InferenceSession(graph.SerializeToString())
        ids = np.arange(14).reshape(2, 7) + 4
        every = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        (found,) = session.run([node.output[0]], {each.name: every[each.name] for each in session.get_inputs()})
        shapes.append(found.shape[:2])
    assert shapes == [(2, 7), (2, 1)]


def test_foreign_folders_stay(tmp_path):
    tiny_masked.save(tmp_path / "masked")
    (tmp_path / "foreign").mkdir()
    with atomic.atomic_folder(tmp_path / "checkpoint-5") as folder:
        (folder / "config.json").write_text("{}")
    for name in ("foreign", "checkpoint-5", "masked"):
        before = sorted((tmp_path / name).iterdir())
        with pytest.raises(UserError, match="was not made by this command; it is left alone"):
            export_onnx_folder(tmp_path / "masked", tmp_path / name)
        assert sorted((tmp_path / name).iterdir()) == before


@pytest.mark.parametrize("cut", [0, 1, 100, 20_000, -1])
def test_truncated_or_empty(exported, tmp_path, cut):
    (tmp_path / "m.onnx").write_bytes(exported.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"m\.onnx is (damaged|not an encoder)"):
        load_session(tmp_path / "m.onnx")


@settings(deadline=None, max_examples=60)
@given(places=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=20))
def test_changed_bytes_are_refused_or_harmless(exported, places):
    data = bytearray(exported.read_bytes())
    for place, value in places:
        data[int(place * len(data))] = value
    path = exported.with_name("changed.onnx")
    path.write_bytes(data)
    try:
        outcome = load_session(path).output_names
    except ValueError as error:
        outcome = str(error)
    assert outcome == ("logits",) or "changed.onnx" in outcome


def test_noise(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"not a graph" * 50)
    with pytest.raises(ValueError, match="is damaged, or not an ONNX file"):
        load_session(tmp_path / "m.onnx")
    with pytest.raises(ValueError, match="does not exist"):
        load_session(tmp_path / "other.onnx")


def test_a_changed_folder(tmp_path):
    tiny_masked.save(tmp_path / "masked")
    export_onnx_folder(tmp_path / "masked", tmp_path / "onnx")
    with (tmp_path / "onnx" / MODEL_FILE).open("ab") as file:
        file.write(b"x")
    for path in (tmp_path / "onnx", tmp_path / "onnx" / MODEL_FILE):
        with pytest.raises(atomic.DamagedError, match=r"model\.onnx has"):
            load_session(path)


def hostile(exported: Path, target: Path, change) -> Path:
    """The exported file with a change that nothing but a hand makes."""
    graph = onnx.load(exported)
    change(graph)
    target.write_bytes(graph.SerializeToString())
    return target


def _external(location: str):
    def change(graph: onnx.ModelProto) -> None:
        tensor = graph.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)

    return change


@pytest.mark.parametrize("location", ["../secret.bin", "secret.bin", "link.bin"])
def test_no_other_file_is_read(exported, tmp_path, location):
    (tmp_path / "inner").mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(100_000))
    (tmp_path / "inner" / "secret.bin").write_bytes(bytes(100_000))
    (tmp_path / "inner" / "link.bin").symlink_to(tmp_path / "secret.bin")
    path = hostile(exported, tmp_path / "inner" / "m.onnx", _external(location))
    with pytest.raises(ValueError, match="is stored in another file, which is not read"):
        load_session(path)
    with pytest.raises(ValueError, match="is stored in another file, which is not read"):
        quantize_int8(path, tmp_path / "int8.onnx")


def test_external_data_in_a_constant(exported, tmp_path):
    def change(model: onnx.ModelProto) -> None:
        tensor = helper.make_tensor("hidden", TensorProto.FLOAT, [1], [1.0])
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../secret.bin")
        model.graph.node.insert(0, helper.make_node("Constant", [], ["hidden"], value=tensor))

    with pytest.raises(ValueError, match="hidden is stored in another file"):
        load_session(hostile(exported, tmp_path / "m.onnx", change))


def test_no_loops_and_branches(exported, tmp_path):
    def change(model: onnx.ModelProto) -> None:
        body = helper.make_graph([], "body", [], [])
        model.graph.node.append(helper.make_node("Loop", ["", ""], ["endless"], body=body))

    with pytest.raises(ValueError, match="has functions or branches"):
        load_session(hostile(exported, tmp_path / "m.onnx", change))


def test_unknown_operators_and_other_graphs(exported, tmp_path):
    def strange(model: onnx.ModelProto) -> None:
        model.graph.node[0].op_type, model.graph.node[0].domain = "RunShell", "evil.example"
        model.opset_import.add(domain="evil.example", version=1)

    with pytest.raises(ValueError, match="ONNX Runtime refuses it"):
        load_session(hostile(exported, tmp_path / "m.onnx", strange))
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1])
    label = helper.make_tensor_value_info("label", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Abs", ["image"], ["label"])], "other", [image], [label])
    onnx.save(helper.make_model(graph), tmp_path / "other.onnx")
    with pytest.raises(ValueError, match="is not an encoder written here: image -> label"):
        load_session(tmp_path / "other.onnx")


def test_threads_are_checked(exported):
    with pytest.raises(ValueError, match="threads accepts numbers from 1, not 0"):
        load_session(exported, threads=0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--threshold", "30"], "accepts the fraction of weights that stay"),
        (["--int4"], "unrecognized arguments: --int4"),
        (["--model_name_or_path", "nowhere"], "has no config.json"),
        (["--target_model_path", "masked"], "was not made by this command; it is left alone"),
    ],
)
def test_wrong_flags(flags, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_masked.save(tmp_path / "masked")
    capsys.readouterr()  # the bar of saving
    with pytest.raises(SystemExit) as stopped:
        main(["--model_name_or_path", "masked", *flags])
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["masked"]


def test_command(tmp_path, capsys):
    tiny_masked.save(tmp_path / "masked")
    capsys.readouterr()
    main(["--model_name_or_path", str(tmp_path / "masked"), "--int8", "--threshold", "0.5"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [MODEL_FILE, INT8_FILE, str(tmp_path / "onnx_masked")]
    assert "largest difference to PyTorch" in lines[0]


def test_int8_where_a_server_reads(tmp_path, capsys):
    """text-embeddings-inference reads model.onnx alone."""
    source = tiny_models.save(tmp_path / "model", "bert")
    main(["--model_name_or_path", str(source), "--output", str(tmp_path / "out"), "--serve", "int8"])
    served = tmp_path / "out"
    assert (served / MODEL_FILE).read_bytes() == (served / INT8_FILE).read_bytes()
    card = (served / "README.md").read_text()
    assert f"| {MODEL_FILE} | `int8` |" in card
    assert "VNNI" in card
    atomic.verify_folder(served)
    with pytest.raises(SystemExit):
        main(["--model_name_or_path", str(source), "--output", str(served), "--serve", "int8", "--no-int8"])
    assert "--serve int8 needs the int8 file: omit --no-int8" in capsys.readouterr().err


def test_the_card_says_how_to_fuse_and_what_int8_wants(tmp_path):
    source = tiny_models.save(tmp_path / "model", "bert")
    for int8 in (True, False):
        export_onnx_folder(source, tmp_path / "out", int8=int8)
        card = (tmp_path / "out" / "README.md").read_text()
        assert "num_heads=0, hidden_size=0" in card
        assert ("reduce_range" in card) == int8


def test_sums_of_int8_fit_without_vnni(tmp_path, exported):
    """There two products of 255 and a weight are added in 16 bits with a sign."""
    quantize_int8(exported, tmp_path / "int8.onnx")
    graph = onnx.load(tmp_path / "int8.onnx").graph
    inputs = {node.input[1] for node in graph.node if node.op_type == "MatMulInteger"}
    weights = [onnx.numpy_helper.to_array(each) for each in graph.initializer if each.name in inputs]
    assert weights
    assert max(2 * 255 * int(np.abs(weight.astype(int)).max()) for weight in weights) <= 32767


@pytest.mark.parametrize("said", [None, 10**30, 20])
def test_the_tokenizer_knows_the_longest_input(tmp_path, said):
    source = tiny_models.save(tmp_path / "model", "bert", max_seq_length=16)
    settings = json.loads((source / "tokenizer_config.json").read_text())
    settings["model_max_length"] = said
    (source / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))
    export_onnx_folder(source, tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").model_max_length == (20 if said == 20 else 32)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["max_seq_length"] == 16
