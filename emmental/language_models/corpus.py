"""Corpora for language models: token ids of a text file on the disk, read through a memory map.

python -m emmental.data.corpus binarize --file_path text.txt --model_name_or_path bert-base-uncased --output corpus

A corpus is a folder made by `emmental.atomic`: `tokens.bin`, all sequences one after the other with their special
tokens; `starts.bin` and `lengths.bin`, where each sequence lies, in the order of the corpus; `counts.bin`, how often
each token occurs; and `corpus.json`, which describes them. Nothing in it is ever executed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Encoding
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import PreTrainedTokenizerBase

from emmental.atomic import DamagedError, atomic_folder, refuse_losing, sha256_of
from emmental.command_line import OneLineParser, leave_if, range_problems, user_mistakes
from emmental.data.batching import RowBatch
from emmental.data.padding import pad_rows
from emmental.data.tokenization import load_tokenizer, plain_text_backend, vocabulary_fingerprint
from emmental.errors import UserError
from emmental.runs.progress import configure_logging

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
_TOKENS, _STARTS, _LENGTHS, _COUNTS, _DESCRIPTION = (
    "tokens.bin",
    "starts.bin",
    "lengths.bin",
    "counts.bin",
    "corpus.json",
)
_LINES, _BYTES = 4096, 4_000_000
"""Text is tokenised in chunks: at most this number of lines, and no further line after this number of bytes."""
_LONGEST_LINE = 64_000_000
_UNLIMITED = 1_000_000


class CorpusDataset(Dataset):
    """Sequences of token ids, special tokens included.

    Args:
        folder: a corpus made by `binarize`; it is mapped, not read.

    Attributes:
        lengths: (N,) int32, tokens of each sequence.
        token_counts: (V,) int64, occurrences of each token id in the corpus; None if they were not counted.
        description: content of `corpus.json`.
        pad_token_id: the token that pads batches.

    Raises:
        DamagedError: the folder is not a corpus of this version, or its files contradict each other.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        self.description = _read_description(folder)
        sequences, tokens = self.description["sequences"], self.description["tokens"]
        self._tokens = _mapped(folder / _TOKENS, self.description["dtype"], tokens)
        self._starts = _mapped(folder / _STARTS, "<i8", sequences)
        self.lengths = _mapped(folder / _LENGTHS, "<i4", sequences)
        self.token_counts: np.ndarray | None = _mapped(folder / _COUNTS, "<i8", self.description["vocabulary"])
        self.pad_token_id = 0
        if sequences and (
            self._starts.min() < 0 or self.lengths.min() < 1 or (self._starts > tokens - self.lengths).any()
        ):
            raise DamagedError(f"{folder} holds sequences outside its tokens")
        if sequences and self.lengths.max() != self.description["longest"]:
            raise DamagedError(f"{folder}: the longest sequence is not as long as {_DESCRIPTION} says")

    def check_tokens(self) -> None:
        """Check every token.

        Raises:
            DamagedError: one is not in the vocabulary of the corpus.
        """
        vocabulary = self.description["vocabulary"]
        if len(self._tokens) and not (self._tokens.min() >= 0 and self._tokens.max() < vocabulary):
            raise DamagedError(f"the corpus has tokens outside its vocabulary of {vocabulary}")

    @classmethod
    def from_sequences(cls, sequences: Sequence[Any]) -> CorpusDataset:
        """A corpus in memory.

        Args:
            sequences: each is token ids, (T,) integers, or a pair of token ids and their number.
        """
        rows = [_token_ids(sequences[row]) for row in range(len(sequences))]
        corpus = cls.__new__(cls)
        corpus.lengths = np.array([len(row) for row in rows], dtype=np.int32)
        corpus._starts = np.cumsum(corpus.lengths, dtype=np.int64) - corpus.lengths
        corpus._tokens = np.concatenate(rows) if rows else np.zeros(0, np.int64)
        corpus.token_counts, corpus.description, corpus.pad_token_id = None, {}, 0
        return corpus

    @property
    def fingerprint(self) -> str | None:
        """SHA-256 of the tokens and their order; only a corpus on the disk has it."""
        return self.description.get("fingerprint")

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> np.ndarray:
        """One sequence, (T,) int64."""
        row = range(len(self))[row]
        return self._tokens[self._starts[row] : self._starts[row] + self.lengths[row]].astype(np.int64)

    def __getitems__(self, rows: RowBatch | Sequence[int]) -> dict[str, Tensor]:
        """A batch, padded on the right: `input_ids` (B, T), `lengths` (B,), and `index` (B,), the rows; all int64."""
        indices = np.asarray(rows.indices if isinstance(rows, RowBatch) else rows, dtype=np.int64)
        lengths = self.lengths[indices].astype(np.int64)
        ids, _ = pad_rows(self._tokens, self._starts[indices], lengths, self.pad_token_id)
        return {
            "input_ids": torch.from_numpy(ids),
            "lengths": torch.from_numpy(lengths),
            "index": torch.from_numpy(indices),
        }


