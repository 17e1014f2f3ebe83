#!/usr/bin/env bash
# The paper's recipes for BERT-base on QQP (arXiv 2005.07683): batch 32 in all, 10 epochs, 11,000 warm-up updates.
#   bash experiments/bert-base/qqp.sh movement|soft_movement|magnitude|l0 GLUE_FOLDER [more flags]
# movement and magnitude keep 10 % of the weights; KEEP=0.03 sets another share. LAMBDA is the weight of the penalty of
# soft_movement (default 400; a larger one leaves fewer weights) and of l0 (default 125).
# Needs the Hub (or a folder in MODEL), one or more GPUs (GPUS=8 starts torchrun), and hours.
epochs=10 warmup=11000 task=qqp folder=QQP
. "$(dirname "${BASH_SOURCE[0]}")/recipe.sh"
