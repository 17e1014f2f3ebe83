#!/usr/bin/env bash
# An encoder of base size (all-mpnet-base-v2: 12 layers, hidden 768, from PyPI) on 20,000 sentences of SST-2, on a CPU:
# fine-tuned, cut to 40 % of its encoder without any training, and to 25 % with a recovery.
#   bash experiments/base-size/run.sh [flags of masked_run_glue.py]
# GLUE is read from EMMENTAL_GLUE_DIR (default ../shared/data/glue). A run that was interrupted goes on.
. "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
glue=${EMMENTAL_GLUE_DIR:-../shared/data/glue}
model=$(python -m experiments.fetch mpnet)
outputs=outputs/base-size
mkdir -p "$outputs/data"
head -n 20001 "$glue/SST-2/train.tsv" >"$outputs/data/train.tsv"
cp "$glue/SST-2/dev.tsv" "$outputs/data/"

fine_tune() { # NAME MODEL FLAGS...
    local folder=$outputs/$1 start=$2
    shift 2
    [ -e "$folder/summary.json" ] && return
    echo "== $folder"
    python masked_run_glue.py --data_dir "$outputs/data" --task_name sst-2 --model_name_or_path "$start" \
        --output_dir "$folder" --save_total_limit 1 "$@"
}

fine_tune dense "$model" --model_type mpnet "$@"
fine_tune no-training-40 "$outputs/dense" --num_train_epochs 0 --keep 0.4 "$@"
fine_tune recovered-25 "$outputs/dense" --keep 0.25 "$@"
python -m experiments.collect --into experiments/base-size/results.json "$outputs"/dense "$outputs"/no-training-40 \
    "$outputs"/recovered-25
