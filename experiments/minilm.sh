# Sourced by mrpc/run.sh, sst-2/run.sh, rte/run.sh and sts-b/run.sh, which set task, folder, epochs, batch and lambdas.
#   bash experiments/<task>/run.sh [RUN ...]
# RUN is dense, movement-15, movement-10, soft-movement-15, soft-movement-10, magnitude-15, magnitude-10 or l0; all of
# them by default. The pruned runs start from the dense one and learn from it, so it comes first. The same command
# resumes an interrupted run; a finished one is only evaluated again. GLUE is read from EMMENTAL_GLUE_DIR (default
# ../shared/data/glue).
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
glue=${EMMENTAL_GLUE_DIR:-../shared/data/glue}
model=$(python -m experiments.fetch minilm)
outputs=outputs/$task
precision=${PRECISION---bf16}

fine_prune() { # NAME MODEL FLAGS...
    local name=$1 start=$2
    shift 2
    echo "== $task: $name"
    # shellcheck disable=SC2086
    python masked_run_glue.py --data_dir "$glue/$folder" --task_name "$task" --model_name_or_path "$start" \
        --output_dir "$outputs/$name" --do_train --do_eval --evaluate_during_training --save_total_limit 1 \
        --per_gpu_train_batch_size 32 --per_gpu_eval_batch_size 64 --seed "${SEED:-42}" $precision "$@"
}

distilled=(--teacher_name_or_path "$outputs/dense" --alpha_ce 0.1 --alpha_distil 0.9 --temperature 2)
movement=(--pruning_method topK --global_topk --mask_init magnitude --mask_scale 1
    --mask_scores_learning_rate "$scores_rate")
soft=(--pruning_method sigmoied_threshold --mask_init constant --mask_scale 0 --initial_threshold 0
    --final_threshold 0.1 --regularization l1 --mask_scores_learning_rate "$soft_scores_rate")

run() { # RUN
    local pruned=("$outputs/dense" --num_train_epochs "$epochs" --learning_rate "$rate" --final_warmup 3)
    pruned+=(--per_gpu_train_batch_size "${batch:-32}" "${distilled[@]}")
    case $1 in
    dense) fine_prune dense "$model" --model_type bert --num_train_epochs "$dense_epochs" --learning_rate "$dense_rate" ;;
    movement-15) fine_prune "$1" "${pruned[@]}" "${movement[@]}" --final_threshold 0.15 ;;
    movement-10) fine_prune "$1" "${pruned[@]}" "${movement[@]}" --final_threshold 0.1 ;;
    magnitude-15) fine_prune "$1" "${pruned[@]}" --pruning_method magnitude --final_threshold 0.15 ;;
    magnitude-10) fine_prune "$1" "${pruned[@]}" --pruning_method magnitude --final_threshold 0.1 ;;
    soft-movement-15) fine_prune "$1" "${pruned[@]}" "${soft[@]}" --final_lambda "$lambda_15" ;;
    soft-movement-10) fine_prune "$1" "${pruned[@]}" "${soft[@]}" --final_lambda "$lambda_10" ;;
    l0) fine_prune l0 "${pruned[@]}" --pruning_method l0 --mask_scale 2.197 --mask_scores_learning_rate 1e-1 \
        --initial_threshold 1 --final_threshold 1 --regularization l0 --final_lambda "$lambda_l0" ;;
    *) echo "unknown run $1" >&2 && exit 2 ;;
    esac
    python -m experiments.collect --into "experiments/$task/results.json" "$outputs/$1"
}

[ $# -gt 0 ] || set -- dense movement-15 movement-10 soft-movement-15 soft-movement-10 magnitude-15 magnitude-10 l0
for name in "$@"; do run "$name"; done