@dataclass
class BinarizeReport:
    """Counts of what `binarize` did with a text.

    Attributes:
        lines: of the text; empty: those without a character; split: those cut into several sequences.
        sequences, tokens: kept.
        too_short, unknown: sequences dropped, for their length and for their unknown tokens.
    """

    lines: int = 0
    empty: int = 0
    split: int = 0
    sequences: int = 0
    tokens: int = 0
    too_short: int = 0
    unknown: int = 0


@dataclass(frozen=True)
class SequenceRules:
    """Rules that make sequences from the tokens of a line.

    Attributes:
        begin, end: ids of the special tokens around every sequence.
        unknown_id: id of the unknown token; None when there is none.
        min_length, max_length: tokens of a sequence, special ones included.
        max_unknown: a sequence with this share of unknown tokens, or more, is dropped.
    """

    begin: int
    end: int
    unknown_id: int | None
    min_length: int
    max_length: int
    max_unknown: float

    def sequences(self, ids: list[int], report: BinarizeReport) -> Iterator[list[int]]:
        """Cut the tokens of a line into sequences that fit, add special tokens, and drop short and unknown ones."""
        room = self.max_length - 2
        report.split += len(ids) > room
        for start in range(0, len(ids), room):
            piece = ids[start : start + room]
            if len(piece) + 2 < self.min_length:
                report.too_short += 1
            elif self.unknown_id is not None and piece.count(self.unknown_id) >= self.max_unknown * len(piece):
                report.unknown += 1
            else:
                yield [self.begin, *piece, self.end]


def sequence_rules(
    tokenizer: PreTrainedTokenizerBase, min_length: int = 12, max_length: int | None = None, max_unknown: float = 0.5
) -> SequenceRules:
    """The rules for a tokenizer: `cls` and `sep` around a sequence, or `bos` and `eos` if those are missing.

    Raises:
        UserError: the tokenizer has no such tokens, or the lengths leave no room.
    """
    begin = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    end = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    if begin is None or end is None:
        raise UserError(
            f"--model_name_or_path {tokenizer.name_or_path} has neither cls and sep nor bos and eos tokens"
        )
    longest = min(max_length or tokenizer.model_max_length, tokenizer.model_max_length)
    if longest > _UNLIMITED:
        raise UserError(f"--max_length is required: --model_name_or_path {tokenizer.name_or_path} does not record one")
    if max_length is not None and max_length > longest:
        raise UserError(f"--max_length accepts up to {longest}, what the tokenizer's model takes, not {max_length}")
    if not 3 <= min_length <= longest:
        raise UserError(f"--min_length accepts 3 up to the --max_length {longest}, not {min_length}")
    return SequenceRules(begin, end, tokenizer.unk_token_id, min_length, longest, max_unknown)


