"""What a pruning method says of itself. A module of a method imports torch only inside functions."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor, nn

    from emmental.modules.weight_information import Reduce, UsesOfMatrices

STRUCTURED, UNSTRUCTURED = "structured", "unstructured"
"""Heads and neurons are removed, or single weights."""
MASK_INITS = ("constant", "uniform", "kaiming", "magnitude")
REGULARIZATIONS = ("l1", "l0")


class ThresholdMeaning(Enum):
    """What a method's threshold is compared with."""

    SHARE = "the share of weights that stays"
    SCORE = "scores: those above it stay"
    NONE = "nothing: there is no threshold"


class ScoreSource(Enum):
    """Where a method's scores come from."""

    LEARNED = "the optimizer"
    GATHERED = "the method itself, from the gradients of each update"
    NONE = "the weights: there are no scores"


@dataclass(frozen=True)
class PruningRecipe:
    """What `--recipe auto` gives a method that prunes while the model trains.

    Attributes:
        updates, updates_below_a_tenth: length of the training, if 10 % or more of the weights stay, and if less do.
        rate: learning rate of the weights, in units of the dense phase's.
        mask_init, mask_scale, mask_scores_learning_rate, final_warmup, global_topk: values of these flags.
    """

    updates: int = 1500
    updates_below_a_tenth: int = 2500
    rate: float = 2.0
    mask_init: str = "magnitude"
    mask_scale: float = 1.0
    mask_scores_learning_rate: float = 2e-3
    final_warmup: int = 3
    global_topk: bool = True


@dataclass(frozen=True)
class RecoveryRecipe:
    """What `--recipe auto` gives the training after a method has cut weights.

    Attributes:
        updates, updates_below_a_tenth: length of the training, if 10 % or more of the weights stay, and if less do.
        rate, rate_of_hard_cut: learning rate, in units of the dense phase's; the second if few weights stay.
        mask_init, mask_scale: values of these flags: scores above 0 for what stays, 0 for what is cut.
    """

    updates: int = 600
    updates_below_a_tenth: int = 1500
    rate: float = 1.0
    rate_of_hard_cut: float = 2.0
    mask_init: str = "magnitude"
    mask_scale: float = 1.0


