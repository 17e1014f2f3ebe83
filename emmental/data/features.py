"""Token ids of a split: made once, cached under a key of their content, and mapped into memory.

A cache is a folder with one safetensors file, which holds all rows one after the other without padding, and the
manifest of `emmental.atomic`. Its key covers all that the token ids depend on, so an outdated cache is not used.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tokenizers import Encoding, Tokenizer
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from emmental.atomic import MANIFEST, DamagedError, atomic_folder, read_manifest, sha256_of, unclaimed, verify_folder
from emmental.data.batching import RowBatch
from emmental.data.padding import pad_rows
from emmental.data.tokenization import plain_text_backend
from emmental.data.unknown_tokens import UnknownCounter, UnknownTokens
from emmental.errors import UserError
from emmental.tasks.examples import located, read_split
from emmental.tasks.task import Split, Task

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2
FEATURES_FILE = "features.safetensors"
_CHUNK = 2048
_BLANK = ("", "nan", "none", "null", "<na>", "n/a", "#n/a")
"""How programs write a text that is missing, in lower case."""
_NEWER = {"set_aside_up_to": None, "thousands": "", "held_back_from": None, "form": None}
"""Settings of a layout that older caches lack, with what these had. Their fingerprints leave them out."""


class FeatureDataset(Dataset):
    """The rows of one split, read from a memory-mapped file that all processes of a machine share.

    A batch is made as a whole (by `batch`, or `__getitems__` for a `DataLoader`): its rows are copied out of the map
    and padded to the longest. Worker processes get the path and map the file themselves.

    Attributes:
        cut: how many texts were longer than `max_seq_length`.
        longest: tokens of the longest text before it was cut, special ones included.
        blank: how many texts (of a pair: either) are empty, or a word for a missing value.
        known: (N,) bool, whether a row is also a training row, where `mark_known_rows` was called.
        notes: for the user, on how the files were read.
        unknown: what the tokenizer does not know of the texts.
        for_teacher: the same rows with the tokens of the teacher, if those are others.

    Args:
        folder: a cache folder made by `load_features`.

    Raises:
        DamagedError: the file is missing, is not a features file of this version, or contradicts itself.
    """

    for_teacher: FeatureDataset | None = None

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.pad_to_multiple_of = 1
        tensors, metadata = _open(self.folder / FEATURES_FILE)
        self.fingerprint = metadata["fingerprint"]
        self.pad_token_id = int(metadata["pad_token_id"])
        self.labels: np.ndarray | None = tensors.get("labels")
        self.cut, self.longest = int(metadata.get("cut", 0)), int(metadata.get("longest", 0))
        self.blank = int(metadata["blank"]) if metadata.get("blank", "").isdecimal() else None  # None: an older cache
        self.known: np.ndarray | None = None
        self.notes: list[str] = json.loads(metadata.get("notes", "[]"))
        self.unknown = _unknown_tokens(metadata["unknown"], self.folder) if "unknown" in metadata else None  # as blank
        self._input_ids = tensors["input_ids"]  # (total,) int32
        self._offsets = tensors["offsets"]  # (N + 1,) int64
        self._boundaries = tensors["boundaries"]  # (N,) int32: how many tokens of a row have type 0
        self._index_text = tensors["index_text"]  # UTF-8 bytes, one name a line
        self.lengths: np.ndarray = np.diff(self._offsets).astype(np.int32)

    def __len__(self) -> int:
        return len(self.lengths)

    def __reduce__(self) -> tuple:
        return _reopened, (str(self.folder), self.pad_to_multiple_of)

    @property
    def indices(self) -> list[str]:
        """The examples' names for a prediction file, in the order of the rows."""
        return self._index_text.tobytes().decode("utf-8").split("\n")

    def token_counts(self, rows: np.ndarray | None = None) -> Counter[int]:
        """Id -> how often these rows (default: all) use it, special tokens included."""
        ids = self._input_ids
        if rows is not None:
            ids = np.concatenate([ids[self._offsets[row] : self._offsets[row + 1]] for row in rows])
        found, counts = np.unique(ids, return_counts=True)
        return Counter(dict(zip(found.tolist(), counts.tolist(), strict=True)))

    def mark_known_rows(self, training: FeatureDataset) -> None:
        """Set `known`: the rows whose tokens, to the last one that the model reads, are those of a training row."""
        rows = [self._key(row) for row in range(len(self))]
        wanted = set(rows)
        found = {key for row in range(len(training)) if (key := training._key(row)) in wanted}
        self.known = np.array([key in found for key in rows], dtype=bool)

    def _key(self, row: int) -> tuple[int, bytes]:
        return int(self._boundaries[row]), self._input_ids[self._offsets[row] : self._offsets[row + 1]].tobytes()

    def __getitem__(self, row: int) -> dict[str, object]:
        """One row: `input_ids` (T,) int32, `token_type_ids` (T,) int8, `index`, and `label` where it is known."""
        row = range(len(self))[row]
        input_ids = np.array(self._input_ids[self._offsets[row] : self._offsets[row + 1]])
        token_type_ids = (np.arange(len(input_ids)) >= self._boundaries[row]).astype(np.int8)
        features: dict[str, object] = {"input_ids": input_ids, "token_type_ids": token_type_ids, "index": row}
        if self.labels is not None:
            features["label"] = self.labels[row].tolist()
        return features

    def __getitems__(self, rows: RowBatch | Sequence[int]) -> dict[str, torch.Tensor]:
        """Called by a `DataLoader` with a batch of its sampler."""
        if isinstance(rows, RowBatch):
            return self.batch(rows.indices, rows.weights, self.pad_to_multiple_of)
        return self.batch(rows, pad_to_multiple_of=self.pad_to_multiple_of)

    def batch(
        self, indices: Sequence[int] | np.ndarray, weights: np.ndarray | None = None, pad_to_multiple_of: int = 1
    ) -> dict[str, torch.Tensor]:
        """Rows padded on the right to the longest of them.

        Args:
            indices: (B,) positions in the dataset.
            weights: (B,) float; default: 1 for every row.
            pad_to_multiple_of: T is rounded up to a multiple of it.

        Returns:
            `input_ids`, `attention_mask`, `token_type_ids` (B, T) int64; `labels` (B,) int64, (B,) float32 for scores,
            (B, L) float32 for several labels, absent if they are unknown; `index` (B,) int64; `weights` (B,) float32.
        """
        rows = np.asarray(indices, dtype=np.int64)
        starts, lengths = self._offsets[:-1][rows], self.lengths[rows]
        padded, attended = pad_rows(self._input_ids, starts, lengths, self.pad_token_id, pad_to_multiple_of)
        types = attended & (np.arange(padded.shape[1]) >= self._boundaries[rows][:, None])
        arrays = {"input_ids": padded, "attention_mask": attended, "token_type_ids": types}
        batch = {name: torch.from_numpy(array.astype(np.int64)) for name, array in arrays.items()}
        batch["index"] = torch.from_numpy(rows)
        batch["weights"] = torch.ones(len(rows)) if weights is None else torch.tensor(weights, dtype=torch.float32)
        if self.labels is not None:
            batch["labels"] = torch.from_numpy(self.labels[rows])
        return batch


