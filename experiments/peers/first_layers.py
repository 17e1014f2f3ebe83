"""Makes a model from a classifier's first layers: a simple way to a smaller model, for comparison.

python -m experiments.peers.first_layers MODEL LAYERS FOLDER
"""

from __future__ import annotations

import argparse
from pathlib import Path

from transformers import AutoModelForSequenceClassification, AutoTokenizer


def main() -> None:
    """Write the first layers of a BERT classifier, with its pooler and its head."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("model", type=Path, help="folder of a fine-tuned BERT classifier")
    parser.add_argument("layers", type=int, help="how many of its layers stay")
    parser.add_argument("folder", type=Path, help="where the smaller model goes")
    args = parser.parse_args()
    model = AutoModelForSequenceClassification.from_pretrained(args.model)
    model.bert.encoder.layer = model.bert.encoder.layer[: args.layers]
    model.config.num_hidden_layers = args.layers
    model.save_pretrained(args.folder)
    AutoTokenizer.from_pretrained(args.model).save_pretrained(args.folder)


if __name__ == "__main__":
    main()
