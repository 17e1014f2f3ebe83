#!/usr/bin/env bash
# Movement pruning of MiniLM on SST-2 to 10 %, with distillation and without, each with several seeds.
#   bash experiments/sst-2-distil/run.sh [SEED ...]
# Seeds 1, 2 and 3 by default. Both kinds start from the fine-tuned model that is also the teacher; they differ only in
# the loss. The same command resumes an interrupted run. GLUE is read from EMMENTAL_GLUE_DIR (default
# ../shared/data/glue).
# MAX_STEPS (2000) is the length of each run; DENSE names another fine-tuned model, OUTPUTS and RESULTS other folders.
. "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
glue=${EMMENTAL_GLUE_DIR:-../shared/data/glue}
outputs=${OUTPUTS:-outputs/sst-2-distil}
results=${RESULTS:-experiments/sst-2-distil}
dense=${DENSE:-outputs/sst-2/dense}
precision=${PRECISION---bf16}
[ -f "$dense/config.json" ] || bash experiments/sst-2/run.sh dense

prune() { # NAME SEED FLAGS...
    local name=$1 seed=$2
    shift 2
    echo "== $name, seed $seed"
    # shellcheck disable=SC2086
    python masked_run_glue.py --data_dir "$glue/SST-2" --task_name sst-2 --model_name_or_path "$dense" \
        --output_dir "$outputs/$name-$seed" --seed "$seed" --do_train --do_eval --save_total_limit 1 --no-pictures \
        --per_gpu_train_batch_size 32 --per_gpu_eval_batch_size 64 --learning_rate 2e-4 \
        --pruning_method topK --mask_init magnitude --mask_scale 1 --mask_scores_learning_rate 2e-3 \
        --final_threshold 0.1 --final_warmup 3 --max_steps "${MAX_STEPS:-2000}" $precision "$@"
}

[ $# -gt 0 ] || set -- 1 2 3
for seed in "$@"; do
    prune alone "$seed"
    prune distilled "$seed" --teacher_name_or_path "$dense" --alpha_ce 0.1 --alpha_distil 0.9 --temperature 2
done
python -m experiments.spread --runs "$outputs" --into "$results/results.json"
