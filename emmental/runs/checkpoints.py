"""Checkpoints: the whole state of a training run, in safetensors and JSON, whole or not at all.

A checkpoint is a folder `checkpoint-<updates>` with the model and tokenizer as Transformers saves them, and beside
them `optimizer.safetensors`, `rng.safetensors` (one state for each rank) and `training_state.json`; `manifest.json`,
written last, holds the SHA-256 of every file.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from emmental import atomic
from emmental.errors import NonFiniteError, UserError
from emmental.modules.score_head import standard_parameters
from emmental.runs.processes import Processes

logger = logging.getLogger(__name__)

WEIGHTS, OPTIMIZER, RNG, STATE = "model.safetensors", "optimizer.safetensors", "rng.safetensors", "training_state.json"
STANDARD = "standard_scores.safetensors"  # a regression's head as it is trained; WEIGHTS has it in the labels' unit
PROJECTION = "companion.safetensors"  # the name that checkpoints have had from the first
_NAME = re.compile(r"checkpoint-[0-9]+")


def checkpoints_in(folder: str | Path) -> list[Path]:
    """Finished checkpoints directly inside `folder`, in numeric order; other names there do not matter."""
    return [path for path in _named_checkpoints(folder) if (path / atomic.MANIFEST).is_file()]


def last_written(folder: str | Path) -> Path | None:
    """The finished checkpoint written last in `folder` or in a phase's folder inside it."""
    found = [path for place in (Path(folder), *Path(folder).glob("*/")) for path in checkpoints_in(place)]
    return max(found, key=lambda path: ((path / atomic.MANIFEST).stat().st_mtime_ns, _step_of(path)), default=None)


def newest_good_checkpoint(folder: str | Path) -> Path | None:
    """The newest checkpoint whose files are all as they were written. The log names damaged ones."""
    for path in _named_checkpoints(folder)[::-1]:
        try:
            atomic.verify_folder(path)
            read_state(path)
        except atomic.DamagedError as error:
            logger.warning("checkpoint %s is damaged and not used: %s", path.name, error)
        else:
            return path
    return None


def save_checkpoint(
    folder: str | Path,
    step: int,
    model: nn.Module,
    tokenizer: Any | None,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    processes: Processes,
    projection: nn.Module | None = None,
) -> Path:
    """Write `<folder>/checkpoint-<step>`; every rank calls it, rank 0 writes.

    Args:
        folder: the run's output folder.
        step: updates made.
        model: the model, unwrapped; saved by its own `save_pretrained`.
        tokenizer: saved beside it; None if there is none.
        optimizer: its tensors are saved under the names of the model's parameters.
        state: everything else that the run needs to resume, as values of JSON.
        processes: this process; each rank's random states are saved.
        projection: of the hidden states, which trains beside the model without being part of it.

    Raises:
        NonFiniteError: a parameter or its optimizer state is NaN or infinite; nothing is written.
    """
    require_finite(step, model, optimizer, projection)
    rng = _gather_rng(processes)
    path = Path(folder) / f"checkpoint-{step}"
    if processes.is_main:
        _keep_foreign(path)
        with atomic.atomic_folder(path, damaged_too=True) as temporary:
            model.save_pretrained(temporary)
            if tokenizer is not None:
                tokenizer.save_pretrained(temporary)
            save_file(_optimizer_tensors(model, projection, optimizer), temporary / OPTIMIZER)
            if standard := standard_parameters(model):
                save_file({name: value.detach() for name, value in standard.items()}, temporary / STANDARD)
            if projection is not None:
                save_file(projection.state_dict(), temporary / PROJECTION)
            save_file(rng, temporary / RNG)
            (temporary / STATE).write_text(json.dumps(state, indent=1, allow_nan=False), encoding="utf-8")
    processes.barrier()
    return path


def load_checkpoint(
    path: str | Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    processes: Processes,
    projection: nn.Module | None = None,
) -> dict[str, Any]:
    """Restore everything that `save_checkpoint` saved, and return its `state`.

    Raises:
        UserError: the checkpoint is for another model, or for another number of processes.
    """
    path = Path(path)
    state = read_state(path)
    _load_weights(path / WEIGHTS, model, processes.device)
    if projection is not None:
        _load_weights(path / PROJECTION, projection, processes.device)
    _load_optimizer(path / OPTIMIZER, model, projection, optimizer, processes.device)
    _restore_rng(path / RNG, processes)
    return state