def batch_loader(
    dataset: FeatureDataset, batches: Sampler[RowBatch], num_workers: int = 0, pin_memory: bool = False
) -> DataLoader:
    """A loader of ready batches. Unlike a plain `DataLoader`, it does not use the global random state."""
    return (_WorkersLoader if num_workers else DataLoader)(
        dataset,
        batch_sampler=batches,
        collate_fn=_as_arrays if num_workers else _as_it_is,
        num_workers=num_workers,
        pin_memory=pin_memory,
        generator=torch.Generator(),
    )


def load_features(
    task: Task,
    data_dir: str | Path | None,
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    max_seq_length: int,
    cache_dir: str | Path,
    overwrite_cache: bool = False,
    show_progress: bool = True,
) -> FeatureDataset:
    """The token ids of a split, from its cache if that is sound; otherwise they are made and cached.

    Pairs longer than `max_seq_length` lose tokens from the longer sentence first. Special tokens are added around the
    text; what looks like one inside the text (`[SEP]`) is tokenised as ordinary text. The tokenizer is left unchanged.
    In one run, one rank makes the cache and the others wait. Separate runs may share `cache_dir` without waiting.

    Args:
        task, data_dir, split: what to read, as for `read_split`.
        tokenizer: a fast one (with a `backend_tokenizer`).
        max_seq_length: most tokens of a row, special ones included.
        cache_dir: folder of the caches; `<task>-<split>-<length>-<key>` is made inside it.
        overwrite_cache: make the cache again even if there is a sound one.
        show_progress: show a bar while tokenising.

    Raises:
        UserError: a fault in the data (see `read_split`), a slow tokenizer or one without a padding token, or a
            length that leaves no room for text.
    """
    backend = _private_backend(tokenizer, max_seq_length, paired=task.layout(split).text_b is not None)
    fingerprint = _fingerprint(task, data_dir, split, tokenizer, backend, max_seq_length)
    meant = Path(cache_dir) / f"{task.name}-{split}-{max_seq_length}-{fingerprint[:16]}"
    folder = unclaimed(meant)
    if folder != meant:
        logger.warning("%s is not a complete feature cache; it is left alone and another folder is used", meant)
    if not overwrite_cache and folder.exists():
        try:
            found = _verified(folder, fingerprint)
            if found.blank is not None and found.unknown is not None:
                return found
        except DamagedError as error:
            logger.warning("The feature cache %s is damaged and made again: %s", folder, error)
    examples = read_split(task, data_dir, split)
    bar = tqdm(total=len(examples.texts_a), desc=f"Tokenizing {task.name} {split}", disable=not show_progress)
    with bar:
        special = backend.num_special_tokens_to_add(examples.texts_b is not None)
        counter = UnknownCounter(tokenizer.unk_token_id, special)
        arrays, cut = _encoded(backend, plain_text_backend(tokenizer), examples, bar, counter)
    arrays |= _names_and_labels(examples, task)
    metadata = {
        "fingerprint": fingerprint,
        "pad_token_id": str(tokenizer.pad_token_id),
        "version": str(FORMAT_VERSION),
        "cut": str(len(cut)),
        "longest": str(max([*cut, int(np.diff(arrays["offsets"]).max(initial=0))])),
        "blank": str(sum(map(_is_blank, examples.texts_a, examples.texts_b or examples.texts_a))),
        "notes": json.dumps(examples.notes),
        "unknown": json.dumps(asdict(counter.found())),
    }
    _save_cache(folder, arrays, metadata)
    return _verified(folder, fingerprint)


