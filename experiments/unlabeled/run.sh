#!/usr/bin/env bash
# What unlabelled text gains when a quarter of the encoder is kept: labelled rows alone, with text of another task, and
# with copies of the rows in which words are replaced by similar ones. Equal updates, seeds 1 2 3.
#   bash experiments/unlabeled/run.sh [TASK ...]      mrpc, rte; both by default
# GLUE is read from EMMENTAL_GLUE_DIR (default ../shared/data/glue). Finished runs are kept.
. "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
glue=${EMMENTAL_GLUE_DIR:-../shared/data/glue}
model=$(python -m experiments.fetch minilm)
declare -A folders=([mrpc]=MRPC [rte]=RTE) others=([mrpc]=RTE [rte]=MRPC)

prune() { # NAME FLAGS...
    local folder=$outputs/$1
    shift
    [ -e "$folder/summary.json" ] && return
    echo "== $folder"
    python masked_run_glue.py --data_dir "$glue/${folders[$task]}" --task_name "$task" \
        --model_name_or_path "$outputs/dense" --output_dir "$folder" --no-floor --no-engines --no-pictures "$@"
}

[ $# -gt 0 ] || set -- mrpc rte
for task in "$@"; do
    outputs=outputs/unlabeled/$task
    mkdir -p "$outputs"
    [ -e "$outputs/dense/summary.json" ] ||
        python masked_run_glue.py --data_dir "$glue/${folders[$task]}" --task_name "$task" --model_type bert \
            --model_name_or_path "$model" --output_dir "$outputs/dense"
    [ -e "$outputs/other.csv" ] ||
        python -m experiments.unlabeled.text_of "$glue/${others[$task]}" "${others[$task],,}" "$outputs/other.csv"
    [ -e "$outputs/replaced.csv" ] ||
        python -m experiments.unlabeled.text_of "$glue/${folders[$task]}" "$task" "$outputs/replaced.csv" \
            --copies 3 --model "$model"
    for seed in ${SEEDS:-1 2 3}; do
        prune "rows-$seed" --seed "$seed"
        prune "other-$seed" --seed "$seed" --unlabeled_file "$outputs/other.csv"
        prune "replaced-$seed" --seed "$seed" --unlabeled_file "$outputs/replaced.csv"
    done
    python -m experiments.collect --into "experiments/unlabeled/$task.json" "$outputs"/*/
done
