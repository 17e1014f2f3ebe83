"""Write the English sentences of SST-2, MRPC and RTE (train files), each once, one a line."""

from __future__ import annotations

import argparse
from pathlib import Path

from emmental import atomic
from emmental.tasks import read_split, resolve_task

FOLDERS = {"sst-2": "SST-2", "mrpc": "MRPC", "rte": "RTE"}


def main() -> None:
    """Read the train files and write the text."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--glue", type=Path, required=True, help="folder that holds SST-2, MRPC and RTE")
    parser.add_argument("--into", type=Path, required=True, help="text file to write")
    parser.add_argument("--lines", type=int, default=0, help="at most this many, evenly spread; 0: all")
    args = parser.parse_args()
    sentences: dict[str, None] = {}
    for task, folder in FOLDERS.items():
        split = read_split(resolve_task(task), args.glue / folder, "train")
        for sentence in (*split.texts_a, *(split.texts_b or ())):
            sentences[" ".join(sentence.split())] = None
    chosen = list(sentences)
    if 0 < args.lines < len(chosen):
        chosen = [chosen[index * len(chosen) // args.lines] for index in range(args.lines)]
    atomic.write_text(args.into, "".join(f"{sentence}\n" for sentence in chosen))
    print(f"{args.into}: {len(chosen)} sentences")


if __name__ == "__main__":
    main()