def _is_blank(*texts: str) -> bool:
    return any(text.strip().lower() in _BLANK for text in texts)


def _reopened(folder: str, pad_to_multiple_of: int) -> FeatureDataset:
    dataset = FeatureDataset(folder)
    dataset.pad_to_multiple_of = pad_to_multiple_of
    return dataset


def _as_it_is(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return batch


def _as_arrays(batch: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in batch.items()}


class _WorkersLoader(DataLoader):
    """Worker processes send arrays through pipes. Tensors would need /dev/shm, which is small in many containers."""

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        try:
            torch.multiprocessing.Queue().close()  # fails here if /dev/shm has no room even for its semaphores
            for arrays in super().__iter__():
                batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
                yield {name: tensor.pin_memory() for name, tensor in batch.items()} if self.pin_memory else batch
        except OSError as error:
            raise UserError(f"--num_workers {self.num_workers}: {error.strerror}; give --num_workers 0") from error
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker (pid"):
                raise
            reason = str(error).splitlines()[0]
            raise UserError(f"--num_workers {self.num_workers}: {reason} Give --num_workers 0") from error


def _private_backend(tokenizer: PreTrainedTokenizerBase, max_seq_length: int, paired: bool) -> Tokenizer:
    """A copy of the tokenizer's backend that truncates, does not pad, and reads special tokens in the text as text."""
    backend = plain_text_backend(tokenizer)
    if tokenizer.pad_token_id is None:
        raise UserError(f"--tokenizer_name {tokenizer.name_or_path}: the tokenizer has no padding token")
    smallest = backend.num_special_tokens_to_add(paired) + 1
    if max_seq_length < smallest:
        raise UserError(
            f"--max_seq_length {max_seq_length}: at least {smallest} is needed, for special tokens and a word"
        )
    backend.enable_truncation(max_seq_length, strategy="longest_first", direction=tokenizer.truncation_side)
    return backend


def _fingerprint(
    task: Task,
    data_dir: str | Path | None,
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    backend: Tokenizer,
    max_seq_length: int,
) -> str:
    """SHA-256 over all that the features depend on: data, tokenizer, length, labels, columns, the cache's format."""
    layout, files = located(task, data_dir, split)
    columns = asdict(layout) | {"files": None}
    content = {
        "format": FORMAT_VERSION,
        "data": [sha256_of(path) for path in files],
        "layout": {name: value for name, value in columns.items() if name not in _NEWER or value != _NEWER[name]},
        "split": split if layout.is_split else None,
        "labels": task.labels,
        "label_range": task.label_range,
        "max_seq_length": max_seq_length,
        "tokenizer": hashlib.sha256(backend.to_str().encode("utf-8")).hexdigest(),
        "do_lower_case": getattr(tokenizer, "do_lower_case", None),
        "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "pad_token_id": tokenizer.pad_token_id,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("utf-8")).hexdigest()


def _verified(folder: Path, fingerprint: str) -> FeatureDataset:
    verify_folder(folder)
    if FEATURES_FILE not in read_manifest(folder):
        raise DamagedError(f"{folder / MANIFEST} does not list {FEATURES_FILE}")
    dataset = FeatureDataset(folder)
    if dataset.fingerprint != fingerprint:
        raise DamagedError(f"{folder / FEATURES_FILE} was made from other data")
    return dataset


def _encoded(
    backend: Tokenizer, whole: Tokenizer, examples: Split, bar: tqdm, counter: UnknownCounter
) -> tuple[dict[str, np.ndarray], list[int]]:
    """Arrays of all rows: `input_ids`, `offsets`, `boundaries`; and the full lengths of the texts that were cut."""
    ids, lengths, boundaries, cut = [], [], [], []
    limit = backend.truncation["max_length"]
    for texts in _chunks(examples):
        encodings = backend.encode_batch_fast(texts)
        counts = np.fromiter((len(encoding) for encoding in encodings), np.int64, len(encodings))
        total = int(counts.sum())
        ids.append(np.fromiter(itertools.chain.from_iterable(e.ids for e in encodings), np.int32, total))
        lengths.append(counts)
        boundaries.append(_boundaries(encodings, counts))
        counter.add(texts, (encoding.ids for encoding in encodings))
        full = [texts[row] for row in np.flatnonzero(counts == limit)]
        cut += [length for each in whole.encode_batch_fast(full) if (length := len(each)) > limit]
        bar.update(len(encodings))
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(lengths))])
    arrays = {"input_ids": np.concatenate(ids), "offsets": offsets, "boundaries": np.concatenate(boundaries)}
    return arrays, cut


