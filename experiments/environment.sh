# Sourced by the experiments: a Python with the requirements. Uses the active virtual environment, or makes .venv.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
if [ -z "${VIRTUAL_ENV:-}" ] && [ -z "${CONDA_PREFIX:-}" ]; then
    [ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
    # shellcheck disable=SC1091
    . .venv/bin/activate
fi
python -m pip install --quiet --disable-pip-version-check -r requirements.txt
export TOKENIZERS_PARALLELISM=true HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
