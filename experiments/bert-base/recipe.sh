# Sourced by mnli.sh and qqp.sh, which set epochs, warmup, task and folder.
set -euo pipefail
usage="usage: ${task}.sh movement|soft_movement|magnitude|l0 GLUE_FOLDER [flags of masked_run_glue.py]"
method=${1:?$usage} glue=${2:?$usage}
shift 2
HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-0}
. "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
case $method in
movement) pruning=(--pruning_method topK --initial_threshold 1 --final_threshold "${KEEP:-0.1}") ;;
magnitude) pruning=(--pruning_method magnitude --initial_threshold 1 --final_threshold "${KEEP:-0.1}") ;;
soft_movement) # a larger LAMBDA leaves fewer weights. Scores start at sigmoid(0) = 0.5.
    pruning=(--pruning_method sigmoied_threshold --initial_threshold 0 --final_threshold 0.1
        --regularization l1 --final_lambda "${LAMBDA:-400}") ;;
l0)
    pruning=(--pruning_method l0 --mask_scale 2.197 --initial_threshold 1 --final_threshold 1
        --mask_scores_learning_rate 1e-1 --regularization l0 --final_lambda "${LAMBDA:-125}" --initial_warmup 1
        --final_warmup 1) ;;
*) echo "$usage" >&2 && exit 2 ;;
esac
gpus=${GPUS:-1}
start=(python)
[ "$gpus" -gt 1 ] && start=(torchrun --nproc_per_node "$gpus")
"${start[@]}" masked_run_glue.py --data_dir "$glue/$folder" --task_name "$task" \
    --model_name_or_path "${MODEL:-google-bert/bert-base-uncased}" --output_dir "outputs/bert-base/$task-$method${KEEP:+-$KEEP}" \
    --do_train --do_eval --evaluate_during_training --save_steps 5000 --save_total_limit 2 \
    --per_gpu_train_batch_size $((32 / gpus)) --per_gpu_eval_batch_size 128 --num_train_epochs "$epochs" \
    --warmup_steps "$warmup" --learning_rate 3e-5 --mask_scores_learning_rate 1e-2 "${pruning[@]}" "$@"
