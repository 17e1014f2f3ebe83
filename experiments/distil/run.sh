#!/usr/bin/env bash
# A 3-layer student of MiniLM on the English sentences of GLUE: started from the teacher's layers, and at random.
#   bash experiments/distil/run.sh [text|corpus|teacher|student|from-teacher|from-random|collect ...]
# All steps by default, in this order. The same command resumes an interrupted run. GLUE is read from EMMENTAL_GLUE_DIR
# (default ../shared/data/glue). EPOCHS (1) and LINES_LIMIT (0: all) make it shorter; OUTPUTS is the runs' folder,
# RESULTS that of the numbers and the picture.
. "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
glue=${EMMENTAL_GLUE_DIR:-../shared/data/glue}
model=$(python -m experiments.fetch minilm)
outputs=${OUTPUTS:-outputs/distil}
results=${RESULTS:-experiments/distil}
precision=${PRECISION---bf16}
mkdir -p "$outputs"

distil() { # NAME STUDENT_CONFIG TEACHER FLAGS...
    local name=$1 config=$2 teacher=$3
    shift 3
    echo "== $name"
    # shellcheck disable=SC2086
    python distiller.py --dump_path "$outputs/$name" --data_file "$outputs/corpus" --mlm --teacher_type bert \
        --student_config "$config" --teacher_name "$teacher" --n_epoch "${EPOCHS:-1}" --batch_size 32 \
        --gradient_accumulation_steps 1 --log_interval "${LOG_INTERVAL:-50}" --checkpoint_interval 500 $precision "$@"
}

# The same weights of the losses as DistilBERT's: 5, 2 and 1.
student=(--student_type distilbert --alpha_ce 5 --alpha_mlm 2 --alpha_cos 1 --learning_rate 5e-4)

step() { # NAME
    case $1 in
    text) python -m experiments.distil.sentences --glue "$glue" --lines "${LINES_LIMIT:-0}" --into "$outputs/text.txt" ;;
    corpus) python -m emmental.data.corpus binarize --file_path "$outputs/text.txt" --model_name_or_path "$model" \
        --output "$outputs/corpus" --min_length 5 --max_length 128 ;;
    # The encoder has no head. So a head, tied to the embeddings, is trained first, together with the encoder.
    teacher) distil teacher "$model/config.json" "$model" --student_type bert --student_pretrained_weights "$model" \
        --alpha_ce 0 --alpha_mlm 1 --learning_rate 2e-4 ;;
    student) python -m emmental.training.student_init --model_name_or_path "$outputs/teacher" --num_layers 3 \
        --output "$outputs/student" ;;
    from-teacher) distil from-teacher "$outputs/student/config.json" "$outputs/teacher" "${student[@]}" \
        --student_pretrained_weights "$outputs/student" ;;
    from-random) distil from-random "$outputs/student/config.json" "$outputs/teacher" "${student[@]}" ;;
    collect) python -m experiments.distil.collect --runs "$outputs" --into "$results" ;;
    *) echo "unknown step $1" >&2 && exit 2 ;;
    esac
}

[ $# -gt 0 ] || set -- text corpus teacher student from-teacher from-random collect
for name in "$@"; do step "$name"; done
