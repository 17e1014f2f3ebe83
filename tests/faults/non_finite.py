"""NaN and infinity in a loss, a gradient or a weight at a chosen update: nothing of it is saved, the run says so."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path

import torch
from faults.kills import Uninterrupted
from faults.runs import Command, World, difference, last_lines, log_of
from faults.tally import Clock, Tally
from safetensors.torch import load_file

from emmental.runs.optimization import Learner

Poison = Callable[[Learner, torch.Tensor, float], torch.Tensor]


def _loss(loop: Learner, loss: torch.Tensor, value: float) -> torch.Tensor:
    return loss * value


def _gradient(loop: Learner, loss: torch.Tensor, value: float) -> torch.Tensor:
    parameter = loop.optimizer.param_groups[0]["params"][0]
    handle = parameter.register_hook(lambda gradient: (handle.remove(), torch.full_like(gradient, value))[1])
    return loss


def _weight(loop: Learner, loss: torch.Tensor, value: float) -> torch.Tensor:
    """A weight that no forward pass after this one may read: only a look at the weights themselves finds it."""
    original = loop.optimizer.step

    def step(*args: object, **kwargs: object) -> object:
        result = original(*args, **kwargs)
        with torch.no_grad():
            loop.optimizer.param_groups[-1]["params"][0].view(-1)[0] = value
        return result

    loop.optimizer.step = step
    return loss


POISONS: dict[str, Poison] = {"loss": _loss, "gradient": _gradient, "weight": _weight}


def poison(what: str, value: float, update: int) -> Callable[[], None]:
    """What a run takes as `before`: at the first micro-batch of an update, from 1, something becomes `value`."""

    def install() -> None:
        original = Learner.optimize

        def optimize(self: Learner, loss: torch.Tensor) -> bool:
            if self.global_step + 1 == update and self._seen == 0:
                loss = POISONS[what](self, loss, value)
            return original(self, loss)

        Learner.optimize = optimize

    return install


def poisoned(
    command: Command, what: str, value: float, update: int, folder: Path, known: Uninterrupted, last: int
) -> str | None:
    """Poison a run at an update; it must end with status 1, name its last good state, and go on from there exactly."""
    output = folder / "out"
    status = command.run(output, poison(what, value, update))
    if status != 1:
        return f"status {status}: {last_lines(output)}"
    said = log_of(output).read_text(encoding="utf-8")
    newest = max((int(path.name[11:]) for path in output.glob("checkpoint-*")), default=None)
    named = "Last good state: none" if newest is None else f"checkpoint-{newest}"
    if "Traceback" in said or named not in said.splitlines()[-1]:
        return f"the last line does not name {named}: {last_lines(output, 2)}"
    for file in output.glob("checkpoint-*/*.safetensors"):
        for name, tensor in load_file(file).items():
            if not torch.isfinite(tensor).all() and "gauss" not in name:
                return f"{file.parent.name} holds a poisoned {name}"
    if (output / "model.safetensors").exists():
        return "a finished model was saved"
    return command.finish(output) or difference(output, known.of(command)[0])


def overflowing(folder: Path, world: World) -> str | None:
    """float16 gradients that overflow: the update is skipped, counted and logged, the scale halved; all goes on."""
    command, output = world.trainer("half", "--logging_steps", "1"), folder / "out"
    status = command.run(output, poison("gradient", math.inf, 5))
    if status != 0:
        return f"status {status}: {last_lines(output)}"
    from emmental.runs.progress import read_log

    skipped = [row["skipped_updates"] for row in read_log(output / "train_log.jsonl") if "loss" in row]
    if skipped != [0] * 4 + [1] * 12:
        return f"skipped updates are logged as {skipped}"
    from emmental.runs.checkpoints import read_state

    scale = read_state(output / "checkpoint-16")["updates"]["scaler"]["scale"]
    return None if scale == 2.0**15 else f"the loss scale is {scale}, not half of 65536"


def try_all(commands: list[tuple[Command, int]], folder: Path, known: Uninterrupted, count: int, seed: int) -> Tally:
    """Poison runs at drawn updates, the last among them.

    Args:
        commands: each with its number of updates.
    """
    generator = random.Random(seed)
    with Clock(Tally("NaN or infinity in a loss, gradient or weight")) as tally:
        for number in range(count):
            command, last = commands[number % len(commands)]
            what = list(POISONS)[number // len(commands) % len(POISONS)]
            value = (math.nan, math.inf, -math.inf)[number % 3]
            update = last if number % 4 == 0 else generator.randint(1, last)
            problem = poisoned(command, what, value, update, folder / f"{number}", known, last)
            tally.count(None if problem is None else f"{command.name}, {what} {value} in update {update}: {problem}")
    return tally


def long_form(folder: Path, seed: int = 0) -> list[Tally]:
    """60 poisoned runs, and one that overflows in float16."""
    world, known = World(folder / "world"), Uninterrupted(folder / "uninterrupted")
    trainers = [(world.trainer(case), 16) for case in ("movement", "l0", "dense", "taught")]
    students = [(world.distiller("distilbert"), 6), (world.distiller("gpt2"), 6)]
    overflow = Tally("float16 overflow: skipped, counted, scale halved")
    with Clock(overflow):
        overflow.count(overflowing(folder / "overflow", world))
    return [try_all(trainers + students, folder, known, 60, seed), overflow]