def load_weights(path: Path, model: nn.Module) -> None:
    """Load the weights of a checkpoint of the same run into `model`, in place.

    Raises:
        UserError: they are damaged, or are those of another model.
    """
    _load_weights(path / WEIGHTS, model, next(model.parameters()).device)


def check_form(path: Path, found: Any, expected: Any, name: str = "its state") -> None:
    """Check that a part of a checkpoint's state has the form that this run saves.

    Args:
        path: the checkpoint.
        found: the part, as read from JSON.
        expected: a value of the same types, keys and lengths. None stands for any value, an empty list for any list.
        name: of the part, for the message.

    Raises:
        UserError: it has another form.
    """
    if expected is None:
        return
    if type(found) is not type(expected):
        raise _misfit(path, f"{name} is of type {type(found).__name__}, not {type(expected).__name__}")
    if isinstance(expected, dict):
        for key, value in expected.items():
            if key not in found:
                raise _misfit(path, f"{name} has no {key!r}")
            check_form(path, found[key], value, f"{name}[{key!r}]")
    if isinstance(expected, list) and expected:
        if len(found) != len(expected):
            raise _misfit(path, f"{name} has {len(found)} entries, not {len(expected)}")
        for one, value in zip(found, expected, strict=True):
            check_form(path, one, value, f"an entry of {name}")


def _misfit(path: Path, why: str) -> UserError:
    return UserError(f"checkpoint {path} does not fit this run: {why}")


