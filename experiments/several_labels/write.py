"""Write GoEmotions as own files with bars between the labels of a row.

python -m experiments.several_labels.write --data_dir heads --rows 6000 --output outputs/several_labels
"""

from __future__ import annotations

import argparse
from pathlib import Path


def rows(folder: Path, split: str, most: int) -> list[str]:
    """Lines of text, tab, names of emotions with bars between; the header is the first."""
    names = (folder / "emotions.txt").read_text(encoding="utf-8").split()
    lines = ["sentence1\tlabel"]
    for line in (folder / f"{split}.tsv").read_text(encoding="utf-8").split("\n")[:most]:
        if line:
            text, ids, _ = line.split("\t")
            lines.append(f"{text}\t{'|'.join(names[int(one)] for one in ids.split(','))}")
    return lines


def main() -> None:
    """Write `train.tsv` and `dev.tsv`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", type=Path, default=Path("../shared/data/heads"))
    parser.add_argument("--rows", type=int, default=6000, help="of the training data")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    for split, most in (("train", args.rows), ("dev", 2000)):
        lines = rows(args.data_dir / "goemotions", split, most)
        (args.output / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
