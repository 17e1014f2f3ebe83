#!/usr/bin/env bash
# MiniLM on MRPC, dense and pruned; see experiments/minilm.sh for the runs and how they are called.
task=mrpc folder=MRPC
dense_epochs=5 dense_rate=1e-4
epochs=10 batch=16 rate=2e-4 scores_rate=2e-3
soft_scores_rate=1e-2 lambda_15=2400 lambda_10=3900 lambda_l0=50
. "$(dirname "${BASH_SOURCE[0]}")/../minilm.sh"
