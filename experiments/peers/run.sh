#!/usr/bin/env bash
# Compares pruned heads and neurons, with and without training, with what users could choose instead: a bag of words,
# the dense model in several engines, its first layers trained further with the dense model as teacher, and a smaller
# pretrained encoder. All have equal updates.
#   bash experiments/peers/run.sh [TASK ...]      sst-2, mrpc, movie-reviews, opinions; all of them by default
# GLUE is read from EMMENTAL_GLUE_DIR (default ../shared/data/glue). Of SST-2 the first 20,000 sentences are used.
# UPDATES (default 300) is the number of updates after the dense model, equal for all peers. Finished runs are kept.
. "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
glue=${EMMENTAL_GLUE_DIR:-../shared/data/glue}
model=$(python -m experiments.fetch minilm)
updates=${UPDATES:-300}

fine_tune() { # NAME MODEL FLAGS...
    local folder=$outputs/$1 start=$2
    shift 2
    [ -e "$folder/summary.json" ] && return
    echo "== $task: $folder"
    python masked_run_glue.py "${data[@]}" --model_name_or_path "$start" --output_dir "$folder" --no-floor \
        --seed "${SEED:-42}" "$@"
}

set_data() { # the trainer's flags for $task
    case $task in
    sst-2)
        mkdir -p "$outputs/data"
        head -n 20001 "$glue/SST-2/train.tsv" >"$outputs/data/train.tsv"
        cp "$glue/SST-2/dev.tsv" "$outputs/data/"
        data=(--data_dir "$outputs/data" --task_name sst-2)
        ;;
    mrpc) data=(--data_dir "$glue/MRPC" --task_name mrpc) ;;
    movie-reviews) data=(--data_dir "$(python -m experiments.fetch movie-reviews)" --task_name sst-2) ;;
    opinions)
        local folder
        folder=$(python -m experiments.fetch opinions)
        data=(--train_file "$folder/train.csv" --validation_file "$folder/dev.csv")
        ;;
    *) echo "unknown task $task" >&2 && exit 2 ;;
    esac
}

[ $# -gt 0 ] || set -- sst-2 mrpc movie-reviews opinions
for task in "$@"; do
    outputs=outputs/peers/$task
    set_data
    fine_tune dense "$model" --model_type bert
    for layers in 1 2 3; do
        python -m experiments.peers.first_layers "$outputs/dense" "$layers" "$outputs/start-$layers"
        fine_tune "first-$layers" "$outputs/start-$layers" --model_type bert --max_steps "$updates" \
            --teacher_name_or_path "$outputs/dense" --alpha_ce 0.1 --alpha_distil 0.9 --temperature 2
    done
    # It has not seen the task, so it gets the dense model's updates in addition to those of the others.
    both=$(python -c "import json, sys; print(json.load(open(sys.argv[1]))['updates'] + $updates)" "$outputs/dense/summary.json")
    fine_tune minilm-l3 "$(python -m experiments.fetch minilm-l3)" --model_type bert --max_steps "$both" \
        --teacher_name_or_path "$outputs/dense" --alpha_ce 0.1 --alpha_distil 0.9 --temperature 2
    for keep in 0.4 0.25 0.15 0.1; do # the folder `pruned` keeps the cut model before training
        fine_tune "ours-$keep" "$outputs/dense" --keep "$keep" --max_steps "$updates"
    done
    python -m experiments.peers.table "$outputs" "${data[@]}" --into "experiments/peers/$task.json"
done
python -m experiments.peers.picture experiments/peers/*.json --into experiments/peers/peers.png
