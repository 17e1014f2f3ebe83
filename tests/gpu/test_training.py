"""The trainer on the device: the CPU's losses in every method and precision, no waiting, resuming, processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_lm
import torch
from gpu_runs import losses, update_over_gloo
from safetensors.torch import load_file
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoModelForSequenceClassification

import masked_run_glue
from distiller import TaskDistiller
from emmental.export.onnx import export_onnx
from emmental.runs.optimization import Learner
from emmental.runs.precision import Precision
from emmental.shrinking import layer_sizes

ROOT = Path(__file__).resolve().parents[2]
METHODS = {
    "dense": "--model_type bert",
    "topK": "--pruning_method topK --mask_init uniform --mask_scale 0.1 --final_threshold 0.3",
    "topK global": "--pruning_method topK --global_topk --mask_init uniform --mask_scale 0.1 --final_threshold 0.3",
    "magnitude": "--pruning_method magnitude --final_threshold 0.3",
    "threshold": "--pruning_method threshold --initial_threshold 0 --final_threshold 0.1 --regularization l1 "
    "--final_lambda 1 --mask_init uniform --mask_scale 1",
    "sigmoied_threshold": "--pruning_method sigmoied_threshold --initial_threshold 0 --final_threshold 0.5 "
    "--regularization l1 --final_lambda 1 --mask_init uniform --mask_scale 1",
}
TOLERANCES = {"fp32": (1e-3, ""), "bf16": (5e-2, "--bf16"), "fp16": (1e-2, "--fp16")}
"""Precision -> largest difference of a loss (about 0.7) from the CPU's in float32, and its flag."""


def cheap(method: str, precision: str) -> object:
    marks = (
        () if (method, precision) in (("topK", "bf16"), ("sigmoied_threshold", "fp32")) else (pytest.mark.gpu_only,)
    )
    return pytest.param(method, precision, marks=marks)


@pytest.mark.parametrize(("method", "precision"), [cheap(m, p) for m in METHODS for p in TOLERANCES])
def test_ten_updates_as_on_a_cpu(flags, tmp_path, method, precision):
    tolerance, flag = TOLERANCES[precision]
    masked_run_glue.main(flags("cpu", *METHODS[method].split(), cpu=True))
    masked_run_glue.main(flags("device", *METHODS[method].split(), *flag.split()))
    on_cpu, on_device = losses(tmp_path / "cpu"), losses(tmp_path / "device")
    assert len(on_device) == 10
    np.testing.assert_allclose(on_device, on_cpu, atol=tolerance)


@pytest.mark.gpu_only
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_l0_trains(flags, tmp_path, precision):
    l0 = "--pruning_method l0 --regularization l0 --final_lambda 1 --mask_scale 2 --mask_init constant"
    masked_run_glue.main(flags("out", *l0.split(), f"--{precision}"))
    assert all(np.isfinite(losses(tmp_path / "out")))


@pytest.mark.gpu_only
@pytest.mark.parametrize("method", ["topK", "sigmoied_threshold", "magnitude"])
def test_compiled_as_eager(flags, tmp_path, method):
    for name, flag in (("eager", ()), ("compiled", ("--torch_compile",))):
        masked_run_glue.main(flags(name, *METHODS[method].split(), *flag))
    np.testing.assert_allclose(losses(tmp_path / "compiled"), losses(tmp_path / "eager"), atol=1e-3)


@pytest.mark.gpu_only
def test_a_teacher_is_cached(flags, dense, tmp_path):
    teacher = ("--teacher_name_or_path", str(dense), "--alpha_hidden_mse", "0.5")
    masked_run_glue.main(flags("cpu", *METHODS["topK"].split(), *teacher, cpu=True))
    masked_run_glue.main(flags("device", *METHODS["topK"].split(), *teacher))
    np.testing.assert_allclose(losses(tmp_path / "device"), losses(tmp_path / "cpu"), atol=2e-3)


@pytest.mark.gpu_only
def test_resumes_to_the_bit_after_sigkill(start, tmp_path):
    assert start("whole", *METHODS["topK"].split()).wait(timeout=120) == 0
    process = start("killed", *METHODS["topK"].split())
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "checkpoint-5").is_dir() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    assert start("killed", *METHODS["topK"].split()).wait(timeout=120) == 0
    whole, killed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")


@pytest.mark.gpu_only
def test_as_many_processes_as_gpus(start, tmp_path):
    """One GPU is enough to start NCCL."""
    process = start("out", *METHODS["topK global"].split(), processes=torch.cuda.device_count())
    said, _ = process.communicate(timeout=180)
    assert process.returncode == 0, said[-2000:]
    assert len(losses(tmp_path / "out")) == 10


def test_two_processes_on_one_device_over_gloo(device, tmp_path):
    for count in (1, 2):
        arguments = (count, str(tmp_path / f"store-{count}"), device.type, str(tmp_path / f"{count}.pt"))
        torch.multiprocessing.spawn(update_over_gloo, arguments, nprocs=count)
    one, two = (torch.load(tmp_path / f"{count}.pt", weights_only=True, map_location="cpu") for count in (1, 2))
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-6, rtol=0)


