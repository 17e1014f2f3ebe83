#!/usr/bin/env bash
# MiniLM on SST-2, dense and pruned; see experiments/minilm.sh for the runs and how they are called.
task=sst-2 folder=SST-2
dense_epochs=1 dense_rate=1e-4
epochs=1.5 rate=2e-4 scores_rate=2e-3
soft_scores_rate=1e-2 lambda_15=500 lambda_10=750 lambda_l0=50
. "$(dirname "${BASH_SOURCE[0]}")/../minilm.sh"
