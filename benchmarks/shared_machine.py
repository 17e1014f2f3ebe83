"""Time of one training update while other processes use the cores, for several spin times of waiting threads.

python -m benchmarks.shared_machine --neighbours 0 1 2 --json shared_machine.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from benchmarks.arguments import parser
from emmental.command_line import leave_if, range_problems
from emmental.runs.threads import SPIN_COUNT

SETTINGS: dict[str, dict[str, str]] = {
    "as GNU OpenMP spins": {"GOMP_SPINCOUNT": "300000"},
    "10,000 turns": {"GOMP_SPINCOUNT": "10000"},
    "3,000 turns": {"GOMP_SPINCOUNT": "3000"},
    "1,000 turns": {"GOMP_SPINCOUNT": "1000"},
    "no spinning": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
"""Setting -> variables of the training process."""
OURS = next(name for name, variables in SETTINGS.items() if variables.get("GOMP_SPINCOUNT") == SPIN_COUNT)
"""The setting that the programs of this repository use."""


def build_parser() -> argparse.ArgumentParser:
    """The flags, with their defaults."""
    made = parser(__doc__.splitlines()[0])
    made.add_argument(
        "--neighbours", type=int, nargs="+", default=[0, 1, 2], help="busy processes beside the training"
    )
    made.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="what is compared")
    made.add_argument("--rounds", type=int, default=3, help="turns of each setting")
    made.add_argument("--updates", type=int, default=10, help="updates in a turn, after three untimed ones")
    made.add_argument("--layers", type=int, default=6, help="of the model")
    made.add_argument("--hidden", type=int, default=384, help="width of the model")
    made.add_argument("--batch", type=int, default=32, help="sentences in a batch")
    made.add_argument("--length", type=int, default=32, help="tokens in a sentence")
    made.add_argument("--as_worker", action="store_true", help=argparse.SUPPRESS)
    return made


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the table, write the JSON file, and return the numbers."""
    build = build_parser()
    args = build.parse_args(argv)
    least = dict.fromkeys(("rounds", "updates", "layers", "hidden", "batch", "length", "threads"), 1)
    problems = range_problems(args, least)
    problems += ["--neighbours accepts numbers from 0"] if min(args.neighbours) < 0 else []
    leave_if(problems, build.prog)
    if args.as_worker:
        print(json.dumps(_updates(args)))
        return {}
    from benchmarks.measurements import Spread, report, table

    times: dict[int, dict[str, list[float]]] = {}
    for count in args.neighbours:
        times[count] = {name: [] for name in args.settings}
        with _neighbours(count):
            for _ in range(args.rounds):
                for name in args.settings:
                    times[count][name] += _turn(args, SETTINGS[name])
    spreads = {n: {name: Spread.of(values) for name, values in inner.items()} for n, inner in times.items()}
    first = spreads[args.neighbours[0]][args.settings[0]].median
    rows = [
        [name, *(f"{spreads[n][name].text(digits=2)}, {spreads[n][name].median / first:.2f}" for n in args.neighbours)]
        for name in args.settings
    ]
    header = ["waiting threads", *(f"{n} busy neighbours: s an update, ratio" for n in args.neighbours)]
    return report(args, {"seconds": spreads, "ours": OURS}, table(header, rows))


@contextmanager
def _neighbours(count: int) -> Iterator[None]:
    program = f"import os\nwhile os.getppid() == {os.getpid()}: sum(range(10**5))"
    busy = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def _turn(args: argparse.Namespace, variables: dict[str, str]) -> list[float]:
    """Seconds of each update, in a new process: OpenMP reads its variables once, when it is loaded."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    variables = {"OMP_NUM_THREADS": str(args.threads)} | variables
    names = ("updates", "layers", "hidden", "batch", "length")
    flags = [f"--{name}={getattr(args, name)}" for name in names]
    command = [sys.executable, "-m", "benchmarks.shared_machine", "--as_worker", *flags]
    done = subprocess.run(command, env=inherited | variables, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _updates(args: argparse.Namespace) -> list[float]:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=max(1, args.hidden // 32),
        intermediate_size=4 * args.hidden,
    )
    model = BertForSequenceClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    tokens = torch.randint(1000, config.vocab_size, (args.batch, args.length))
    labels = torch.randint(0, 2, (args.batch,))
    seconds = []
    for _ in range(3 + args.updates):
        begin = time.perf_counter()
        model(input_ids=tokens, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - begin)
    return seconds[3:]


if __name__ == "__main__":
    main()
