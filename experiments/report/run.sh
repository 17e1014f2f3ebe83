#!/usr/bin/env bash
# A fine-pruned model in every exported form, measured on this machine: report.html, and the numbers in results.json.
#   bash experiments/report/run.sh [MODEL_FOLDER] [more flags of emmental.export.report]
# MODEL_FOLDER is outputs/sst-2/movement-10 by default, which experiments/sst-2/run.sh makes first if it is missing.
# GLUE is read from EMMENTAL_GLUE_DIR (default ../shared/data/glue). TASK (sst-2) and DATA (SST-2) name another task, OUT
# another folder for the report. The exported forms go to outputs/report.
. "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
glue=${EMMENTAL_GLUE_DIR:-../shared/data/glue}
model=${1:-outputs/sst-2/movement-10}
out=${OUT:-experiments/report}
[ $# -eq 0 ] || shift
if [ ! -f "$model/config.json" ] && [ "$model" = outputs/sst-2/movement-10 ]; then
    bash experiments/sst-2/run.sh dense movement-10
fi
python -m emmental.export.report --model_name_or_path "$model" --data_dir "$glue/${DATA:-SST-2}" \
    --task_name "${TASK:-sst-2}" --output "$out/report.html" --results "$out/results.json" \
    --work_dir "outputs/report/$(basename "$model")" "$@"
