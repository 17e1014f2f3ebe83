#!/usr/bin/env bash
# Cascades: a bag of words, MiniLM with 10 and 25 % of the encoder, and the dense model, on held-back training rows.
#   bash experiments/cascade/run.sh [TASK ...]      tickets, movie-reviews, opinions, mrpc; all of them by default
# MRPC is read from EMMENTAL_GLUE_DIR (default ../shared/data/glue). Finished trainings are kept. Folders of other models
# in outputs/cascade/TASK/peers stand in the table too. PROMISE=1 also counts how often the promise fails in 200 splits.
. "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
model=$(python -m experiments.fetch minilm)
[ $# -gt 0 ] || set -- tickets movie-reviews opinions mrpc
for task in "$@"; do
    folder=outputs/cascade/$task
    python -m experiments.cascade.rows "$task" "$folder/rows"
    if [ ! -e "$folder/models/summary.json" ]; then
        echo "== $task: training"
        python masked_run_glue.py --train_file "$folder/rows/train.csv" --validation_file "$folder/rows/dev.csv" \
            --model_name_or_path "$model" --keep 0.25 0.1 --output_dir "$folder/models"
    fi
    echo "== $task"
    python -m experiments.cascade.table "$folder" --into "experiments/cascade/$task.json"
    if [ -n "${PROMISE:-}" ]; then
        python -m experiments.cascade.promise "$folder" --into "experiments/cascade/$task-promise.json"
    fi
done
