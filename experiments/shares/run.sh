#!/usr/bin/env bash
# Does a run end at the share that was asked for? Soft movement and L0, which learn how much stays, on four tasks at five
# shares, in a short training. Only the share that remains is of interest here, not the metric.
#   bash experiments/shares/run.sh [TASK ...]      sst-2, mrpc, rte, sts-b; all by default
# GLUE is read from EMMENTAL_GLUE_DIR (default ../shared/data/glue). Finished runs are kept. UPDATES: of each training.
. "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
glue=${EMMENTAL_GLUE_DIR:-../shared/data/glue}
model=$(python -m experiments.fetch minilm)
declare -A folders=([sst-2]=SST-2 [mrpc]=MRPC [rte]=RTE [sts-b]=STS-B)
outputs=outputs/shares

[ $# -gt 0 ] || set -- sst-2 mrpc rte sts-b
for task in "$@"; do
    for method in sigmoied_threshold l0; do
        for keep in 0.5 0.25 0.1 0.05 0.03; do
            folder=$outputs/$task-$method-$keep
            [ -e "$folder/summary.json" ] && continue
            echo "== $folder"
            python masked_run_glue.py --data_dir "$glue/${folders[$task]}" --task_name "$task" \
                --model_name_or_path "$model" --output_dir "$folder" --pruning_method $method --keep $keep \
                --no-dense_first --max_steps "${UPDATES:-60}" --no-floor --no-engines --no-pictures
        done
    done
done
python -m experiments.collect --into experiments/shares/results.json "$outputs"/*/
