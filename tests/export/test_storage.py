"""Packages: what comes back, how large they are, and what damaged or hostile files do."""

from __future__ import annotations

import json
import random
import zlib
from pathlib import Path

import numpy as np
import pytest
import tiny_masked
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from emmental.errors import UserError
from emmental.export import package, storage
from emmental.export.bertarize import bertarize
from emmental.export.package import quantize_rows, read_package
from emmental.export.position_code import entropy_bits
from emmental.export.storage import load_package, main, save_package

ENCODER_WEIGHTS = 2 * (4 * 16 * 16 + 2 * 16 * 32)


@pytest.fixture(scope="module")
def model():
    return tiny_masked.make(num_labels=3, id2label={0: "no", 1: "yes", 2: "maybe"})


@pytest.fixture
def stored(model, tmp_path) -> Path:
    save_package(model, tmp_path / "m.emmental", "int8", "int8")
    return tmp_path / "m.emmental"


@pytest.mark.parametrize("head", tiny_masked.HEADS)
def test_fp32_is_exact(head, tmp_path):
    model = tiny_masked.make(head)
    save_package(model, tmp_path / "m.emmental")
    plain, loaded = bertarize(model), load_package(tmp_path / "m.emmental")
    assert type(loaded) is type(plain)
    for key, value in plain.state_dict().items():
        assert value.numpy().tobytes() == loaded.state_dict()[key].numpy().tobytes()
    for one, other in zip(tiny_masked.outputs(plain), tiny_masked.outputs(loaded), strict=True):
        assert torch.equal(one, other)


def test_fp16_rounds_and_int8_errs_by_half_a_step(model, tmp_path):
    weight = bertarize(model).bert.encoder.layer[1].output.dense.weight.detach()
    save_package(model, tmp_path / "half.emmental", "fp16", "fp16")
    half = load_package(tmp_path / "half.emmental")
    assert torch.equal(half.bert.encoder.layer[1].output.dense.weight, weight.half().float())
    save_package(model, tmp_path / "byte.emmental", "int8", "int8")
    byte = load_package(tmp_path / "byte.emmental")
    for of_byte, exact in (
        (byte.bert.encoder.layer[1].output.dense.weight, weight),
        (byte.bert.embeddings.word_embeddings.weight, model.bert.embeddings.word_embeddings.weight),
    ):
        step = exact.abs().amax(1, keepdim=True) / 127
        assert ((of_byte - exact).abs() <= 0.51 * step).all()
    assert torch.equal(byte.classifier.weight, model.classifier.weight)
    assert byte.config.id2label == {0: "no", 1: "yes", 2: "maybe"}


def test_what_rounds_to_zero_is_not_stored(tmp_path):
    model = bertarize(tiny_masked.make())
    weight = model.bert.encoder.layer[0].output.dense.weight
    torch.nn.init.zeros_(weight)
    weight.data[0, :3] = torch.tensor([127.0, 0.4, -0.6])
    save_package(model, tmp_path / "m.emmental", "int8")
    matrix = read_package(tmp_path / "m.emmental").matrices["bert.encoder.layer.0.output.dense.weight"]
    assert (matrix.positions.tolist(), matrix.values.tolist()) == ([0, 2], [127, -1])
    assert matrix.dense()[0, :4].tolist() == [127.0, 0.0, -1.0, 0.0]


def test_scales_by_hand():
    values = np.array([127.0, -1.0, 0.4, 3.0], dtype=np.float32)
    quantized, scales = quantize_rows(values, np.array([0, 0, 0, 2]), 3)
    assert quantized[:3].tolist() == [127, -1, 0]
    assert scales[:2].tolist() == [1.0, 0.0]
    assert 3 / 127 <= scales[2] <= 3 / 127 * (1 + 2**-7)
    assert abs(quantized[3] * scales[2] - 3) <= scales[2] / 2


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.floats(-(2.0**100), 2.0**100, width=32).filter(lambda x: x == 0 or abs(x) > 1e-30), min_size=1, max_size=40
    )
)
def test_quantized_values_err_by_half_a_step(numbers):
    values = np.array(numbers, dtype=np.float32)
    rows = np.arange(len(values)) % 3
    quantized, scales = quantize_rows(values, rows, 3)
    assert np.abs(quantized.astype(int)).max() <= 127
    error = np.abs(quantized * scales[rows].astype(np.float64) - values)
    assert (error <= 0.5001 * scales[rows]).all()


