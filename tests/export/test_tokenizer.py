"""The tokenizer comes out of a folder or a package as it went in, and nothing in it is executed."""

from __future__ import annotations

import json

import pytest
import tiny
import tiny_masked

from emmental.export.bertarize import bertarize_folder
from emmental.export.onnx import export_onnx_folder
from emmental.export.package import read_package
from emmental.export.storage import save_package
from emmental.export.tokenizer import read_tokenizer_files, tokenizer_of

TEXT = "Kasa lofi [SEP] mite"


@pytest.fixture
def folder(tmp_path):
    tiny_masked.save(tmp_path / "m")
    return tmp_path / "m"


def test_folder_and_package(folder, tmp_path):
    save_package(folder, tmp_path / "m.emmental")
    assert set(read_package(tmp_path / "m.emmental").tokenizer) == {"tokenizer.json", "tokenizer_config.json"}
    assert read_package(tmp_path / "m.emmental").tokenizer == read_tokenizer_files(folder)
    expected = tiny.tokenizer()(TEXT)["input_ids"]
    for path in (folder, tmp_path / "m.emmental"):
        loaded = tokenizer_of(path)
        assert loaded(TEXT)["input_ids"] == expected
        assert loaded.pad_token_id == 0


def test_without_a_tokenizer(folder, tmp_path):
    save_package(tiny_masked.make(), tmp_path / "m.emmental")
    assert read_package(tmp_path / "m.emmental").tokenizer == {}
    with pytest.raises(ValueError, match=r"m\.emmental holds no tokenizer"):
        tokenizer_of(tmp_path / "m.emmental")
    save_package(tiny_masked.make(), tmp_path / "n.emmental", tokenizer_folder=folder)
    assert tokenizer_of(tmp_path / "n.emmental")(TEXT)["input_ids"] == tiny.tokenizer()(TEXT)["input_ids"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tokenizer.json", b"{", "its tokenizer.json is not JSON"),
        ("tokenizer.json", b"[]", "its tokenizer.json is not an object"),
        ("tokenizer.json", b'{"version": "1.0"}', "its tokenizer is damaged"),
        ("tokenizer.json", b"\xff", "is not UTF-8 text"),
        ("tokenizer_config.json", b'{"auto_map": {"AutoTokenizer": ["evil.T", null]}}', "needs its own code"),
    ],
)
def test_damaged_or_hostile(folder, name, text, message):
    (folder / name).write_bytes(text)
    with pytest.raises(ValueError, match=message) as refused:
        tokenizer_of(folder)
    assert "\n" not in str(refused.value)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "masked_bert"


@pytest.mark.parametrize("write", [save_package, export_onnx_folder, bertarize_folder])
def test_a_token_beyond_the_embeddings_is_not_exported(write, folder, tmp_path):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["printer"] = 60
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"the tokenizer has the id 60 \('printer'\), its model has 41 tokens"):
        write(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