def _chunks(examples: Split) -> Iterator[list]:
    texts: list = examples.texts_a
    if examples.texts_b is not None:
        texts = list(zip(examples.texts_a, examples.texts_b, strict=True))
    for start in range(0, len(texts), _CHUNK):
        yield texts[start : start + _CHUNK]


def _boundaries(encodings: list[Encoding], counts: np.ndarray) -> np.ndarray:
    """How many leading tokens of each row have type 0; all others have type 1.

    Raises:
        UserError: the tokenizer gives types that are not zeros followed by ones.
    """
    types = np.fromiter(itertools.chain.from_iterable(e.type_ids for e in encodings), np.int32, int(counts.sum()))
    rows = np.repeat(np.arange(len(counts)), counts)
    boundaries = counts - np.bincount(rows, weights=types, minlength=len(counts)).astype(np.int64)
    within = np.arange(len(types)) - np.repeat(np.cumsum(counts) - counts, counts)
    if not np.array_equal(types, within >= boundaries[rows]):
        raise UserError("--tokenizer_name: its token types are not 0 for the first text and 1 for the second")
    return boundaries.astype(np.int32)


def _names_and_labels(examples: Split, task: Task) -> dict[str, np.ndarray]:
    """Arrays about the rows besides their tokens: the names, and the labels if they are published."""
    arrays = {"index_text": np.frombuffer("\n".join(examples.indices).encode("utf-8"), dtype=np.uint8)}
    if examples.labels is not None:
        arrays["labels"] = np.asarray(examples.labels, task.kind.label_dtype)
    return arrays