class Method:
    """A pruning method. A subclass sets what differs, and gives a mask; it has no state.

    Attributes:
        name: the value of `--pruning_method`, and what a masked model's configuration records.
        spellings: other names that are accepted; help shows the first.
        threshold: what the threshold means. If it is no share, `--keep` ranks the scores of all matrices together.
        threshold_limits, threshold_accepts: the lowest and highest threshold of a finished model, and in words.
        default_thresholds: first and last threshold of a schedule that gives none; None: those of the flags.
        scores: where the scores come from. Only learned scores can be regularized.
        accepts_global_topk: whether `--global_topk` may be given.
        always_global_topk: whether all matrices are ranked together in any case.
        updates_between_rankings: updates between two of these rankings; None: the flag's default.
        granularities: values of `--granularity` that can be combined with the method.
        cuts_first: whether it can prune single weights before training, by `cut`.
        bytes_a_weight: memory that `cut` needs for each of the encoder's weights, beyond what others need.
        pruning: what the recipe gives a training that prunes.
        recovery: what the recipe gives the training after a cut; None for a method that does not cut.
    """

    name: ClassVar[str]
    spellings: ClassVar[tuple[str, ...]] = ()
    threshold: ClassVar[ThresholdMeaning] = ThresholdMeaning.SHARE
    threshold_limits: ClassVar[tuple[float, float]] = (0.0, 1.0)
    threshold_accepts: ClassVar[str] = "the fraction of weights that stay, from 0 to 1 (not in %: 30 % is 0.3)"
    default_thresholds: ClassVar[tuple[float, float] | None] = None
    scores: ClassVar[ScoreSource] = ScoreSource.LEARNED
    accepts_global_topk: ClassVar[bool] = False
    always_global_topk: ClassVar[bool] = False
    updates_between_rankings: ClassVar[int | None] = None
    granularities: ClassVar[tuple[str, ...]] = (UNSTRUCTURED,)
    cuts_first: ClassVar[bool] = False
    bytes_a_weight: ClassVar[int] = 0
    pruning: ClassVar[PruningRecipe] = PruningRecipe()
    recovery: ClassVar[RecoveryRecipe | None] = None

    @property
    def masked_name(self) -> str:
        """The method that the masked model records: another one for a method that only cuts."""
        return self.name

    @property
    def only_cuts(self) -> bool:
        """Whether the method prunes before training alone, so that no masked model has it."""
        return self.masked_name != self.name

    @property
    def shown_name(self) -> str:
        """The name in `--help`."""
        return self.spellings[0] if self.spellings else self.name

    @property
    def by_share(self) -> bool:
        """Whether the threshold is the share of weights that stays."""
        return self.threshold is ThresholdMeaning.SHARE

    @property
    def by_score(self) -> bool:
        """Whether the threshold is compared with scores."""
        return self.threshold is ThresholdMeaning.SCORE

    @property
    def has_threshold(self) -> bool:
        """Whether there is a threshold at all."""
        return self.threshold is not ThresholdMeaning.NONE

    @property
    def has_scores(self) -> bool:
        """Whether a masked layer has mask scores; if not, its mask is made from the weight."""
        return self.scores is not ScoreSource.NONE

    @property
    def learns_scores(self) -> bool:
        """Whether the optimizer updates the scores."""
        return self.scores is ScoreSource.LEARNED

    @property
    def gathers_scores(self) -> bool:
        """Whether the method updates the scores, by `gather`."""
        return self.scores is ScoreSource.GATHERED

    @property
    def regularizations(self) -> tuple[str, ...]:
        """Values of `--regularization` that the method accepts."""
        return REGULARIZATIONS if self.learns_scores else ()

    def threshold_problem(self, value: float) -> str | None:
        """Why a flag that gives a threshold does not accept a value, in half a line; None if it does."""
        return None if math.isfinite(value) else f"accepts a finite number, not {value}"

    def mask_at(self, source: Tensor, threshold: float) -> Tensor:
        """The mask at a threshold, of the shape of `source`: bool.

        Args:
            source: the scores, or the weight if there are none.
            threshold: see `threshold`.
        """
        raise NotImplementedError

    def make_mask(
        self,
        source: Tensor,
        threshold: float | None,
        global_threshold: tuple[float, int] | None = None,
        training: bool = False,
        noise_seed: int | None = None,
    ) -> Tensor:
        """The mask of a matrix, of the shape of `source`: bool, or gates in [0, 1] of its dtype.

        Args:
            source: the scores, or the weight if there are none.
            threshold: see `threshold`; None keeps all.
            global_threshold: (score, ties) of a global top-k, used instead of the threshold.
            training: whether a method with noise draws some.
            noise_seed: its seed; None uses PyTorch's generator.
        """
        import torch

        from emmental.modules.binarizer import above_with_ties

        if global_threshold is not None:
            return above_with_ties(source, *global_threshold)
        if threshold is None:
            return torch.ones(source.shape, dtype=torch.bool, device=source.device)
        return self.mask_at(source, threshold)

    def gather(self, scores: Tensor, update: int, loss_scale: float) -> None:
        """Update the scores in place from `scores.grad`, if `gathers_scores`.

        Args:
            scores: with the gradient of a whole update, averaged over all processes. The gradient may be overwritten.
            update: number of the update, from 1.
            loss_scale: factor of the loss; entries of the gradient that overflowed do not count.
        """
        raise NotImplementedError

    def cut(
        self,
        model: nn.Module,
        uses: Iterable[UsesOfMatrices],
        share: float,
        reduce: Reduce | None = None,
    ) -> None:
        """Zero all but a share of the encoder's weights in place, if `cuts_first`; weights that are zero stay zero.

        Args:
            model: a classifier.
            uses: gradients of single examples, see `emmental.modules.weight_information`. They are read once.
            share: of all weights, above 0 and up to 1.
            reduce: sums a float64 tensor over all processes and returns it.
        """
        raise NotImplementedError