def binarize(
    file_path: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    dump_file: str | Path,
    rules: SequenceRules | None = None,
    seed: int | None = 56,
    show_progress: bool = True,
) -> BinarizeReport:
    """Tokenise a text, one sequence a line, into a corpus folder. The text is read in chunks.

    The seed shuffles the order of the corpus. Memory grows only by 24 bytes for each sequence.

    Args:
        file_path: UTF-8 text; only the newline character ends a line.
        tokenizer: a fast one; special tokens in the text are tokenised as text.
        dump_file: the folder to make. An existing corpus is replaced when the new one is complete.
        rules: how lines become sequences; by default `sequence_rules(tokenizer)`.
        seed: seed of the order; None keeps the order of the text.
        show_progress: show a bar.

    Raises:
        UserError: the text is not UTF-8, has a line of more than 64 MB, or gives no sequence; it cannot be read, or
            the corpus not written.
    """
    try:
        open(file_path, "rb").close()
    except OSError as error:
        raise UserError(f"--file_path {file_path} cannot be read: {error.strerror}") from error
    rules = rules or sequence_rules(tokenizer)
    report = BinarizeReport()
    vocabulary = len(tokenizer)
    dtype = "<u2" if vocabulary <= 2**16 else "<i4"
    with atomic_folder(dump_file) as folder:
        counts = _write_tokens(Path(file_path), tokenizer, rules, folder, np.dtype(dtype), report, show_progress)
        if not report.sequences:
            raise UserError(
                f"--file_path {file_path} leaves no sequence: of {report.lines} lines {report.empty} are empty, "
                f"{report.too_short} sequences are shorter than --min_length {rules.min_length}, {report.unknown} "
                "consist of unknown tokens"
            )
        counts.astype("<i8").tofile(folder / _COUNTS)
        _write_order(folder, seed)
        description = {
            "version": FORMAT_VERSION,
            "dtype": dtype,
            "vocabulary": vocabulary,
            "tokenizer": vocabulary_fingerprint(tokenizer),
            "longest": int(np.fromfile(folder / _LENGTHS, "<i4").max()),
            "seed": seed,
            "rules": asdict(rules),
            "fingerprint": sha256_of(folder / _TOKENS)[:32] + sha256_of(folder / _STARTS)[:32],
            **asdict(report),
        }
        (folder / _DESCRIPTION).write_text(json.dumps(description, indent=1), encoding="utf-8")
    return report


def _write_tokens(
    text: Path,
    tokenizer: PreTrainedTokenizerBase,
    rules: SequenceRules,
    folder: Path,
    dtype: np.dtype,
    report: BinarizeReport,
    show_progress: bool,
) -> np.ndarray:
    """Write `tokens.bin` and, in the order of the text, `lengths.bin`; returns the count of each token, (V,) int64."""
    backend = plain_text_backend(tokenizer)
    counts = np.zeros(len(tokenizer), dtype=np.int64)
    with ExitStack() as stack:
        tokens = stack.enter_context(open(folder / _TOKENS, "wb"))
        lengths = stack.enter_context(open(folder / _LENGTHS, "wb"))
        size = text.stat().st_size
        bar = stack.enter_context(
            tqdm(total=size, unit="B", unit_scale=True, desc="Tokenizing", disable=not show_progress)
        )
        for lines in _chunks(text, report, bar):
            encodings = backend.encode_batch_fast(lines, add_special_tokens=False)
            rows = list(_sequences(encodings, rules, report))
            flat = np.fromiter(itertools.chain.from_iterable(rows), dtype, sum(map(len, rows)))
            flat.tofile(tokens)
            np.fromiter(map(len, rows), "<i4", len(rows)).tofile(lengths)
            counts += np.bincount(flat, minlength=len(counts))
            report.sequences += len(rows)
            report.tokens += len(flat)
    return counts


def _sequences(encodings: list[Encoding], rules: SequenceRules, report: BinarizeReport) -> Iterator[list[int]]:
    for encoding in encodings:
        yield from rules.sequences(encoding.ids, report)


def _chunks(text: Path, report: BinarizeReport, bar: tqdm) -> Iterator[list[str]]:
    """Chunks of lines that are not empty."""
    chunk: list[str] = []
    size = 0
    with open(text, "rb") as file:
        for number, raw in enumerate(iter(lambda: file.readline(_LONGEST_LINE), b""), 1):
            if len(raw) == _LONGEST_LINE:
                raise UserError(f"{text}:{number}: longer than {_LONGEST_LINE} bytes; put one sequence on a line")
            try:
                line = raw.decode("utf-8").strip()
            except UnicodeDecodeError as error:
                raise UserError(f"{text}:{number}: not UTF-8 ({error.reason}, byte {error.start})") from error
            report.lines += 1
            size += len(raw)
            if line:
                chunk.append(line)
            else:
                report.empty += 1
            if len(chunk) == _LINES or size >= _BYTES:
                yield chunk
                bar.update(size)
                chunk, size = [], 0
    if chunk:
        yield chunk
    bar.update(size)


