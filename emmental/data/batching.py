"""Chooses the rows of each batch: rows of similar length, for little padding, in the same order on all ranks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from emmental.errors import UserError

POOL_BATCHES = 64


@dataclass(frozen=True)
class RowBatch:
    """The rows of one batch on one rank.

    Attributes:
        indices: (B,) int64, positions in the dataset.
        weights: (B,) float32, 0 for a row that only fills the batch. The others of a batch have one weight, so
            that the mean of weight * loss over the rows of all ranks is the mean loss of the rows that count; it is
            1 in a batch without fillers.
    """

    indices: np.ndarray
    weights: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)


class _RankBatches(Sampler[RowBatch], ABC):
    """Cuts ordered rows into global batches of `batch_size * world_size`, and yields one rank's share of each."""

    def __init__(self, lengths: np.ndarray, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        if batch_size < 1 or not 0 <= rank < world_size:
            raise UserError(f"batch size {batch_size}, rank {rank} of {world_size} ranks: no such share")
        if len(lengths) == 0:
            raise UserError("there are no examples to make batches of")
        self.lengths = np.asarray(lengths)
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.start_batch = 0

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.global_batch_size)

    def __iter__(self) -> Iterator[RowBatch]:
        for members in self._global_batches()[self.start_batch :]:
            yield self._share(members)

    @property
    def global_batch_size(self) -> int:
        """Number of rows of a complete batch over all ranks."""
        return self.batch_size * self.world_size

    def rows_in(self, places: Iterable[int]) -> list[int]:
        """How many rows, over all ranks, the batches at these places of an epoch have."""
        return [min(self.global_batch_size, len(self.lengths) - place * self.global_batch_size) for place in places]

    @abstractmethod
    def _global_batches(self) -> list[np.ndarray]:
        """The rows of every global batch, in order; only the last one may be smaller."""

    def _cut(self, order: np.ndarray) -> list[np.ndarray]:
        return [
            order[start : start + self.global_batch_size] for start in range(0, len(order), self.global_batch_size)
        ]

    def _share(self, members: np.ndarray) -> RowBatch:
        """This rank's rows of a global batch. Several ranks get full batches: repeated rows of weight 0 fill them."""
        size = len(members) if self.world_size == 1 else self.global_batch_size
        weights = ((np.arange(size) < len(members)) * (size / len(members))).astype(np.float32)
        mine = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        return RowBatch(np.resize(members, size).astype(np.int64)[mine], weights[mine])


class LengthGroupedBatches(_RankBatches):
    """Batches for training.

    The rows are shuffled, cut into pools of `POOL_BATCHES` global batches, sorted by length inside each pool, and cut
    into global batches, which are shuffled again; an incomplete one comes last. The order depends on the seed, the
    epoch and `batch_size * world_size` only: one process with batch size 2 B and two ranks with B see the same global
    batches in the same order, each rank its consecutive slice. A single process gets a smaller last batch; several
    ranks fill it with repeated rows of weight 0, so that all have `batch_size` rows.

    Args:
        lengths: (N,) tokens of each row.
        batch_size: rows of one rank's batch.
        rank, world_size: which share is yielded.
        shuffle: False keeps the pools and the batches in file order.
        seed: seed of the order.
        grouped: False ignores the lengths: batches are cut from the shuffled rows.

    Raises:
        UserError: no rows, or an impossible batch size or rank.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        seed: int = 0,
        grouped: bool = True,
    ) -> None:
        super().__init__(lengths, batch_size, rank, world_size)
        self.shuffle = shuffle
        self.grouped = grouped
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Set the epoch, and skip its first `start_batch` batches: a resumed run continues exactly there.

        Raises:
            UserError: the epoch has fewer batches than that.
        """
        if not 0 <= start_batch <= len(self):
            raise UserError(f"batch {start_batch} of an epoch with {len(self)} batches")
        self.epoch = epoch
        self.start_batch = start_batch

    def rows_of(self, count: int) -> np.ndarray:
        """The rows of the epoch's first `count` batches, over all ranks, each row once and in the file's order."""
        return np.sort(np.concatenate(self._global_batches()[:count]))

    def _global_batches(self) -> list[np.ndarray]:
        count = len(self.lengths)
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, self.epoch])))
        order = generator.permutation(count) if self.shuffle else np.arange(count)
        if self.grouped:
            pools = np.arange(count) // (POOL_BATCHES * self.global_batch_size)
            order = order[np.lexsort((-self.lengths[order], pools))]
        batches = self._cut(order)
        complete = count // self.global_batch_size
        ranking = generator.permutation(complete) if self.shuffle else np.arange(complete)
        return [batches[position] for position in ranking] + batches[complete:]


class SequentialBatches(_RankBatches):
    """Batches for evaluation: every row once over all ranks, the longest first, so that memory peaks at the start.

    All ranks have the same number of batches; rows of weight 0 fill the last one. The rows' `index`
    gives their order in the file.

    Args:
        lengths: (N,) tokens of each row.
        batch_size: rows of one rank's batch.
        rank, world_size: which share is yielded.
        rows: the rows to evaluate; default: all.

    Raises:
        UserError: no rows, or an impossible batch size or rank.
    """

    def __init__(
        self, lengths: np.ndarray, batch_size: int, rank: int = 0, world_size: int = 1, rows: np.ndarray | None = None
    ) -> None:
        super().__init__(lengths if rows is None else lengths[rows], batch_size, rank, world_size)
        self.rows = rows

    def _global_batches(self) -> list[np.ndarray]:
        order = np.argsort(-self.lengths, kind="stable")
        return self._cut(order if self.rows is None else self.rows[order])


def padding_share(lengths: np.ndarray, batches: Iterable[RowBatch]) -> float:
    """Share of padding among all tokens of the batches, each padded to its longest member; between 0 and 1."""
    real = total = 0
    for batch in batches:
        members = np.asarray(lengths)[batch.indices]
        real += int(members.sum())
        total += int(members.max()) * len(members)
    return 1.0 - real / total if total else 0.0
