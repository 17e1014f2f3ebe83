"""The phases of a run, a file each."""

from emmental.training.phases.cut import CutHeadsAndNeurons, CutSingleWeights
from emmental.training.phases.dense import DenseTraining
from emmental.training.phases.fewer_tokens import FewerTokens
from emmental.training.phases.fine_pruning import FinePruning
from emmental.training.phases.phase import Phase, PhaseContext
from emmental.training.phases.recovery import MaskedRecovery, Recovery

__all__ = [
    "CutHeadsAndNeurons",
    "CutSingleWeights",
    "DenseTraining",
    "FewerTokens",
    "FinePruning",
    "MaskedRecovery",
    "Phase",
    "PhaseContext",
    "Recovery",
]
