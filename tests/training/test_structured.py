"""The cut of a run: what it needs."""

from types import SimpleNamespace

import pytest
import tiny_models
import torch

from emmental.errors import UserError
from emmental.methods.brain_surgeon import BrainSurgeon
from emmental.runs.processes import Processes
from emmental.structured.gates import encoder_weights
from emmental.training import structured


def test_a_surgeon_without_room_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_models.model("bert")
    run = SimpleNamespace(pruning_method="brain_surgeon", processes=Processes())
    structured.check_memory(run, model)
    monkeypatch.setattr(BrainSurgeon, "bytes_a_weight", 10**12)
    with pytest.raises(UserError, match=r"--pruning_method brain_surgeon needs .* GB of memory for this encoder"):
        structured.check_memory(run, model)
    run.pruning_method = "fisher"
    structured.check_memory(run, model)


def test_the_surgeon_fits_where_memory_is_twice_its_need(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_models.model("bert")
    run = SimpleNamespace(processes=Processes())
    needed = BrainSurgeon.bytes_a_weight * encoder_weights(model)
    for there, fits in ((2 * needed, True), (2 * needed - 1, False)):
        monkeypatch.setattr(structured, "memory_of", lambda device, there=there: there)
        assert structured.surgeon_fits(run, model.config) is fits
    run.processes = SimpleNamespace(device=torch.device("cpu"), world_size=2, any=bool)
    for there, fits in ((4 * needed, True), (4 * needed - 1, False)):
        monkeypatch.setattr(structured, "memory_of", lambda device, there=there: there)
        assert structured.surgeon_fits(run, model.config) is fits
