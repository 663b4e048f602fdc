#!/usr/bin/env bash
# Convert a checkpoint; the first word is the mapping table, the rest goes to the launcher.
# The scripts of the model families call this; README.md has the variables.
export -n SHELLOPTS BASHOPTS # of the calling shell: they are not for other programs
set -euo pipefail

WORKSPACE=$(dirname -- "$(dirname -- "$(realpath -- "${BASH_SOURCE[0]}")")")
# Needs torch and nothing of Megatron: any Python that has it will do, a container's for instance.
python=$WORKSPACE/.venv/training/bin/python
if [[ ! -x $python ]]; then python=python3; fi
PYTHONPATH=$WORKSPACE${PYTHONPATH:+:$PYTHONPATH} exec "$python" -m launcher.convert "$@"
