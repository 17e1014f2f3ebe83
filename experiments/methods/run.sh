#!/usr/bin/env bash
# Methods that prune single weights, at equal updates: 10 and 3 % of the encoder's weights left, three seeds.
#   bash experiments/methods/run.sh [TASK ...]      sst-2, mrpc; both by default
# Made for a GPU, where a task takes minutes. GLUE is read from EMMENTAL_GLUE_DIR (default ../shared/data/glue).
. "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
glue=${EMMENTAL_GLUE_DIR:-../shared/data/glue}
model=$(python -m experiments.fetch minilm)
declare -A folders=([sst-2]=SST-2 [mrpc]=MRPC)
[ $# -gt 0 ] || set -- sst-2 mrpc
for task in "$@"; do
    python -m experiments.methods.compare --model "$model" --data_dir "$glue/${folders[$task]}" --task_name "$task" \
        --into "experiments/methods/$task.json"
done
