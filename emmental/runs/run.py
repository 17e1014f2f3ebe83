"""One run of a program: its flags, and the objects made from them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import emmental
from emmental.errors import NonFiniteError
from emmental.flags import Flags
from emmental.optional import what_is_left_out
from emmental.runs import processes
from emmental.runs.checkpoints import last_written
from emmental.runs.inputs import refuse_losing_inputs
from emmental.runs.processes import Processes
from emmental.runs.progress import configure_logging
from emmental.runs.threads import available_cores, choose_threads
from emmental.tasks.set_aside import SET_ASIDE

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FolderFlags:
    """A program's names for the flags of its output folder.

    Attributes:
        folder: the flag of the output folder.
        afresh: the flag that starts afresh there.
    """

    folder: str
    afresh: str


TRAINER_FLAGS, DISTILLER_FLAGS = FolderFlags("output_dir", "overwrite_output_dir"), FolderFlags("dump_path", "force")


class Run:
    """Everything a run works with. A flag is read and set as its attribute: `run.learning_rate`.

    Attributes:
        flags: those of the command line.
        folder_flags: the program's names for the flags of its output folder.
        processes: this process, one of all that train together.
        task: the task to learn; None for a language model.
        tokenizer, special_tok_ids: of a language model: its tokenizer, and name of a special token -> its id.
        datasets: (name of the task, split) -> rows, for the data opened so far.
        output: the locked output folder; None in a process that does not write, or before it is opened.
        phases: of the trainer, in order, once they are decided; empty without training.
        evaluates_in_bf16: evaluation runs in bfloat16, because the user gave `--bf16`. The precision that the recipe
            trains in must not change results.
        work_after: what the command does after this training, in updates of this training; only the log shows it.
        contents: fingerprints of other things that change the result, such as data and teacher.
    """

    def __init__(
        self, flags: Flags, folder_flags: FolderFlags = TRAINER_FLAGS, processes: Processes | None = None
    ) -> None:
        own: dict[str, Any] = {
            "folder_flags": folder_flags,
            "processes": processes or Processes(),
            "task": None,
            "tokenizer": None,
            "special_tok_ids": {},
            "datasets": {},
            "output": None,
            "phases": [],
            "evaluates_in_bf16": getattr(flags, "bf16", False),
            "work_after": 0.0,
            "contents": {},
        }
        hidden = [name for name in vars(flags) if name in own or hasattr(Run, name)]
        assert not hidden, f"a flag cannot be called like an attribute of a run: {', '.join(hidden)}"
        vars(self).update(own, flags=flags)

    def __getattr__(self, name: str) -> Any:
        """The value of a flag."""
        if name == "flags":  # not set yet while the run is being copied
            raise AttributeError(name)
        return getattr(self.flags, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a flag or an attribute of the run."""
        if name != "flags" and name in vars(self.flags):
            setattr(self.flags, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def folder(self) -> Path | None:
        """The output folder that the flags name; None if they name none."""
        name = getattr(self, self.folder_flags.folder)
        return None if name is None else Path(name)

    def part(self, folder: Path | None = None, **flags: Any) -> Run:
        """A part of the run: the same task, data and processes, other flags and, if given, another folder."""
        changed = copy.copy(self.flags)
        vars(changed).update(flags)
        if folder is not None:
            setattr(changed, self.folder_flags.folder, str(folder))
        part = Run(changed, self.folder_flags, self.processes)
        part.task, part.datasets, part.contents = self.task, self.datasets, dict(self.contents)
        part.phases, part.evaluates_in_bf16 = self.phases, self.evaluates_in_bf16
        return part

    def identity(self) -> dict[str, Any]:
        """Everything that changes the resulting weights: flags, contents, number of processes. Checkpoints hold it."""
        return {**self.flags.of_result(), **self.contents, "world_size": self.processes.world_size}

    def _record(self) -> dict[str, Any]:
        known = {**self.flags.all(), **self.contents, "given": sorted(self.flags.explicit)}
        if (rows := getattr(self.task, "trained_rows", None)) is not None:
            known[SET_ASIDE] = rows.record()
        return dict(sorted(known.items()))

    def record(self) -> None:
        """Write flags, the names of those that the user gave, and contents into `training_args.json`."""
        if self.output is not None:
            self.output.write_json("training_args.json", self._record())


def _set_threads(asked: int | None, processes: int) -> None:
    threads = choose_threads(asked, processes)
    # PyTorch counts whole cores, not the two threads that each may run.
    torch.set_num_threads(threads if asked is not None else min(threads, torch.get_num_threads()))
    cores, used = available_cores(), torch.get_num_threads()
    logger.info("%d CPU thread%s, of %d core%s; --threads changes that", used, _s(used), cores, _s(cores))


def _s(count: int) -> str:
    return "" if count == 1 else "s"


@contextmanager
def set_up(flags: Flags, folder_flags: FolderFlags, no_cuda: bool, remedies: str) -> Iterator[Run]:
    """A run with its processes and its log. However it ends, its folder and processes are released.

    Args:
        flags: of the program.
        folder_flags: see `Run`.
        no_cuda: run on the CPU.
        remedies: advice for the log if a loss is not finite.

    Raises:
        UserError: see `emmental.runs.processes.start` and `emmental.runs.inputs.refuse_losing_inputs`.
        SystemExit: with status 1 if a loss or gradient was not finite.
    """
    emmental.register()
    run = Run(flags, folder_flags, processes.start(no_cuda))
    configure_logging(run.processes.is_main)
    _set_threads(flags.threads, run.processes.world_size)
    if line := what_is_left_out():
        logger.info(line)
    try:
        refuse_losing_inputs(run)
        yield run
    except NonFiniteError as error:
        newest = last_written(run.folder) or "none"
        logger.error("%s; the run ends without saving it. Last good state: %s. Try %s", error, newest, remedies)
        raise SystemExit(1) from error
    finally:
        if run.output is not None:
            run.output.close()
        processes.stop()
