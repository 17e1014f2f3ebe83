#!/usr/bin/env bash
# Does training in bfloat16 cost quality? The plain command with --bf16 and with --no-bf16, the same seeds (1 2 3).
#   bash experiments/bf16/run.sh [TASK ...]      sst-2 (its first 20,000 sentences), mrpc; both by default
# GLUE is read from EMMENTAL_GLUE_DIR (default ../shared/data/glue). Finished runs are kept.
. "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
glue=${EMMENTAL_GLUE_DIR:-../shared/data/glue}
model=$(python -m experiments.fetch minilm)
outputs=outputs/bf16

[ $# -gt 0 ] || set -- sst-2 mrpc
for task in "$@"; do
    data=$glue/MRPC
    if [ "$task" = sst-2 ]; then
        data=$outputs/data
        mkdir -p "$data"
        head -n 20001 "$glue/SST-2/train.tsv" >"$data/train.tsv"
        cp "$glue/SST-2/dev.tsv" "$data/"
    fi
    for seed in ${SEEDS:-1 2 3}; do
        for precision in bf16 no-bf16; do
            folder=$outputs/$task-$precision-$seed
            [ -e "$folder/summary.json" ] && continue
            echo "== $folder"
            python masked_run_glue.py --data_dir "$data" --task_name "$task" --model_name_or_path "$model" \
                --output_dir "$folder" --seed "$seed" "--$precision" --no-engines --no-pictures
        done
    done
done
python -m experiments.collect --into experiments/bf16/results.json "$outputs"/*-[0-9]/
