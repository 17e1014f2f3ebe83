#!/usr/bin/env bash
# The plain command on real sentences, without the Hub: all-MiniLM-L6-v2 (from PyPI) on clearly rated movie-review
# snippets. Trains the dense model, prunes heads and neurons to 25 %, trains again, prints both models side by side.
#   bash experiments/quickstart/run.sh [more flags of masked_run_glue.py]
. "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
model=$(python -m experiments.fetch minilm)
data=$(python -m experiments.fetch movie-reviews)
python masked_run_glue.py --data_dir "$data" --task_name sst-2 --model_name_or_path "$model" \
    --output_dir outputs/quickstart "$@"
