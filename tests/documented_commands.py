"""Run every command and Python program of the README, docs/, benchmarks/ and CONTRIBUTING.md on small data.

PYTHONPATH=tests python -m documented_commands               all of them, in the order of the pages; minutes
PYTHONPATH=tests python -m documented_commands exports       those of the pages whose name has this word

They run in a new folder with the programs, tiny models and tiny tasks under the names of the pages. `CHANGED` makes
some shorter, `SKIPPED` says which are left out and why. The status is 1 if one fails.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import tiny
import tiny_lm
import torch
from transformers import BertForSequenceClassification

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks" / "README.md",
    ROOT / "CONTRIBUTING.md",
]
SKIPPED = {
    r"^pip install|^hf download": "asks the network for packages or data",
    r"^bash experiments/quickstart/run\.sh": "five minutes: run from a fresh clone",
    r"^bash experiments/cascade/run\.sh": "trains MiniLM: run from a fresh clone",
    r"^bash tests/run\.sh|documented_commands": "the tests themselves",
    r"^docker|^cp -r served server\.py Dockerfile": "needs Docker",
    r"^uvicorn|^curl|^export|^python -m http\.server": "a server: tests/test_docs_serve.py asks it",
    r"^mkdir transformers|^cp node_modules": "needs Node: tests/test_docs_serve.py runs it where it is",
    r"^from peft": "needs PEFT, which is not in requirements.txt",
}
"""Pattern of a command -> why it does not run here."""
CHANGED = {
    r"--nproc_per_node=8": "--nproc_per_node=2",
    r"(tickets\.csv --model_name_or_path FOLDER)": r"\1 --new_classifier",
    r"(--cascade --changed) 0.02": r"\1 0.2 --model_name_or_path FOLDER --new_classifier --output_dir outputs/ladder",
    r"(--num_train_epochs 0)": r"\1 --no-dense_first --output_dir outputs/other",
    r"(emmental\.export\.report .*)": r"\1 --seconds 0.01 --lengths 8 16",
    r"--student_config \S+": "--student_config student.json",
    r"(bash benchmarks/gpu\.sh)": r"\1 --device cpu --shapes tiny --updates 1 --batches 1 --turns 2 --compiled",
    r"(benchmarks\.train_step)": r"\1 --max_seq_length 16 --updates 1 --warmup 1 --phase_updates 1",
    r"(benchmarks\.masks)": r"\1 --layers 1 --hidden 64 --repeats 1",
    r"(benchmarks\.data)": r"\1 --repeats 1",
    r"(benchmarks\.scale)": r"\1 --examples 100 --lengths 8 --layers 1 --ranks 1 --rank_lines 100 --updates 1",
    r"(benchmarks\.shared_machine)": r"\1 --rounds 1 --updates 1 --layers 1 --hidden 64 --settings 'one thread'",
    r"(benchmarks\.inference.* )--length 32 128": r"\1--layers 1 --hidden 64 --seconds 0.01 --length 16",
    r"(benchmarks\.inference.* )--length 128": r"\1--layers 1 --hidden 64 --seconds 0.01 --length 16",
    r"outputs/sst-2/movement-10": "model",
}
"""Pattern -> what replaces it, to be short and to run on a CPU."""
PREAMBLE = """
from transformers import AutoModelForSequenceClassification, AutoTokenizer
model, tokenizer = AutoModelForSequenceClassification.from_pretrained("model"), AutoTokenizer.from_pretrained("model")
texts = open("texts.txt").read().splitlines()
"""
"""What the pages' short programs take for granted."""


class Documented(NamedTuple):
    """A command of a shell block, or a whole Python program.

    Attributes:
        page: name of the file, as seen from the repository.
        text: in one line if it is a command.
        is_program: whether it is Python.
    """

    page: str
    text: str
    is_program: bool = False