def _save_cache(folder: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    try:
        with writing_cache(folder), atomic_folder(folder, damaged_too=True) as temporary:
            save_file(arrays, temporary / FEATURES_FILE, metadata)
    except UserError:
        # Two runs may make the same cache at the same time: the second cannot rename its own, and need not.
        if not (folder / MANIFEST).is_file():
            raise


@contextmanager
def writing_cache(folder: Path) -> Iterator[None]:
    """Wraps the making of a cache. If the place cannot be written to, the error names the flag.

    Raises:
        UserError: the disk is full, or the place is read-only or no folder.
    """
    try:
        yield
    except UserError as error:
        if not isinstance(error.__cause__, OSError | SafetensorError) or str(error).startswith("--"):
            raise  # it is not about the folder, or it names its flag
        raise UserError(f"--feature_cache_dir: {error}; give another folder") from error.__cause__
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk with the second type
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(
            f"--feature_cache_dir: {folder.parent} cannot be written ({reason}); give another folder"
        ) from error


def _unknown_tokens(text: str, folder: Path) -> UnknownTokens:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    kinds = {name: type(value) for name, value in asdict(UnknownTokens()).items()}
    if not isinstance(found, dict) or {name: type(value) for name, value in found.items()} != kinds:
        raise DamagedError(f"{folder / FEATURES_FILE} is damaged: its record of unknown tokens is not one")
    return UnknownTokens(**found)


def _open(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Map a features file: arrays by name that share the page cache, and its metadata.

    Raises:
        DamagedError: unreadable, of another version, or the arrays contradict each other.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError, ValueError, TypeError) as error:  # TypeError: a dtype that NumPy lacks
        raise DamagedError(f"{path} cannot be read ({error})") from error
    if metadata.get("version") != str(FORMAT_VERSION) or not metadata.get("pad_token_id", "").isdecimal():
        raise DamagedError(f"{path} is not a features file of version {FORMAT_VERSION}")
    if not _is_consistent(tensors):
        raise DamagedError(f"{path} holds arrays that contradict each other")
    return tensors, {"fingerprint": ""} | metadata


def _is_consistent(tensors: dict[str, np.ndarray]) -> bool:
    kinds = {"input_ids": "int32", "offsets": "int64", "boundaries": "int32", "index_text": "uint8"}
    if any(
        name not in tensors or tensors[name].dtype != kind or tensors[name].ndim != 1 for name, kind in kinds.items()
    ):
        return False
    offsets, rows, names = tensors["offsets"], len(tensors["boundaries"]), tensors["index_text"]
    labels = tensors.get("labels", np.zeros(rows, np.int64))
    return bool(
        len(offsets) == rows + 1
        and offsets[0] == 0
        and offsets[-1] == len(tensors["input_ids"])
        and np.all(np.diff(offsets) >= 0)
        and tensors["input_ids"].min(initial=0) >= 0
        and labels.shape[:1] == (rows,)
        and labels.ndim <= 2
        and labels.dtype in (np.int64, np.float32)
        and np.count_nonzero(names == ord("\n")) + 1 == max(rows, 1)
    )