def _write_order(folder: Path, seed: int | None) -> None:
    """Write `starts.bin`, and write `lengths.bin` again, in a shuffled order."""
    lengths = np.fromfile(folder / _LENGTHS, "<i4")
    starts = np.cumsum(lengths, dtype="<i8")
    starts -= lengths
    if seed is not None:
        order = np.random.Generator(np.random.PCG64(seed)).permutation(len(lengths))
        starts, lengths = starts[order], lengths[order]
    starts.tofile(folder / _STARTS)
    lengths.tofile(folder / _LENGTHS)


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / _DESCRIPTION
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        numbers = [description[name] for name in ("sequences", "tokens", "vocabulary", "longest")]
        if not isinstance(description["tokenizer"], str):
            raise TypeError("tokenizer")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(f"{folder} is not a corpus: {_DESCRIPTION} is missing or unreadable") from error
    sound = all(type(number) is int and number >= 0 for number in numbers) and description.get("dtype") in (
        "<u2",
        "<i4",
    )
    if description.get("version") != FORMAT_VERSION or not sound:
        raise DamagedError(f"{path} does not describe a corpus of version {FORMAT_VERSION}")
    return description


def _mapped(path: Path, dtype: str, size: int) -> np.ndarray:
    if not path.is_file() or path.stat().st_size != size * np.dtype(dtype).itemsize:
        raise DamagedError(f"{path} is missing, or does not have the size that {_DESCRIPTION} gives")
    return np.memmap(path, dtype, "r", shape=(size,)) if size else np.zeros(0, dtype)


def _token_ids(sequence: Any) -> np.ndarray:
    if isinstance(sequence, tuple):
        sequence = sequence[0]
    return np.asarray(sequence, dtype=np.int64).reshape(-1)


def build_parser() -> OneLineParser:
    """Flags of `python -m emmental.data.corpus`."""
    parser = OneLineParser("Prepare text for language-model distillation.", "python -m emmental.data.corpus")
    parser.add_argument("command", choices=("binarize",), help="binarize: a text file becomes a tokenised corpus")
    parser.add_argument("--file_path", required=True, help="UTF-8 text, one sequence a line")
    parser.add_argument(
        "--model_name_or_path",
        "--tokenizer",
        dest="model_name_or_path",
        required=True,
        help="the teacher, whose tokenizer is used: folder or Hub name",
    )
    parser.add_argument("--output", "--dump_file", dest="output", required=True, help="folder to write the corpus to")
    parser.add_argument("--min_length", type=int, default=12, help="drop shorter sequences (tokens, special ones too)")
    parser.add_argument(
        "--max_length", type=int, help="split longer sequences; default: what the tokenizer's model takes"
    )
    parser.add_argument(
        "--max_unknown", type=float, default=0.5, help="drop sequences with this share of unknown tokens or more"
    )
    parser.add_argument(
        "--shuffle",
        action=argparse.BooleanOptionalAction,
        help="order the sequences by --seed; else as in the text",
        default=True,
    )
    parser.add_argument("--seed", type=int, default=56, help="seed of the order")
    return parser


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = build_parser()
    args = parser.parse_args(argv)
    problems = range_problems(args, {"min_length": 3, "max_length": 3, "seed": 0}, ("max_unknown",))
    if args.max_unknown > 1:
        problems.append(f"--max_unknown is a share of the tokens, up to 1, not {args.max_unknown}")
    leave_if(problems, parser.prog)
    return args


def main(argv: Sequence[str] | None = None) -> BinarizeReport:
    """Run the command line `argv` (default: the process')."""
    args = _parse(argv)
    configure_logging(is_main=True)
    with user_mistakes(), logging_redirect_tqdm():
        read = {"--file_path": args.file_path, "--model_name_or_path": args.model_name_or_path}
        refuse_losing(read, [args.output], f"--output {args.output}")
        tokenizer = load_tokenizer(args.model_name_or_path)
        rules = sequence_rules(tokenizer, args.min_length, args.max_length, args.max_unknown)
        report = binarize(args.file_path, tokenizer, args.output, rules, args.seed if args.shuffle else None)
    logger.info(
        "%s: %d sequences, %d tokens of %d lines (%d empty, %d split into several); dropped %d shorter than %d tokens "
        "and %d of unknown tokens",
        args.output,
        report.sequences,
        report.tokens,
        report.lines,
        report.empty,
        report.split,
        report.too_short,
        rules.min_length,
        report.unknown,
    )
    return report


if __name__ == "__main__":
    main()
