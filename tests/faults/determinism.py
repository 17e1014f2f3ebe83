"""The same weights come out, bit for bit, whatever is logged, evaluated, drawn or loaded by helpers on the way."""

from __future__ import annotations

from pathlib import Path

from faults.runs import PLAIN_CASES, Command, World, last_lines
from faults.tally import Clock, Tally

SWITCHES = {
    "the same again": (),
    "logging every update": ("--logging_steps", "1"),
    "logging never": ("--logging_steps", "1000"),
    "evaluation at every update": ("--evaluate_during_training", "--save_steps", "1"),
    "no evaluation": ("--no-evaluate_during_training", "--do_train"),
    "pictures": ("--pictures",),
    "two processes load batches": ("--num_workers", "2"),
    "checkpoints at every update, one kept": ("--save_steps", "1", "--save_total_limit", "1"),
    "predictions": ("--do_train", "--do_eval", "--do_predict"),
    "another evaluation batch size": ("--per_gpu_eval_batch_size", "3", "--evaluate_during_training"),
    "features cached anew": ("--overwrite_cache",),
}
LM_SWITCHES = {
    "the same again": (),
    "logging every batch": ("--log_interval", "1"),
    "checkpoints at every batch": ("--checkpoint_interval", "1"),
    "neither": ("--log_interval", "1000", "--checkpoint_interval", "1000"),
}


def weights(command: Command, output: Path, others: tuple[str, ...]) -> bytes:
    """The finished model's bytes."""
    assert command.run(output, others=others) == 0, last_lines(output, 20)
    return (output / "model.safetensors").read_bytes()


def try_all(command: Command, switches: dict[str, tuple[str, ...]], folder: Path) -> Tally:
    """Run a command once as it is, and once with each switch."""
    with Clock(Tally(f"same weights whatever is switched, {command.name}")) as tally:
        plain = weights(command, folder / "plain" / "out", ())
        for name, flags in switches.items():
            same = weights(command, folder / name / "out", flags) == plain
            tally.count(None if same else f"{name}: other weights")
    return tally


def long_form(folder: Path, seed: int = 0) -> list[Tally]:
    """Every switch for several cases."""
    world = World(folder / "world")
    cases = ("movement", "global_topk", "l0", "taught", "half")
    students = ("distilbert", "gpt2")
    return [
        *(try_all(world.trainer(case), SWITCHES, folder / case) for case in cases),
        *(try_all(world.plain(*flags), SWITCHES, folder / f"plain {n}") for n, flags in enumerate(PLAIN_CASES)),
        *(try_all(world.distiller(student), LM_SWITCHES, folder / student) for student in students),
    ]
