#!/usr/bin/env bash
# Dense models of three task heads and an embedding model, pruned without labels. About an hour on two cores.
set -euo pipefail
cd "$(dirname "$0")/../.."
MINILM=${MINILM:-$(python -m experiments.fetch minilm)}
HEADS=${HEADS:-../shared/data/heads}
GLUE=${GLUE:-../shared/data/glue}
RESULTS=experiments/task_heads/results.jsonl

for task in wnut17 trecqa goemotions; do
  for seed in ${SEEDS:-0}; do
    python -m experiments.task_heads.dense --task $task --model_name_or_path "$MINILM" --data_dir "$HEADS" \
      --seed $seed --output outputs/heads/$task-$seed
    python -m experiments.task_heads.table --task $task --dense outputs/heads/$task-$seed --data_dir "$HEADS" \
      --layers 3 2 --results $RESULTS
  done
done
python -m experiments.task_heads.table --task stsb --dense "$MINILM" --data_dir "$GLUE" --split dev --layers 3 2 --results $RESULTS
