"""The log file, TensorBoard and what a resumed run keeps of them."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from emmental.runs.output_folder import OutputFolder
from emmental.runs.progress import (
    LOG_FILE,
    TENSORBOARD,
    Progress,
    add_pictures,
    configure_logging,
    duration,
    keep_rows,
    read_log,
)
from emmental.runs.threads import Pace


@pytest.fixture
def output(tmp_path: Path):
    folder = OutputFolder(tmp_path / "out")
    yield folder
    folder.close()


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "0 min 00 s"), (59.4, "0 min 59 s"), (59.6, "1 min 00 s"), (119.7, "2 min 00 s"), (3725.0, "62 min 05 s")],
)
def test_a_duration_has_no_60_seconds(seconds, said):
    assert duration(seconds) == said


def row(step: int, **values: object) -> str:
    return json.dumps({"step": step, **values}) + "\n"


def steps(path: Path) -> list[int]:
    return [entry["step"] for entry in read_log(path)]


class TestKeepRows:
    def test_up_to_the_checkpoint(self, tmp_path):
        path = tmp_path / "log"
        path.write_text(row(2, loss=0.5) + row(4, loss=0.25) + row(4, eval={"acc": 1.0}) + row(6))
        keep_rows(path, 4)
        assert path.read_text() == row(2, loss=0.5) + row(4, loss=0.25) + row(4, eval={"acc": 1.0})
        keep_rows(path, 0)
        assert path.read_text() == ""

    @pytest.mark.parametrize(
        "tail", ['{"step": 3, "lo', '{"step": 3}', '{"loss": 1}\n', "[3]\n", "null\n", '{"step": "3"}\n', "\x00\x00\n"]
    )
    def test_a_half_written_or_foreign_row_goes(self, tmp_path, tail):
        path = tmp_path / "log"
        path.write_text(row(1) + tail + ("" if not tail.endswith("\n") else row(2)))
        keep_rows(path, 5)
        assert steps(path) == ([1, 2] if tail.endswith("\n") else [1])

    def test_broken_encoding_goes(self, tmp_path):
        path = tmp_path / "log"
        path.write_bytes(row(1).encode() + b"\xff\xfe\n")
        keep_rows(path, 5)
        assert steps(path) == [1]

    def test_no_file_stays_no_file(self, tmp_path):
        keep_rows(tmp_path / "log", 5)
        assert not (tmp_path / "log").exists()
        assert read_log(tmp_path / "log") == []


class TestProgress:
    def test_rows_reach_the_file_at_once_and_tensorboard(self, output):
        with Progress(output, 10, 0) as progress:
            progress.advance()
            progress.log(1, {"loss": 0.5, "losses": {"ce": 0.25}, "churn": None, "note": "text"})
            assert read_log(output.path / LOG_FILE) == [
                {"step": 1, "loss": 0.5, "losses": {"ce": 0.25}, "churn": None, "note": "text"}
            ]
            progress.scalars(1, {"remaining/0": 15.0})
        events = EventAccumulator(str(output.path / TENSORBOARD)).Reload()
        scalars = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]}
        speed = scalars.pop("speed/updates_per_second")
        assert scalars == {"train/loss": 0.5, "losses/ce": 0.25, "remaining/0": 15.0}
        assert speed > 0

    def test_everything_it_writes_is_recorded(self, output):
        with Progress(output, 10, 0) as progress:
            progress.log(1, {"loss": 0.5})
        output.start_afresh()
        assert {path.name for path in output.path.iterdir()} == {".emmental.lock"}

    def test_nan_is_no_json(self, output):
        with Progress(output, 10, 0) as progress, pytest.raises(ValueError, match="JSON"):
            progress.log(1, {"loss": float("nan")})
        assert read_log(output.path / LOG_FILE) == []

    def test_norms_of_overflowing_gradients_are_null(self, output):
        with Progress(output, 10, 0) as progress:
            progress.log(1, {"loss": 0.5, "gradient_norms": {"weights": float("inf"), "undecayed": 2.0}})
        assert read_log(output.path / LOG_FILE)[0]["gradient_norms"] == {"weights": None, "undecayed": 2.0}

    def test_damaged_rows_are_named_and_left_out(self, tmp_path, caplog):
        path = tmp_path / LOG_FILE
        path.write_text(row(1) + "[" * 100_000 + "\n[1]\n" + row(2))
        assert steps(path) == [1, 2]
        assert [record.args[1] for record in caplog.records] == [2, 3]

    def test_a_resumed_run_continues_from_its_checkpoint(self, output):
        with Progress(output, 10, 0) as progress:
            for step in (2, 4, 6):
                progress.log(step, {"loss": float(step)})
        with Progress(output, 10, 4) as progress:
            progress.log(6, {"loss": 60.0})
        assert [(entry["step"], entry["loss"]) for entry in read_log(output.path / LOG_FILE)] == [
            (2, 2.0),
            (4, 4.0),
            (6, 60.0),
        ]

    def test_pictures(self, output):
        import cv2

        picture = np.zeros((4, 6, 3), np.uint8)
        picture[:, :, 2] = 255  # red, as OpenCV orders channels
        cv2.imwrite(str(output.path / "a.png"), picture)
        with Progress(output, 10, 0) as progress:
            progress.picture(3, output.path / "a.png")
        add_pictures(output, 9, [output.path / "a.png"])
        # Read file by file: names of files of one second sort as words, "10" before "9".
        readers = [EventAccumulator(str(file)).Reload() for file in (output.path / TENSORBOARD).iterdir()]
        images = [image for reader in readers for image in reader.Images(f"{output.path.name}/a")]
        assert sorted(image.step for image in images) == [3, 9]
        for event in images:
            shown = cv2.imdecode(np.frombuffer(event.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
            assert np.array_equal(shown, picture)
        recorded = json.loads((output.path / ".emmental.json").read_text())["written"]
        assert {f"{TENSORBOARD}/{file.name}" for file in (output.path / TENSORBOARD).iterdir()} <= set(recorded)

    def test_other_processes_write_nothing(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with Progress(None, 10, 0) as progress:
            progress.advance()
            progress.log(1, {"loss": 0.5})
            progress.scalars(1, {"a": 1.0})
            progress.picture(1, tmp_path / "missing.png")
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("is_main", "level"), [(True, logging.INFO), (False, logging.WARNING)])
def test_log_lines_have_time_level_and_module(monkeypatch, is_main, level):
    asked = {}
    monkeypatch.setattr(logging, "basicConfig", lambda **options: asked.update(options))
    configure_logging(is_main)
    assert asked["level"] == level
    assert asked["stream"] is sys.stderr
    record = logging.LogRecord("masked_run_glue", logging.INFO, "file", 1, "loss %g", (0.5,), None)
    record.created, record.msecs = 0.0, 0.0
    line = logging.Formatter(asked["format"], asked["datefmt"]).format(record)
    assert line.endswith("INFO    masked_run_glue: loss 0.5")
    assert len(line.split()[0]) == len("1970-01-01")


def test_a_run_that_slows_down_is_told_of(tmp_path, monkeypatch, caplog):
    lines = iter([None, "updates take 2.00 s now"])
    monkeypatch.setattr(Pace, "update", lambda self: next(lines))
    with caplog.at_level(logging.WARNING, "emmental"), Progress(OutputFolder(tmp_path), 2, 0) as progress:
        progress.advance()
        progress.advance()
    assert [record.getMessage() for record in caplog.records] == ["updates take 2.00 s now"]