def documented() -> Iterator[Documented]:
    """All of them, in order; comments dropped, broken lines joined."""
    for page in PAGES:
        name = str(page.relative_to(ROOT))
        for language, block in re.findall(r"```(bash|python)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            if language == "python":
                yield Documented(name, block, is_program=True)
                continue
            for line in block.replace("\\\n", " ").splitlines():
                if command := re.sub(r"\s+#.*", "", line).strip():
                    yield Documented(name, re.sub(r"\s+", " ", command))


def reason_to_skip(text: str) -> str | None:
    """Why a command or program is left out; None if it is run."""
    return next((reason for pattern, reason in SKIPPED.items() if re.search(pattern, text)), None)


def changed(text: str) -> str:
    """The command as it is run."""
    for pattern, replacement in CHANGED.items():
        text = re.sub(pattern, replacement, text)
    return text


def make_world(folder: Path) -> None:
    """Write models, tasks and files under the names that the pages use."""
    for name in ("emmental", "experiments", "benchmarks", "tests", "docs", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    for program in ("masked_run_glue.py", "distiller.py", "visualizing_image.py"):
        (folder / program).symlink_to(ROOT / program)
    for name, task in (("MRPC", "mrpc"), ("SST-2", "sst-2"), ("MNLI", "mnli")):
        tiny.write_task(folder / "glue" / name, task, train=200, dev=60)
    tiny.save_bert(folder / "google-bert" / "bert-base-uncased")
    for name in ("FOLDER", "MODEL", "model", "dense"):
        fine_tuned(folder / name, "negative", "positive")
    tiny_lm.save_teacher(folder / "bert-base-uncased", "bert")
    (folder / "student.json").write_text(json.dumps(tiny_lm.config_of("distilbert", 2).to_dict()))
    draw = random.Random(0)
    rows = [(tiny.sentence(draw, index % 2), ("no", "yes")[index % 2]) for index in range(300)]
    (folder / "tickets.csv").write_text("\n".join(["sentence1,label", *map(",".join, rows)]) + "\n")
    (folder / "new.csv").write_text("\n".join(["sentence1", *(text for text, _ in rows[:9])]) + "\n")
    held_out = [(tiny.sentence(draw, index % 2), ("no", "yes")[index % 2]) for index in range(200)]
    (folder / "held-out.csv").write_text("\n".join(["sentence1,label", *map(",".join, held_out)]) + "\n")
    (folder / "pairs.tsv").write_text("sentence1\tsentence2\n" + f"{rows[0][0]}\t{rows[1][0]}\n")
    (folder / "texts.txt").write_text("\n".join(text for text, _ in rows) + "\n")
    (folder / "text.txt").write_text("\n".join(f"{a[0]} {b[0]}" for a, b in itertools.pairwise(rows)) + "\n")
    cv2.imwrite(str(folder / "photo.jpg"), np.full((60, 80, 3), 200, np.uint8))
    (folder / "boxes.json").write_text(json.dumps({"boxes": [[5, 5, 40, 40]]}))


def fine_tuned(folder: Path, *names: str) -> None:
    """Save a classifier with these classes whose head says that it was trained: its bias is not zero."""
    named = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    tiny.save_bert(folder, **named)
    model = BertForSequenceClassification.from_pretrained(folder)
    torch.nn.init.constant_(model.classifier.bias, 0.01)
    model.save_pretrained(folder)


def run(one: Documented, folder: Path) -> tuple[int, str]:
    """(exit status, last lines) of a command or program in the folder of `make_world`."""
    command = ["bash", "-c", changed(one.text)]
    if one.is_program:
        program = folder / "program.py"
        program.write_text(PREAMBLE + one.text, encoding="utf-8")
        command = [sys.executable, program.name]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    settings = {"PATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / "cache")}
    settings["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **settings}, capture_output=True, text=True, check=False, timeout=900
    )
    return done.returncode, "\n".join((done.stdout + done.stderr).splitlines()[-12:])


def main() -> int:
    """Run what the pages say, and print a line for each."""
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    failed = 0
    with tempfile.TemporaryDirectory() as place:
        make_world(Path(place))
        for one in documented():
            if word not in one.page:
                continue
            shown = f"{one.page}: {one.text.strip().splitlines()[0][:110]}"
            if reason := reason_to_skip(one.text):
                print(f"skipped     {shown} ({reason})", flush=True)
                continue
            start = time.perf_counter()
            status, said = run(one, Path(place))
            print(f"{'ran' if status == 0 else 'FAILED':6}{time.perf_counter() - start:4.0f} s {shown}", flush=True)
            if status != 0:
                failed += 1
                print(said, flush=True)
    print(f"{failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
