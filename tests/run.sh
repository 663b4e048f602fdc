#!/usr/bin/env bash
# The one test command.
#
#   bash tests/run.sh           everything
#   bash tests/run.sh --fast    what takes seconds: no training processes
#
# Further words go to pytest.
set -euo pipefail

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
readonly ROOT
cd "$ROOT"
bash launcher/setup.sh test
# Training processes share the cores among themselves; the fast tests are single processes.
if [[ ${1:-} == --fast ]]; then
  set -- -m "not slow" --numprocesses auto "${@:2}"
else
  bash tests/support/slurm_packages.sh
fi
exec .venv/training/bin/python -m pytest "$@"
