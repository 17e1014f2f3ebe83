"""int8 in ONNX: small and close, and of its forms the closest one that is accepted is kept."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest
import tiny_masked
import torch

from emmental.errors import UserError
from emmental.export import onnx as export
from emmental.export import onnx_int8
from emmental.export.calibration import Calibration
from emmental.export.onnx import export_onnx, export_onnx_folder, largest_difference, load_session, main, quantize_int8


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A model that is wide enough for int8, and its file."""
    model = tiny_masked.make(hidden_size=64, intermediate_size=256)
    path = tmp_path_factory.mktemp("wide") / "wide.onnx"
    export_onnx(model, path)
    return model, path


def test_int8_is_smaller_and_close(wide, tmp_path):
    quantize_int8(wide[1], tmp_path / "int8.onnx")
    assert (tmp_path / "int8.onnx").stat().st_size < 0.7 * wide[1].stat().st_size
    assert 1e-5 < largest_difference(wide[0], load_session(tmp_path / "int8.onnx")) < 0.2


def test_the_int8_form_that_moves_outputs_least_is_kept(wide, tmp_path, monkeypatch):
    """Scales as they come, fixed scales, and where both are far a layer in float32 that halves the distance."""
    batches = [
        dict(zip(("input_ids", "attention_mask", "token_type_ids"), _inputs(length), strict=True))
        for length in (9, 20)
    ]
    far = onnx_int8.FAR
    kept = {}
    for distances in ((far / 2, far), (far, far / 2), (3 * far, 2 * far, far, 9), (3 * far, 2 * far, 1.1 * far, 9)):
        found = iter(distances)
        monkeypatch.setattr(onnx_int8, "distance", lambda *_, found=found: next(found))
        form = quantize_int8(wide[1], tmp_path / "best.onnx", Calibration(batches))
        operators = [node.op_type for node in onnx.load(tmp_path / "best.onnx").graph.node]
        kept[distances] = (form, operators.count("QuantizeLinear") > 0, operators.count("MatMulInteger"))
        assert largest_difference(wide[0], load_session(tmp_path / "best.onnx")) < 0.5
    assert list(kept.values()) == [
        ("dynamic", False, 14),
        ("static", True, 0),
        ("mixed", False, 8),
        ("static", True, 0),
    ]  # two layers of six, and a head of two


@pytest.mark.parametrize(
    ("refused", "kept"), [((), "dynamic"), (("dynamic",), "static"), (("dynamic", "static"), "dynamic")]
)
def test_the_closest_int8_form_that_is_accepted_is_kept(wide, tmp_path, monkeypatch, refused, kept):
    """Dynamic is closer. If it is refused, static is kept; if both are, the closer one."""
    batch = dict(zip(("input_ids", "attention_mask", "token_type_ids"), _inputs(9), strict=True))
    found, asked = iter((1e-4, 2e-4)), []
    monkeypatch.setattr(onnx_int8, "distance", lambda *_: next(found))

    def accepts(file: Path) -> bool:
        asked.append(file.stem)
        return file.stem not in refused

    assert quantize_int8(wide[1], tmp_path / "best.onnx", Calibration([batch], accepts=accepts)) == kept
    assert asked == ["dynamic", "static"][: len(refused) + 1]


@pytest.mark.parametrize("form", ["dynamic", "static"])
def test_one_form_of_int8_can_be_asked_for(tmp_path, form, capsys):
    tiny_masked.save(tmp_path / "masked")
    (tmp_path / "texts.txt").write_text("kasa lote\n")
    flags = ["--model_name_or_path", str(tmp_path / "masked"), "--int8_scales", form]
    main([*flags, "--output", str(tmp_path / "onnx"), "--calibration_file", str(tmp_path / "texts.txt")])
    assert capsys.readouterr().out.splitlines()[1].endswith(f" ({form})")


def test_static_int8_needs_texts(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--model_name_or_path", str(tmp_path), "--int8_scales", "static"])
    assert "--int8_scales static needs texts to fix its scales: give --calibration_file" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["--model_name_or_path", str(tmp_path), "--calibration_file", str(tmp_path / "none.txt")])
    assert "--calibration_file" in capsys.readouterr().err


def test_calibration_texts(tmp_path, monkeypatch):
    """Sentences or pairs, at most 128 of them, in batches of 8; a file without text is refused."""
    tiny_masked.save(tmp_path / "masked")
    (tmp_path / "texts.txt").write_text("kasa lote\n" * 20)
    (tmp_path / "pairs.tsv").write_text("sentence1\tsentence2\n" + "kasa\tlote\n" * 130)
    seen = []

    def quantized(path: Path, target: Path, calibration: Calibration) -> str:
        seen.append(calibration.batches)
        shutil.copy(path, target)
        return "dynamic"

    monkeypatch.setattr(export, "quantize_int8", quantized)
    command = ["--model_name_or_path", str(tmp_path / "masked"), "--output", str(tmp_path / "onnx")]
    for name in ("texts.txt", "pairs.tsv"):
        main([*command, "--calibration_file", str(tmp_path / name)])
    assert [len(batch["input_ids"]) for batch in seen[0]] == [8, 8, 4]
    assert sum(len(batch["input_ids"]) for batch in seen[1]) == 128
    assert seen[1][0]["token_type_ids"][0].tolist() == [0, 0, 0, 1, 1]
    (tmp_path / "texts.txt").write_text("")
    with pytest.raises(UserError, match="--calibration_file holds no text"):
        export_onnx_folder(tmp_path / "masked", tmp_path / "onnx", True, texts=[])


def test_the_distance_of_outputs():
    """Squared differences of 1 and 1 over 8 numbers; the exact ones have the variance 1."""
    exact = [torch.tensor([[0.0, 2.0], [2.0, 0.0]]), torch.tensor([[0.0, 2.0], [2.0, 0.0]])]
    rounded = [torch.tensor([[1.0, 2.0], [2.0, 0.0]]), torch.tensor([[0.0, 2.0], [2.0, 1.0]])]
    assert onnx_int8.distance(exact, rounded) == 0.25


def _inputs(length: int) -> list[torch.Tensor]:
    ids = torch.arange(4, 4 + 3 * length).remainder(36).view(3, length)
    return [ids, torch.ones_like(ids), torch.zeros_like(ids)]
