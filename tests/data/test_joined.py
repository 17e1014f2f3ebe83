"""Rows without labels after rows with labels: the same batches as of each alone, and losses that only labels give."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from emmental.data import load_features
from emmental.data.joined import UNLABELLED, JoinedDataset
from emmental.tasks import read_split, resolve_task, unlabelled_task
from emmental.teaching.losses import ClassLoss, ScoreLoss

TEXTS = ["good film", "bad", "a long and good film"]


@pytest.fixture(scope="module", params=["sst-2", "sts-b"])
def parts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    folder, task = tmp_path_factory.mktemp("joined"), resolve_task(request.param)
    tiny.write_task(folder, task.name)
    file = folder / ("more.txt" if task.name == "sst-2" else "more.csv")
    pairs = ["sentence1,sentence2", *(f"{text},{text}" for text in TEXTS)]
    file.write_text("\n".join(TEXTS if task.name == "sst-2" else pairs) + "\n")
    made = (tiny.tokenizer(), 32, folder / "cache")
    return load_features(task, folder, "train", *made), load_features(unlabelled_task(file, task), None, "test", *made)


def test_batches_are_those_of_the_parts(parts) -> None:
    labelled, more = parts
    joined = JoinedDataset(labelled, more)
    first = len(labelled)
    assert len(joined) == first + len(TEXTS)
    assert joined.lengths.tolist() == [*labelled.lengths, *more.lengths]
    for part, rows in ((labelled, [0, first - 1]), (more, [0, 2])):
        batch = joined.batch(np.array(rows) + (first if part is more else 0))
        for name in ("input_ids", "attention_mask", "token_type_ids"):
            assert torch.equal(batch[name], part.batch(rows)[name])
    assert torch.equal(joined.batch([1])["labels"], labelled.batch([1])["labels"])


def test_rows_without_labels_have_no_loss_and_no_gradient(parts) -> None:
    labelled, more = parts
    joined = JoinedDataset(labelled, more)
    labels = joined.batch([0, len(labelled)])["labels"]
    assert labels[1] == UNLABELLED or labels[1].isnan()
    logits = torch.tensor([[0.5, 0.1], [0.3, 0.2]][: len(labels)], requires_grad=True)
    classes = labels.dtype == torch.int64
    loss, logits_of_task = (ClassLoss(), logits) if classes else (ScoreLoss(), logits[:, :1])
    losses = loss.of_labels(logits_of_task, labels)
    losses.sum().backward()
    assert losses[0] > 0
    assert losses[1] == 0
    assert logits.grad[0].any()
    assert not logits.grad[1].any()


def test_the_fingerprint_covers_both_and_workers_see_the_same(parts) -> None:
    labelled, more = parts
    joined = JoinedDataset(labelled, more)
    assert joined.fingerprint not in (labelled.fingerprint, more.fingerprint)
    copied = pickle.loads(pickle.dumps(joined))
    assert copied.fingerprint == joined.fingerprint
    assert torch.equal(copied.batch([0, len(labelled)])["input_ids"], joined.batch([0, len(labelled)])["input_ids"])
    assert len(joined.indices) == len(joined)


def test_lines_of_text_may_be_packed(tmp_path: Path) -> None:
    (tmp_path / "one.txt.gz").write_bytes(gzip.compress(b"good film\nbad film\n"))
    task = unlabelled_task(tmp_path / "one.txt.gz", resolve_task("sst-2"))
    assert read_split(task, None, "test").texts_a == ["good film", "bad film"]


def test_pairs_and_single_texts_do_not_mix(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("good film\n")
    with pytest.raises(ValueError, match="the task has pairs, and the file has no second text"):
        unlabelled_task(tmp_path / "one.txt", resolve_task("mrpc"))
    (tmp_path / "two.csv").write_text("sentence1,sentence2\na,b\n")
    with pytest.raises(ValueError, match="the task has single texts, and the file has a second text"):
        unlabelled_task(tmp_path / "two.csv", resolve_task("sst-2"))
