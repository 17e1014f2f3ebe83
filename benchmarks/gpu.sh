#!/usr/bin/env bash
# Measures training and serving on a GPU and prints tables; --json FILE writes the numbers and the device's name.
#   bash benchmarks/gpu.sh [--device cpu] [flags of python -m benchmarks.gpu, see --help]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
exec python -m benchmarks.gpu "$@"
