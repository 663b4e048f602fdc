#!/usr/bin/env bash
# The one test command.
#
#   bash tests/run.sh              everything
#   bash tests/run.sh --fast       what starts no training, daemons, browser or whole conversions
#   bash tests/run.sh --coverage   the same, and how much of launcher/ it runs
#   bash tests/run.sh --help       this text; installs nothing
#
# Further words go to pytest.
export -n SHELLOPTS BASHOPTS # of the calling shell: they are not for other programs
set -euo pipefail

ROOT=$(dirname -- "$(dirname -- "$(realpath -- "${BASH_SOURCE[0]}")")")
readonly ROOT
case ${1:-} in
-h | --help)
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
  exit
  ;;
esac
cd "$ROOT"
bash launcher/setup.sh test
pytest() { .venv/training/bin/python -m pytest "$@"; }
case ${1:-} in
--fast) pytest -m "not slow" --numprocesses auto "${@:2}" ;;
--coverage)
  # Launches are processes of their own, in the first Python that has PyYAML.
  export PATH=$ROOT/.venv/training/bin:$PATH
  if [[ -x .venv/launcher/bin/python ]]; then
    .venv/launcher/bin/python -m pip install --quiet "$(sed -n 's/^ *"\(coverage==.*\)",/\1/p' pyproject.toml)"
  fi
  pytest -m "not slow" --numprocesses auto --cov --cov-report term "${@:2}"
  ;;
*)
  bash tests/support/slurm_packages.sh
  # Files of training runs and of daemons wait as much as they compute, so two share the machine.
  status=0
  pytest -m "not slow" --numprocesses auto "$@" || status=$?
  pytest -m slow --numprocesses 2 --dist loadfile "$@" || status=$?
  exit "$status"
  ;;
esac
