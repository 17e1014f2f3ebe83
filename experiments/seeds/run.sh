#!/usr/bin/env bash
# The recipes over tasks, seeds and shares: the plain command, single weights, other shares, no training, text without
# labels, the shares that soft movement and L0 end at, and the first layers of the same models.
#   bash experiments/seeds/run.sh [PART ...]      see `python -m experiments.seeds.matrix --help`; all parts by default
# Made for a GPU with many processor cores (LANES runs at a time, default 1). Of SST-2 the first 20,000 sentences are
# used. GLUE is read from EMMENTAL_GLUE_DIR (default ../shared/data/glue). Runs that RESULTS holds are not made again.
. "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
glue=${EMMENTAL_GLUE_DIR:-../shared/data/glue}
results=${RESULTS:-experiments/seeds/results.jsonl}
mkdir -p outputs/seeds/data
head -n 20001 "$glue/SST-2/train.tsv" >outputs/seeds/data/train.tsv
cp "$glue/SST-2/dev.tsv" outputs/seeds/data/
python -m experiments.seeds.matrix "$@" --model "$(python -m experiments.fetch minilm)" --into "$results" \
    --lanes "${LANES:-1}" --data sst-2=outputs/seeds/data mrpc="$glue/MRPC" rte="$glue/RTE" sts-b="$glue/STS-B" \
    movie-reviews="$(python -m experiments.fetch movie-reviews)" opinions="$(python -m experiments.fetch opinions)"
python -m experiments.seeds.table "$results"
