"""Starts one of the programs as torchrun would, and breaks one call of it in one process, once.

python -m faults.saboteur masked_run_glue.py <its flags>, with the variable FAULTS_SABOTAGE set to rank, method,
number of the call, signal (0: an exception in its place), and a file that is made when it happens.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path


def main() -> None:
    """Break what the variable says, and run the program."""
    script, *argv = sys.argv[1:]
    program = importlib.import_module(Path(script).stem)
    if os.environ.get("FAULTS_SABOTAGE"):
        _sabotage(program, *os.environ["FAULTS_SABOTAGE"].split(","))
    sys.argv = [script, *argv]
    program.main(argv)


def _sabotage(program: object, rank: str, method: str, number: str, signal_number: str, done: str) -> None:
    import distiller
    from emmental.runs import loop

    if os.environ["RANK"] != rank or Path(done).exists():
        return
    stepper = distiller.TaskDistiller if program.__name__ == "masked_run_glue" else distiller.Distiller
    owner = {"step": stepper, "save_checkpoint": loop}.get(method, program)
    original: Callable = getattr(owner, method)
    calls = 0

    def broken(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == int(number):
            Path(done).touch()
            if int(signal_number) == 0:
                raise OSError("the disk is gone")
            os.kill(os.getpid(), int(signal_number))
        return original(*args, **kwargs)

    setattr(owner, method, broken)


if __name__ == "__main__":
    main()
