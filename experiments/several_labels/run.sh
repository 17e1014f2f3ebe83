#!/usr/bin/env bash
# Several labels at once: 6,000 rows of GoEmotions, MiniLM, dense and 25 %.
#   bash experiments/several_labels/run.sh [more flags of masked_run_glue.py]
. "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
data=outputs/several_labels/data
python -m experiments.several_labels.write --data_dir "${HEADS:-../shared/data/heads}" --output "$data"
python masked_run_glue.py --model_name_or_path "$(python -m experiments.fetch minilm)" --train_file "$data/train.tsv" \
    --validation_file "$data/dev.tsv" --label_separator "|" --keep 0.25 --max_seq_length 64 \
    --output_dir outputs/several_labels/out "$@"
