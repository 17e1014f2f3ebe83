"""Bar, log file and TensorBoard of a running training. Only the main process shows and writes them."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from emmental import atomic
from emmental.optional import is_there
from emmental.runs.output_folder import OutputFolder
from emmental.runs.threads import Pace

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)

LOG_FILE, TENSORBOARD = "train_log.jsonl", "tensorboard"


def configure_logging(is_main: bool) -> None:
    """Log lines with time, level and module. Ranks other than the main one log only warnings."""
    logging.basicConfig(
        level=logging.INFO if is_main else logging.WARNING,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
        stream=sys.stderr,
        force=True,
    )
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def duration(seconds: float) -> str:
    """A time as people say it, rounded to whole seconds: `2 min 05 s`."""
    return "{} min {:02d} s".format(*divmod(round(seconds), 60))


class Progress:
    """Bar, `train_log.jsonl` and TensorBoard of one training.

    The log file is the same for every run of one command, so it has no times: those go to TensorBoard. A resumed run
    cuts the file back to its checkpoint.

    Args:
        output: the run's folder; None in a process that does not write.
        total_updates: length of the bar.
        resumed_step: updates already made.
    """

    def __init__(self, output: OutputFolder | None, total_updates: int, resumed_step: int) -> None:
        self._writer: SummaryWriter | None = None
        self._log = None
        self._redirect = None
        self._pace = Pace()
        self._started, self._resumed_step = time.monotonic(), resumed_step
        if output is not None:
            output.record(LOG_FILE)
            keep_rows(output.path / LOG_FILE, resumed_step)
            self._log = open(output.path / LOG_FILE, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
            if is_there("TensorBoard"):
                self._writer = _writer(output, purge_step=resumed_step + 1)
                _record_events(output)
            self._redirect = logging_redirect_tqdm()
            self._redirect.__enter__()
        self._bar = tqdm(
            total=total_updates, initial=resumed_step, desc="Training", disable=output is None, dynamic_ncols=True
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._redirect is not None:
            self._redirect.__exit__(None, None, None)
        if self._writer is not None:
            self._writer.close()
        if self._log is not None:
            self._log.close()

    def advance(self) -> None:
        """Move the bar by one update."""
        self._bar.update(1)
        slow = self._pace.update()
        if slow and self._log is not None:
            logger.warning("%s", slow)

    def log(self, step: int, row: dict[str, Any]) -> None:
        """Write one row, flat or one level deep, under the number of updates. Its numbers go to TensorBoard too.

        The norm of float16 gradients that overflow is infinite, which JSON cannot hold: it is written as null.
        """
        if self._log is None:
            return
        self._log.write(json.dumps({"step": step, **_without_overflow(row)}, allow_nan=False) + "\n")
        self._log.flush()
        self.scalars(step, dict(_scalars(row)))
        made = step - self._resumed_step
        if made > 0:
            self.scalars(step, {"speed/updates_per_second": made / (time.monotonic() - self._started)})
        self._bar.set_postfix({name: f"{row[name]:.4g}" for name in ("loss", "threshold", "remaining") if name in row})

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Write numbers to TensorBoard only."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def picture(self, step: int, path: Path) -> None:
        """Show a PNG file in TensorBoard, under the file's name."""
        if self._writer is not None:
            _add_picture(self._writer, step, path)


def add_pictures(output: OutputFolder, step: int, paths: list[Path]) -> None:
    """Show the PNG files of a finished run in TensorBoard."""
    if not is_there("TensorBoard"):
        return
    with _writer(output, filename_suffix=".pictures") as writer:
        for path in paths:
            _add_picture(writer, step, path)
    _record_events(output)


def _writer(output: OutputFolder, **options: Any) -> SummaryWriter:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(output.path / TENSORBOARD), **options)


def _add_picture(writer: SummaryWriter, step: int, path: Path) -> None:
    import cv2

    image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    writer.add_image(f"{path.parent.name}/{path.stem}", image, step, dataformats="HWC")


def _record_events(output: OutputFolder) -> None:
    events = (output.path / TENSORBOARD).glob("events.out.*")
    output.adopt(*(str(file.relative_to(output.path)) for file in events))


def keep_rows(path: Path, last_step: int) -> None:
    """Cut a log file back to the rows up to `last_step`, without a half-written last row."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            if line.endswith("\n") and json.loads(line)["step"] <= last_step:
                kept.append(line)
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    atomic.write_text(path, "".join(kept))


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a log file; empty if there is no file. The program's log names damaged lines."""
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
        else:
            logger.warning("%s:%d is damaged and left out", path, number)
    return rows


def _without_overflow(row: dict[str, Any]) -> dict[str, Any]:
    norms = {name: norm if math.isfinite(norm) else None for name, norm in row.get("gradient_norms", {}).items()}
    return {**row, "gradient_norms": norms} if norms else row


def _scalars(row: dict[str, Any]) -> list[tuple[str, float]]:
    flat = []
    for name, value in row.items():
        if isinstance(value, dict):
            flat += [(f"{name}/{inner}", number) for inner, number in value.items()]
        elif isinstance(value, int | float):
            flat.append((f"train/{name}", value))
    return flat
