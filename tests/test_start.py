"""How the programs start: help and refusals before anything heavy is loaded, and without optional parts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

import emmental

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "transformers", "numpy", "sklearn", "scipy", "matplotlib", "cv2", "tensorboard", "huggingface_hub"}
PROGRAMS = ("masked_run_glue.py", "distiller.py")


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "80", "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


def loaded(*arguments: str) -> tuple[set[str], subprocess.CompletedProcess[str]]:
    """Modules that a program loads."""
    done = run("-X", "importtime", *arguments)
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines[1:]}, done


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("flag", ["--help", "--help_all", "--nonsense", "--learning_rate=-1"])
def test_flags_are_read_before_anything_heavy_is_loaded(program, flag):
    modules, done = loaded(program, flag)
    assert {name.split(".")[0] for name in modules} & HEAVY == set()
    assert len(modules) < 200
    assert done.returncode == (0 if flag.startswith("--help") else 2)


@pytest.mark.parametrize(("command", "program"), list(emmental.COMMANDS.items())[:2])
def test_so_do_the_console_commands(command, program):
    code = f"import sys; sys.argv[0] = '{command}'; from {program} import main; main()"
    modules, done = loaded("-c", code, "--help")
    assert {name.split(".")[0] for name in modules} & HEAVY == set()
    assert done.returncode == 0


def test_drawing_on_an_image_loads_no_models():
    modules, done = loaded("visualizing_image.py", "--help")
    assert {name.split(".")[0] for name in modules} & {"torch", "transformers", "sklearn"} == set()
    assert done.returncode == 0


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_fits_two_screens_and_help_all_shows_the_rest(program):
    short, long = run(program, "--help").stdout, run(program, "--help_all").stdout
    assert len(short.splitlines()) <= 64
    assert "--adam_epsilon" not in short
    assert "--adam_epsilon" in long
    assert "--help_all" in short
    assert "default: None" not in short + long


def test_importing_emmental_loads_little_more_than_the_auto_classes():
    auto = "from transformers import AutoModelForSequenceClassification, AutoTokenizer, AutoConfig"
    base, _ = loaded("-c", auto)
    modules, _ = loaded("-c", "import emmental")
    assert {name for name in modules if name.startswith(("torch._dynamo", "torch._inductor"))} <= base
    assert {name.split(".")[0] for name in modules} & {"sklearn", "matplotlib", "cv2", "tensorboard", "onnx"} == set()
    assert len(modules) < 1.15 * len(base)


def test_import_registers_whatever_program_is_there(tmp_path):
    code = (
        "import emmental\nfrom transformers import AutoConfig\nprint(AutoConfig.for_model('masked_bert').model_type)"
    )
    (tmp_path / "mine.py").write_text(code)
    assert run("mine.py", cwd=tmp_path).stdout.strip() == "masked_bert"


BLOCKED = """
import sys

for name in ("matplotlib", "cv2", "tensorboard", "onnx", "onnxruntime"):
    sys.modules[name] = None
import masked_run_glue
masked_run_glue.main(sys.argv[1:])
"""


def test_trains_without_the_optional_parts(tmp_path, bert_dir):
    tiny.write_task(tmp_path / "data", "mrpc")
    (tmp_path / "blocked.py").write_text(BLOCKED)
    flags = [
        *("--data_dir", str(tmp_path / "data"), "--task_name", "mrpc", "--model_name_or_path", str(bert_dir)),
        *("--output_dir", str(tmp_path / "out"), "--feature_cache_dir", str(tmp_path / "cache"), "--no_cuda"),
        *("--max_seq_length", "32", "--max_steps", "4", "--warmup_steps", "1", "--save_steps", "2"),
        *("--initial_warmup", "1", "--final_warmup", "1", "--logging_steps", "1", "--do_train", "--do_eval"),
    ]
    done = run("blocked.py", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = [line for line in done.stderr.splitlines() if "left out: " in line]
    assert line.endswith(
        "left out: pictures (no matplotlib, cv2), TensorBoard (no tensorboard), ONNX files (no onnx, onnxruntime); "
        "to install them: pip install matplotlib opencv-python-headless tensorboard onnx onnxruntime"
    )
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert not (tmp_path / "out" / "tensorboard").exists()
    rows = [json.loads(row) for row in (tmp_path / "out" / "train_log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]


def test_threads_are_said_and_set(tmp_path, bert_dir):
    tiny.write_task(tmp_path / "data", "mrpc")
    flags = ["--data_dir", "data", "--task_name", "mrpc", "--model_name_or_path", str(bert_dir), "--max_steps", "3"]
    flags += [
        "--feature_cache_dir",
        "cache",
        "--no_cuda",
        "--dry_run",
        "--max_seq_length",
        "32",
        "--warmup_steps",
        "0",
    ]
    said = run(str(ROOT / "masked_run_glue.py"), *flags, "--threads", "3", cwd=tmp_path).stderr
    assert "3 CPU threads, of " in said
    assert "threads 3" in said