def _read_tensors(file: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    if not file.exists():
        raise _misfit(file.parent, f"it has no {file.name}")
    try:
        return load_file(file, device=str(device))
    except (SafetensorError, OSError) as error:
        raise UserError(f"checkpoint {file.parent} is damaged: {error}") from error


def read_state(path: str | Path) -> dict[str, Any]:
    """The `state` of a checkpoint.

    Raises:
        DamagedError: it is missing, or no JSON object.
    """
    file = Path(path) / STATE
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise atomic.DamagedError(f"{file} is missing or unreadable ({type(error).__name__})") from error
    if not isinstance(state, dict):
        raise atomic.DamagedError(f"{file} does not hold the state of a run")
    return state


def require_finite(
    step: int, model: nn.Module, optimizer: torch.optim.Optimizer, projection: nn.Module | None = None
) -> None:
    """Check every parameter and its optimizer state. Waits for the GPU.

    Raises:
        NonFiniteError: one is NaN or infinite.
    """
    for name, value in {**_parameters(model, projection), **_optimizer_tensors(model, projection, optimizer)}.items():
        if not torch.isfinite(value).all():
            raise NonFiniteError(f"{name} is NaN or infinite after update {step}")


def prune_checkpoints(folder: str | Path, keep_newest: int | None, best_step: int | None, step: int) -> None:
    """Delete all checkpoints but the newest `keep_newest` (None: all stay) and the best.

    Checkpoints after `step`, the current update, are not counted and stay: they are damaged, since this run started
    from an earlier one.
    """
    if keep_newest is None:
        return
    for path in [path for path in checkpoints_in(folder) if _step_of(path) <= step][:-keep_newest]:
        if path.name != f"checkpoint-{best_step}":
            remove_checkpoint(path)


def remove_checkpoint(path: Path) -> None:
    """Delete a checkpoint. One with files of the user is renamed instead, and no longer counts."""
    _keep_foreign(path)
    if path.exists():
        atomic.remove_folder(path)


def _named_checkpoints(folder: str | Path) -> list[Path]:
    """Folders that are named like checkpoints, in numeric order."""
    inside = Path(folder).iterdir() if Path(folder).is_dir() else ()
    return sorted((path for path in inside if _NAME.fullmatch(path.name) and path.is_dir()), key=_step_of)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _keep_foreign(path: Path) -> None:
    """Rename a file or folder at a checkpoint's place that may be the user's (not all of it is in a manifest)."""
    if not os.path.lexists(path) or atomic.is_ours(path, damaged_too=True):
        return
    kept = atomic.keep_beside(path, "not-verified")
    logger.warning("%s holds files that %s does not list; it is kept as %s", path, atomic.MANIFEST, kept.name)


def _load_weights(file: Path, model: nn.Module, device: torch.device) -> None:
    tensors, own = _read_tensors(file, device), model.state_dict()
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    wrong = {*tensors, *own} - (tensors.keys() & own.keys()) - tied
    wrong |= {name for name in tensors.keys() & own.keys() if tensors[name].shape != own[name].shape}
    if wrong:
        raise _misfit(file.parent, f"{len(wrong)} parameters differ, such as {min(wrong)}")
    model.load_state_dict(tensors, strict=False)
    if (standard := standard_parameters(model)) and (file.parent / STANDARD).is_file():
        exact = _read_tensors(file.parent / STANDARD, device)
        if {name: value.shape for name, value in exact.items()} != {n: value.shape for n, value in standard.items()}:
            raise _misfit(file.parent, f"its {STANDARD} holds other parameters")
        for name, value in standard.items():
            value.data.copy_(exact[name])


def _parameters(model: nn.Module, projection: nn.Module | None) -> dict[str, nn.Parameter]:
    beside = {} if projection is None else {f"companion.{name}": p for name, p in projection.named_parameters()}
    return {**dict(model.named_parameters()), **beside}


def _optimizer_tensors(
    model: nn.Module, projection: nn.Module | None, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    tensors = {}
    for name, parameter in _parameters(model, projection).items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}/{key}"] = value.contiguous()
    return tensors


def _load_optimizer(
    file: Path,
    model: nn.Module,
    projection: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
) -> None:
    parameters = _parameters(model, projection)
    optimizer.state.clear()
    for key, value in _read_tensors(file, device).items():
        name, _, entry = key.rpartition("/")
        if name not in parameters or (value.ndim and value.shape != parameters[name].shape):
            raise _misfit(file.parent, f"its {file.name} has {key}, which is not part of this run")
        optimizer.state[parameters[name]][entry] = value


def _own_rng(processes: Processes) -> dict[str, Tensor]:
    """Name -> random state of this process."""
    _, keys, position, has_gauss, gauss = np.random.get_state()
    version, internal, gauss_next = random.getstate()
    own = {
        "torch": torch.get_rng_state(),
        "numpy": torch.tensor([*keys.tolist(), position, has_gauss], dtype=torch.int64),
        "numpy_gauss": torch.tensor([gauss], dtype=torch.float64),
        "python": torch.tensor([version, *internal], dtype=torch.int64),
        "python_gauss": torch.tensor([float("nan") if gauss_next is None else gauss_next], dtype=torch.float64),
    }
    if processes.device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(processes.device)
    return own


def _gather_rng(processes: Processes) -> dict[str, Tensor]:
    gathered = {name: processes.gather(value[None]) for name, value in _own_rng(processes).items()}
    return {f"{rank}/{name}": part[0].clone() for name, parts in gathered.items() for rank, part in enumerate(parts)}


def _restore_rng(file: Path, processes: Processes) -> None:
    tensors, states = _read_tensors(file), {}
    for name, own in _own_rng(processes).items():
        state = tensors.get(f"{processes.rank}/{name}")
        if state is None or (state.shape, state.dtype) != (own.shape, own.dtype):
            raise _misfit(file.parent, f"its {file.name} has no state {name!r} of process {processes.rank}")
        states[name] = state
    *keys, position, has_gauss = states["numpy"].tolist()
    version, *internal = states["python"].tolist()
    next_gauss = states["python_gauss"].item()
    try:
        torch.set_rng_state(states["torch"])
        numbers = np.array(keys, dtype=np.uint32)
        np.random.set_state(("MT19937", numbers, position, has_gauss, states["numpy_gauss"].item()))
        random.setstate((version, tuple(internal), None if next_gauss != next_gauss else next_gauss))
    except (RuntimeError, ValueError, OverflowError) as error:  # these refuse numbers that are no state of theirs
        raise _misfit(file.parent, f"its {file.name} holds no random state ({error})") from error
    if processes.device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], processes.device)