def test_sizes(model, tmp_path):
    sizes = save_package(model, tmp_path / "m.emmental", "fp32", "fp16")
    assert sizes.file == (tmp_path / "m.emmental").stat().st_size
    assert (sizes.nonzeros, sizes.weights) == (ENCODER_WEIGHTS // 4, ENCODER_WEIGHTS)
    assert sizes.file - sizes.without_embeddings == 2 * 16 * (tiny_masked.SIZES["vocab_size"] + 32 + 2)
    biases_and_norms = 4 * 2 * (4 * 16 + 32 + 16 + 4 * 16)
    assert sizes.encoder == sizes.matrices + biases_and_norms
    assert sizes.bound == np.ceil((entropy_bits(1, 4) * ENCODER_WEIGHTS / 4 + 32 * sizes.nonzeros) / 8)
    assert sizes.bound <= sizes.matrices <= 1.1 * sizes.bound


def test_too_large_for_fp16(tmp_path):
    model = bertarize(tiny_masked.make())
    torch.nn.init.constant_(model.bert.encoder.layer[0].output.dense.weight, 70000.0)
    with pytest.raises(ValueError, match=r"layer\.0\.output\.dense\.weight has a weight of 70000, too large for fp16"):
        save_package(model, tmp_path / "m.emmental", "fp16")
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_no_package_stay(model, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="left alone"):
        save_package(model, tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(ValueError, match="--weights accepts fp32, fp16, int8, not 'int4'"):
        save_package(model, tmp_path / "m.emmental", "int4")


def test_a_failed_round_trip_leaves_nothing(model, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_same_array", lambda one, other: False)
    with pytest.raises(UserError, match="does not read back"):
        save_package(model, tmp_path / "m.emmental")
    assert list(tmp_path.iterdir()) == []


def test_300_flipped_bytes(stored):
    whole = stored.read_bytes()
    expected = read_package(stored)
    generator = random.Random(0)
    messages = []
    for _ in range(300):
        # Half of the flips hit the header, where lies do most.
        place = generator.randrange(len(whole) // 2 if generator.random() < 0.5 else len(whole))
        damaged = bytearray(whole)
        damaged[place] ^= 1 << generator.randrange(8)
        stored.write_bytes(damaged)
        try:
            found = read_package(stored)
        except ValueError as error:
            messages.append(str(error))
        else:  # a flip in the padding or in the order of keys may do no harm
            storage._require_same(expected, found)
    assert len(messages) >= 290
    assert all(message.startswith(f"{stored} is not a package, or is damaged: ") for message in messages)
    assert not any("\n" in message for message in messages)


def test_a_bug_of_ours_is_not_called_damage(stored, monkeypatch):
    monkeypatch.setattr(package, "decode_positions", lambda *_: {}["a bug"])
    with pytest.raises(KeyError, match="a bug"):
        read_package(stored)


@pytest.mark.parametrize("share", [0, 0.0005, 0.3, 0.9, 0.9999])
def test_truncated(stored, share):
    whole = stored.read_bytes()
    stored.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match="is not a package, or is damaged"):
        load_package(stored)


def test_other_files(tmp_path):
    (tmp_path / "huge").write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    save_file({"x": np.zeros(3)}, tmp_path / "other.safetensors")
    for name in ("huge", "other.safetensors", "missing", "."):
        with pytest.raises(ValueError, match=r"not a package|is not a file"):
            load_package(tmp_path / name)


def forge(path: Path, change) -> None:
    """Rewrite a package after `change(config, matrices, tensors)`, with a checksum that fits."""
    with safe_open(path, framework="numpy") as file:
        texts = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    config, matrices = json.loads(texts["config"]), json.loads(texts["matrices"])
    change(config, matrices, tensors)
    texts = {"format": texts["format"], "config": json.dumps(config), "matrices": json.dumps(matrices)}
    save_file(tensors, path, metadata={**texts, "sha256": package._digest(texts, tensors)})


def bomb(text: bytes, missing: int = 0) -> dict[str, np.ndarray]:
    """A file of the tokenizer in a package, without its last bytes."""
    data = zlib.compress(text)
    return {"tokenizer|vocab.txt": np.frombuffer(data[: len(data) - missing], np.uint8)}


MATRIX = "bert.encoder.layer.0.attention.self.query.weight"
LIES = {
    "a huge matrix": lambda c, m, t: m[0].update(rows=1 << 30, columns=1 << 30),
    "negative size": lambda c, m, t: m[0].update(rows=-1),
    "size as text": lambda c, m, t: m[0].update(rows="16"),
    "no size": lambda c, m, t: m[0].pop("rows"),
    "more non-zeros": lambda c, m, t: m[0].update(nonzeros=m[0]["nonzeros"] + 1),
    "many symbols": lambda c, m, t: m[0].update(symbols=1 << 31),
    "other kind": lambda c, m, t: m[0].update(kind="pickle"),
    "twice": lambda c, m, t: m.append(m[0]),
    "no matrix": lambda c, m, t: m.clear(),
    "a tensor too many": lambda c, m, t: t.update(other=np.zeros(2, np.float32)),
    "a part too many": lambda c, m, t: t.update({f"{MATRIX}|more": np.zeros(2, np.float32)}),
    "no bias": lambda c, m, t: t.pop("classifier.bias"),
    "NaN": lambda c, m, t: t["classifier.bias"].fill(np.nan),
    "infinite scale": lambda c, m, t: t[f"{MATRIX}|scales"].fill(0x7F80),
    "doubles": lambda c, m, t: t.update({"classifier.bias": np.zeros(3)}),
    "scales of another matrix": lambda c, m, t: t.update({f"{MATRIX}|scales": np.zeros(3, np.uint16)}),
    "no scales": lambda c, m, t: t.pop(f"{MATRIX}|scales"),
    "many layers": lambda c, m, t: c.update(num_hidden_layers=10**9),
    "wide": lambda c, m, t: c.update(hidden_size=10**9),
    "many words": lambda c, m, t: c.update(vocab_size=10**12),
    "many labels": lambda c, m, t: c.update(num_labels=10**12),
    "no heads": lambda c, m, t: c.update(num_attention_heads=0),
    "unknown activation": lambda c, m, t: c.update(hidden_act="os.system"),
    "code": lambda c, m, t: c.update(auto_map={"AutoModel": "evil.Model"}),
    "other class": lambda c, m, t: c.update(architectures=["Popen"]),
    "a tokenizer that unpacks to 64 MB": lambda c, m, t: t.update(bomb(b"0" * (package.LARGEST_TOKENIZER_FILE + 1))),
    "a tokenizer cut off": lambda c, m, t: t.update(
        {"tokenizer|vocab.txt": bomb(b"abc" * 99)["tokenizer|vocab.txt"][:-4]}
    ),
    "a tokenizer of no text": lambda c, m, t: t.update(bomb(b"\xff")),
    "a tokenizer of doubles": lambda c, m, t: t.update({"tokenizer|vocab.txt": np.zeros(3)}),
    "a file that is no tokenizer's": lambda c, m, t: t.update({"tokenizer|evil.py": np.zeros(3, np.uint8)}),
    "other type": lambda c, m, t: c.update(model_type="masked_bert"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_with_a_good_checksum(stored, lie):
    forge(stored, lambda *parts: None)
    load_package(stored)
    forge(stored, LIES[lie])
    with pytest.raises(ValueError, match=r"\w") as refused:
        load_package(stored)
    assert "\n" not in str(refused.value)


def test_command(tmp_path, capsys):
    tiny_masked.save(tmp_path / "masked")
    capsys.readouterr()
    flags = ["--model_name_or_path", str(tmp_path / "masked"), "--package", str(tmp_path / "m.emmental")]
    main([*flags, "--weights", "int8", "--json"])
    sizes = json.loads(capsys.readouterr().out)
    assert 0.95 * ENCODER_WEIGHTS / 4 <= sizes["nonzeros"] <= ENCODER_WEIGHTS / 4
    assert sizes["file"] == (tmp_path / "m.emmental").stat().st_size
    main(flags)
    assert "25.00 % of 4096 weights" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*flags, "--threshold", "25"])
    assert "not in %" in capsys.readouterr().err
