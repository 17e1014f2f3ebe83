#!/usr/bin/env bash
# What a GPU makes of training and serving, as tables and, in gpu.json, as numbers with the device's name.
#   bash benchmarks/gpu.sh [--device cpu] [flags of python -m benchmarks.gpu, see --help]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
exec python -m benchmarks.gpu "$@"