def test_an_fp16_overflow_is_skipped(device):
    model = torch.nn.Linear(4, 1).to(device)
    before = model.weight.detach().clone()
    optimizer = torch.optim.SGD([{"name": "all", "params": list(model.parameters())}], lr=0.5)
    precision = Precision(device, fp16=True)
    precision.scaler = torch.amp.GradScaler(device.type, init_scale=2.0**127)
    loop = Learner(model, optimizer, LambdaLR(optimizer, lambda _: 1.0), precision, 0.0)
    for _ in range(2):
        loop.begin_update(1)
        with loop.micro_batch():
            loop.optimize(100 * model(torch.ones(2, 4, device=device)).float().sum())
    assert (loop.global_step, loop.skipped_updates) == (2, 2)
    assert torch.equal(model.weight, before)


def test_heads_and_neurons_as_on_a_cpu(flags, tmp_path):
    """A cut without training: the same sizes of every layer, and the same logits, as on a CPU."""
    cut = "--granularity structured --keep 0.5 --no-dense_first --num_train_epochs 0 --max_steps -1"
    masked_run_glue.main(flags("cpu", *cut.split(), cpu=True))
    masked_run_glue.main(flags("device", *cut.split()))
    models = [AutoModelForSequenceClassification.from_pretrained(tmp_path / name) for name in ("cpu", "device")]
    assert layer_sizes(models[0]) == layer_sizes(models[1])
    ids = torch.tensor([[2, 5, 9, 17, 3]])
    with torch.no_grad():
        on_cpu, on_device = (model.eval()(ids).logits for model in models)
    torch.testing.assert_close(on_device, on_cpu, atol=1e-2, rtol=0)


def test_single_weights_in_phases(flags, tmp_path):
    """Dense, pruned, evaluated, handed over: what is left is the share asked for."""
    given = "--recipe auto --granularity unstructured --keep 0.3 --do_eval --no-floor"
    masked_run_glue.main(flags("device", *given.split()))
    summary = json.loads((tmp_path / "device" / "summary.json").read_text())
    assert summary["remaining"] == pytest.approx(30, abs=0.1)
    assert [row["name"] for row in summary["compared"]] == ["dense", "30.0% kept"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_ten_updates_of_a_small_model_as_on_a_cpu(flags, tmp_path, precision):
    tolerance, flag = TOLERANCES[precision]
    cut = "--granularity structured --keep 0.5 --no-dense_first --num_train_epochs 0 --max_steps -1"
    masked_run_glue.main(flags("small", *cut.split(), cpu=True))
    start = ("--model_type", "bert", "--model_name_or_path", str(tmp_path / "small"))
    masked_run_glue.main(flags("cpu", *start, cpu=True))
    masked_run_glue.main(flags("device", *start, *flag.split()))
    np.testing.assert_allclose(losses(tmp_path / "device"), losses(tmp_path / "cpu"), atol=tolerance)


@pytest.mark.gpu_only
def test_onnx_runtime_on_the_gpu(dense, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is not installed")
    model = AutoModelForSequenceClassification.from_pretrained(dense).eval()
    export_onnx(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CUDAExecutionProvider"])
    ids = np.array([[2, 5, 9, 17, 3]], dtype=np.int64)
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    with torch.no_grad():
        expected = model(**{name: torch.from_numpy(value) for name, value in given.items()}).logits
    np.testing.assert_allclose(session.run(None, given)[0], expected, atol=1e-3)


@pytest.mark.gpu_only
def test_nan_ends_the_run_and_is_not_saved(flags, dense, data, tmp_path):
    with pytest.raises(SystemExit) as ended:
        masked_run_glue.main(flags("out", *METHODS["topK"].split(), "--learning_rate", "1e30", "--max_grad_norm", "0"))
    assert ended.value.code == 1
    assert not (tmp_path / "out" / "model.safetensors").exists()
    for checkpoint in (tmp_path / "out").glob("checkpoint-*"):
        assert all(bool(value.isfinite().all()) for value in load_file(checkpoint / "model.safetensors").values())


@pytest.mark.gpu_only
def test_a_language_model_as_on_a_cpu(tmp_path):
    flags = [*tiny_lm.prepare(tmp_path, "distilbert"), "--n_epoch", "1", "--gradient_accumulation_steps", "1"]
    flags += ["--log_interval", "1", "--alpha_ce", "1", "--alpha_mlm", "1", "--learning_rate", "1e-3"]
    run = [sys.executable, str(ROOT / "distiller.py"), *flags, "--dump_path"]
    for name, variables in (("cpu", {"CUDA_VISIBLE_DEVICES": ""}), ("device", {})):
        environment = {**os.environ, **variables}
        subprocess.run([*run, str(tmp_path / name)], cwd=ROOT, env=environment, check=True, capture_output=True)
    np.testing.assert_allclose(losses(tmp_path / "device"), losses(tmp_path / "cpu"), atol=1e-2)


@pytest.mark.gpu_only
@pytest.mark.parametrize("method", METHODS)
def test_no_update_waits_for_the_device(flags, method, monkeypatch):
    step, updates = TaskDistiller.step, []

    def watched(self: TaskDistiller, *args: object) -> bool:
        prepares = self.global_step == 0
        due = prepares or (self.args.global_topk and self._global_threshold_is_due(self.global_step + 1))
        updates.append(due)
        torch.cuda.set_sync_debug_mode("default" if due else "error")  # an update that waits raises
        try:
            return step(self, *args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(TaskDistiller, "step", watched)
    masked_run_glue.main(flags("out", *METHODS[method].split(), "--bf16", "--logging_steps", "100"))
    assert updates.count(False) > 1
