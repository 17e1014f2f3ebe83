"""A teacher that was trained in another unit teaches in the unit of the labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from emmental.teaching.units import in_unit_of_labels

LABELS = np.arange(10, dtype=np.float32)


def scores(values: np.ndarray) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None]


def test_the_line_of_least_squares_maps_another_unit(caplog):
    given = scores(LABELS / 5 + 100)
    given[3] = torch.nan  # not asked
    found = in_unit_of_labels(given, LABELS, "--teacher_name_or_path x")
    assert torch.allclose(found[[0, 9], 0], torch.tensor([0.0, 9.0]), atol=1e-4)
    assert found[3].isnan()
    assert "--teacher_name_or_path x gives scores in another unit than the labels: 100 to 101.8 against 0 to 9" in (
        caplog.text
    )


@pytest.mark.parametrize("labels", [LABELS, None, LABELS[:3], np.full(10, np.nan, np.float32)])
def test_the_unit_of_the_labels_stays(labels, caplog):
    given = scores(LABELS[: None if labels is None else len(labels)] * 0.9 + 0.2)
    assert torch.equal(in_unit_of_labels(given, labels, "x"), given)
    assert not caplog.text


def test_a_teacher_of_something_else_is_said(caplog):
    given = scores(np.array([90, 10, 80, 20, 70, 30, 60, 40, 55, 45.0]))
    assert torch.equal(in_unit_of_labels(given, LABELS, "x"), given)
    assert "do not follow the labels (correlation -0.15" in caplog.text
