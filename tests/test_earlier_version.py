"""What the version before recipes wrote is still good: `earlier/` holds files that it made on a one-layer BERT.

`half` was killed after update 12 of 32, `finished` is the same run to its end, `model.package` that model in int8.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

import masked_run_glue
from emmental.export.sparse import load_sparse

EARLIER = Path(__file__).parent / "earlier"
SHAPE = ("--max_seq_length", "16", "--num_train_epochs", "4", "--per_gpu_train_batch_size", "4", "--warmup_steps", "2")
RATES = ("--learning_rate", "0.03", "--mask_scores_learning_rate", "0.1", "--final_threshold", "0.7")
FLAGS = (
    *("--data_dir", "sst-2", "--task_name", "sst-2", "--model_name_or_path", "bert", "--feature_cache_dir", "cache"),
    *("--no_cuda", "--no-pictures", "--save_steps", "4", *SHAPE, *RATES),
)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs the trainer with the flags of then, and more, in a folder that holds the files of then."""
    shutil.copytree(EARLIER, tmp_path, dirs_exist_ok=True)
    for folder in ("bert", "finished"):
        tiny.tokenizer().save_pretrained(tmp_path / folder)
    tiny.write_task(tmp_path / "sst-2", "sst-2", train=32, dev=10)
    monkeypatch.chdir(tmp_path)
    return lambda *flags: masked_run_glue.main([*FLAGS, *flags])


def test_a_finished_folder_evaluates_to_the_same_numbers(run) -> None:
    expected = json.loads(Path("finished/eval_results.json").read_text())
    assert run("--output_dir", "finished", "--do_eval") == pytest.approx(expected, abs=1e-6)


def test_a_run_killed_half_way_goes_on_to_the_same_weights(run, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        run("--output_dir", "half")
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"holds another run, of an earlier version \(checkpoint-12\): data '\w{8}' -> '\w{8}'\. ", line)
    run("--output_dir", "half", "--accept_changes", "--do_train")
    weights, expected = load_file("half/model.safetensors"), load_file("finished/model.safetensors")
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        if not name.endswith("key.bias"):  # its gradient is rounding alone: the softmax does not see it
            np.testing.assert_allclose(weight, expected[name], atol=1e-4, err_msg=name)


def test_a_package_unpacks_to_the_finished_model(run) -> None:
    ids = torch.arange(5, 29).reshape(2, 12)
    finished = AutoModelForSequenceClassification.from_pretrained("finished").eval()
    packed = load_sparse("model.package")
    with torch.no_grad():
        assert torch.allclose(packed(ids).logits, finished(ids).logits, atol=0.02)
        assert not torch.equal(finished(ids).logits[0], finished(ids).logits[1])
