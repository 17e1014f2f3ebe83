"""The prediction command: every form of a model in every engine gives the same answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import tiny_masked

from emmental.export.bertarize import bertarize_folder
from emmental.export.onnx import export_onnx_folder
from emmental.export.storage import save_package
from emmental.inference.engines import ENGINES, why_not
from emmental.inference.predict import main

TEXTS = [f"{tiny.WORDS[3]} {tiny.WORDS[7]} {tiny.WORDS[1]}", tiny.WORDS[5]]


@pytest.fixture(scope="module")
def forms(tmp_path_factory) -> Path:
    """A folder with a masked model, its plain form, its package and its ONNX files."""
    folder = tmp_path_factory.mktemp("forms")
    tiny_masked.save(folder / "masked", num_labels=3)
    bertarize_folder(folder / "masked", folder / "plain")
    save_package(folder / "plain", folder / "package", "fp32", "fp32")
    export_onnx_folder(folder / "masked", folder / "onnx", int8=True)
    (folder / "in.txt").write_text("\n".join(TEXTS) + "\n")
    return folder


def answers(folder: Path, form: str, capsys, *flags: str) -> list[dict]:
    capsys.readouterr()
    main(["--model", str(folder / form), "--input", str(folder / "in.txt"), *flags])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("form", ["masked", "plain", "package", "onnx"])
@pytest.mark.parametrize("engine", ["auto", *(name for name, known in ENGINES.items() if not known.calibrated)])
def test_every_form_in_every_engine(forms, form, engine, capsys):
    if engine != "auto" and why_not(engine) is not None:
        pytest.skip(why_not(engine))
    if form == "onnx" and engine != "auto" and ENGINES[engine].package is None:
        with pytest.raises(SystemExit):
            answers(forms, form, capsys, "--engine", engine)
        assert f"--engine {engine} does not read ONNX files" in capsys.readouterr().err
        return
    rounded = engine != "auto" and ENGINES[engine].rounds
    for found, exact in zip(
        answers(forms, form, capsys, "--engine", engine), answers(forms, "masked", capsys), strict=True
    ):
        assert found["probabilities"] == pytest.approx(exact["probabilities"], abs=0.03 if rounded else 1e-5)
        assert sum(found["probabilities"].values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--engine", "tensorrt"], "--engine accepts torch, "),
        (["--model", "nowhere"], "--model_name_or_path nowhere is not a package and has no config.json"),
    ],
)
def test_mistakes_are_one_line(forms, flags, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        answers(forms, "masked", capsys, *flags)
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert message in error
    assert error.count("\n") == 1
