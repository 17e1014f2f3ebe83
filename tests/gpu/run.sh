#!/usr/bin/env bash
# Everything that only a GPU can show, in one go; where there is none, each test is skipped.
#   bash tests/gpu/run.sh [--device cpu] [arguments of pytest]
# With --device cpu the same tests run, fewer of them, on a CPU: so they do in the ordinary test run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export EMMENTAL_DEVICE=cuda HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
if [ "${1:-}" = --device ]; then
    EMMENTAL_DEVICE=$2
    shift 2
fi
python -c '
import json, os, torch, transformers
device = os.environ["EMMENTAL_DEVICE"]
if device == "cuda":
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device: all is skipped"
print(json.dumps({"device": device, "torch": torch.__version__, "transformers": transformers.__version__}))'
exec python -m pytest tests/gpu -p no:cacheprovider -rs "$@"
