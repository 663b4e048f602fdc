#!/usr/bin/env bash
# Launch one Megatron-Core training job.
#
#   MODEL=DeepSeek-V3 CLUSTER=mine bash ./sbatch_benchmarking.sh [--megatron-flag value …]
#
# Sources the layers, then hands over to `python -m launcher`, which renders the job script and
# submits it. DRY_RUN=1 prints instead. README.md has the table of variables.
set -euo pipefail

WORKSPACE=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
: "${MODEL:=}" "${CLUSTER:=template}"
MODEL_NAME=${MODEL##*/}
MODEL_NAME=${MODEL_NAME%.yaml}
export WORKSPACE MODEL CLUSTER MODEL_NAME

# Become `python -m launcher` with these words.
launcher() {
  local python=$WORKSPACE/.venv/launcher/bin/python
  if [[ ! -x $python ]]; then python=python3; fi
  if ! command -v "$python" >/dev/null; then
    echo "error: python3 is not on PATH; Python 3.9 or newer is needed" >&2
    exit 1
  fi
  exec "$python" "$WORKSPACE/launcher/__main__.py" "$@"
}

for word in "$@"; do
  if [[ $word == -h || $word == --help ]]; then launcher help "${LAUNCHER_COMMAND:-submit}"; fi
done

cluster_conf=$WORKSPACE/cluster_configs/benchmarking/$CLUSTER.conf
if [[ $CLUSTER == *.conf ]]; then cluster_conf=$CLUSTER; fi

# Which layer set which variable, for the launcher's messages.
LAYER_ORIGINS=
declare -A environment=() current=()
for name in $(compgen -e); do
  current[$name]=${!name}
  if [[ -n ${!name} ]]; then environment[$name]=${!name}; fi
done

for layer in "$WORKSPACE"/runtime_configs/benchmarking/{common,runtime}.conf "$cluster_conf"; do
  # The launcher reports a missing cluster config: it knows the nearest names.
  if [[ ! -f $layer ]]; then continue; fi
  set -a
  # shellcheck source=/dev/null
  source "$layer"
  set +a
  LAYER_ORIGINS+="${layer#"$WORKSPACE/"}:"
  for name in $(compgen -e); do
    if [[ -n ${environment[$name]:-} ]]; then
      # The environment wins, even over a layer that assigns without asking.
      if [[ ${!name} != "${environment[$name]}" ]]; then printf -v "$name" %s "${environment[$name]}"; fi
    elif [[ -n ${!name} && ${!name} != "${current[$name]:-}" ]]; then
      LAYER_ORIGINS+=" $name"
      current[$name]=${!name}
    fi
  done
  LAYER_ORIGINS+=$'\n'
done
export LAYER_ORIGINS

# `python -m launcher sweep` reads the layers of many jobs: the words, then the environment.
if [[ ${LAUNCHER_COMMAND:-} == layers ]]; then
  printf '%s\0' "$#" "$@"
  exec env --null
fi

launcher "${LAUNCHER_COMMAND:-submit}" "$@"
