"""Loss averages, stop signals, and the batches of each update."""

from __future__ import annotations

import json
import os
import pty
import random
import signal
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from emmental.data import LengthGroupedBatches, batch_loader
from emmental.runs.processes import Processes
from emmental.runs.state import LossAverages, StopSignals, batches_of_updates, seed_generators


def losses(**values: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


def test_one_seed_for_all_generators():
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    seed_generators(3)
    first = draw()
    seed_generators(4)
    assert draw() != first
    seed_generators(3)
    assert draw() == first


class TestLossAverages:
    def test_by_hand(self):
        """Updates of 2 and 1 micro-batches with mean losses 2 and 5: 3.5; then one of 8."""
        averages = LossAverages(Processes())
        averages.add(losses(total=1.0, ce=0.5), 2)
        averages.add(losses(total=3.0, ce=1.5), 2)
        averages.update_done()
        averages.add(losses(total=5.0, ce=4.0), 1)
        averages.update_done()
        assert averages.take_recent() == {"total": 3.5, "ce": 2.5}
        averages.add(losses(total=8.0, ce=8.0), 1)
        averages.update_done()
        assert averages.take_recent() == {"total": 8.0, "ce": 8.0}
        assert averages.mean_total() == 5.0

    def test_before_the_first_update(self):
        assert LossAverages(Processes()).mean_total() == 0.0
        assert LossAverages(Processes()).take_recent() == {}

    def test_losses_are_detached(self):
        averages = LossAverages(Processes())
        loss = torch.tensor(2.0, requires_grad=True) * 3
        averages.add({"total": loss}, 1)
        averages.update_done()
        assert averages.take_recent() == {"total": 6.0}
        assert not averages._sums["all/total"].requires_grad

    def test_state_continues_exactly(self):
        def run(averages: LossAverages, updates: range) -> None:
            for update in updates:
                averages.add(losses(total=1 / (update + 3), ce=0.1 * update), 3)
                averages.update_done()

        straight, first, second = (LossAverages(Processes()) for _ in range(3))
        run(straight, range(7))
        run(first, range(4))
        second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
        run(second, range(4, 7))
        assert second.take_recent() == straight.take_recent()
        assert second.mean_total() == straight.mean_total()


class TestStopSignals:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_remembered_and_handlers_restored(self, number):
        before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
        with StopSignals() as signals:
            assert signals.received is None
            os.kill(os.getpid(), number)
            assert signals.received == number
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before

    @pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"])
    def test_the_end_of_a_session_is_remembered_unless_it_is_ignored(self, name):
        number = getattr(signal, name)
        before = signal.signal(number, signal.SIG_DFL)
        try:
            with StopSignals() as signals:
                os.kill(os.getpid(), number)
                assert signals.received == number
            signal.signal(number, signal.SIG_IGN)  # nohup does this to SIGHUP
            with StopSignals() as signals:
                os.kill(os.getpid(), number)
                assert signals.received is None
            assert signal.getsignal(number) == signal.SIG_IGN
        finally:
            signal.signal(number, before)

    def test_a_closed_terminal_is_not_written_to(self):
        """A pseudo-terminal whose other end is closed fails every write, and the log and the bar go on writing."""
        program = (
            "import os, signal, sys, time\nfrom emmental.runs.state import StopSignals\n"
            "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
            "with StopSignals() as signals:\n"
            "    print('ready', flush=True)\n"
            "    while signals.received is None: time.sleep(0.01)\n"
            "    print('saving', file=sys.stderr, flush=True)\n"
            "open(sys.argv[1], 'w').write('saved')\n"
        )
        with tempfile.TemporaryDirectory() as folder:
            saved = Path(folder) / "saved"
            child, terminal = pty.fork()
            if child == 0:
                os.execv(sys.executable, [sys.executable, "-c", program, str(saved)])
            said = b""
            while b"ready" not in said:
                said += os.read(terminal, 1024)
            os.close(terminal)
            os.waitpid(child, 0)
            assert saved.read_text() == "saved"

    def test_a_second_control_c_is_obeyed_at_once(self):
        # A shell starts what runs in its background with SIGINT ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)

        def interrupted_twice() -> None:
            with StopSignals():
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            interrupted_twice()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class TestBatchesOfUpdates:
    @staticmethod
    def stream(dataset: object, accumulation: int, made: int, count: int) -> list[tuple[int, list[list[int]]]]:
        """(epoch, rows of each micro-batch) of `count` updates after `made`."""
        batches = LengthGroupedBatches(dataset.lengths, 4, seed=1)
        updates = batches_of_updates(batch_loader(dataset, batches), batches, accumulation, made)
        found = []
        for _ in range(count):
            epoch, micro_batches = next(updates)
            found.append((epoch, [batch["index"].tolist() for batch in micro_batches]))
        return found

    def test_every_epoch_has_every_row_once_and_flushes_its_last_group(self, make_features):
        """22 rows in batches of 4 are 6 batches; by 4, two updates an epoch, of 4 and of 2 batches."""
        updates = self.stream(make_features(split="train", train=22), 4, 0, 6)
        assert [(epoch, len(batches)) for epoch, batches in updates] == [
            (0, 4),
            (0, 2),
            (1, 4),
            (1, 2),
            (2, 4),
            (2, 2),
        ]
        orders = []
        for epoch in range(3):
            rows = [row for e, batches in updates if e == epoch for batch in batches for row in batch]
            assert sorted(rows) == list(range(22))
            orders.append(rows)
        assert orders[0] != orders[1] != orders[2]

    @pytest.mark.parametrize("accumulation", [1, 2, 4, 50])
    def test_any_update_can_be_the_first(self, make_features, accumulation):
        dataset = make_features(split="train", train=22)
        straight = self.stream(dataset, accumulation, 0, 14)
        for made in range(1, 13):
            assert self.stream(dataset, accumulation, made, 14 - made) == straight[made:]
