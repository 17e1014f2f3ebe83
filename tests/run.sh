#!/usr/bin/env bash
# All tests and the style check, in the active environment (its packages come from requirements.txt).
#   bash tests/run.sh                  everything
#   bash tests/run.sh tests/data -k x  some of it: arguments go to pytest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
python -m ruff check .
python -m ruff format --check .
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
exec python -m pytest -n "${EMMENTAL_TEST_PROCESSES:-2}" --dist loadscope "$@"
