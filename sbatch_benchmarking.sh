#!/usr/bin/env bash
# Launch one Megatron-Core training job.
#
#   MODEL=DeepSeek-V3 CLUSTER=mine bash ./sbatch_benchmarking.sh [--megatron-flag value …]
#
# Sources the layers, then hands over to `python3 -m launcher`, which renders the job script and
# submits it. DRY_RUN=1 or --dry-run prints instead. design_docs/variables.md lists the variables.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
export -n SHELLOPTS BASHOPTS # else each program that is a Bash script gets this one's options
set +o posix
set -euo pipefail

WORKSPACE=$(dirname -- "$(realpath -- "${BASH_SOURCE[0]}")")
layer= # the file that is being sourced

# End the launch with one line; layers may call it.
fail() {
  layer=
  echo "error: $*" >&2
  exit 1
}

# Become `python3 -m launcher` with these words.
launcher() {
  local python=$WORKSPACE/.venv/launcher/bin/python
  if [[ ! -x $python ]]; then python=python3; fi
  command -v "$python" >/dev/null || fail "python3 is not on PATH; Python 3.9 or newer is needed"
  local name
  for name in $(compgen -A function); do export -fn "${name?}"; done # a Python of pyenv's is a script
  unset -v CDPATH GLOBIGNORE
  exec "$python" "$WORKSPACE/launcher/__main__.py" "$@"
}

# Take what is meant for the launcher out of the words: NAME=value in front, --dry-run, --help.
words=()
previous=
for word in "$@"; do
  if [[ $word == -h || $word == --help ]]; then
    launcher help "${LAUNCHER_COMMAND:-submit}"
  elif [[ $word == --dry-run ]]; then
    export DRY_RUN=1
  elif [[ $word =~ ^[A-Za-z_][A-Za-z0-9_]*= && ${#words[@]} == 0 ]]; then
    export "${word?}"
  elif [[ $word =~ ^[A-Za-z_][A-Za-z0-9_]*= && $previous == -- ]]; then
    fail "$word stands after a recipe, which has read its variables by then: write it before \`bash\`"
  else
    words+=("$word")
  fi
  previous=$word
done

: "${MODEL:=}" "${CLUSTER:=template}"
MODEL_NAME=${MODEL##*/}
MODEL_NAME=${MODEL_NAME%.yaml}
export WORKSPACE MODEL CLUSTER MODEL_NAME

cluster_conf=$WORKSPACE/cluster_configs/benchmarking/$CLUSTER.conf
if [[ $CLUSTER == *.conf ]]; then cluster_conf=$CLUSTER; fi

# Say which line of a layer failed. A last line that is merely false, `[[ … ]] && …`, is no failure.
failed() {
  local -r status=$1 line=$2 file=${BASH_SOURCE[1]}
  if ((BASH_SUBSHELL)) || [[ $file != "$layer" && $status == 1 ]]; then return 0; fi
  if [[ $file != "$layer" ]]; then fail "$layer could not be read: the line above says why"; fi
  fail "${file#"$WORKSPACE/"}:$line: \`$3\` failed with status $status"
}
# Say that a layer ended the launch: by `exit`, or by reading a variable that is not set.
stopped() {
  if [[ -z $layer ]]; then return 0; fi
  fail "${layer#"$WORKSPACE/"} ended the launch with status $1: a layer must not \`exit\`, and it" \
    "must write \${NAME:-} where NAME may be unset"
}
source_layer() {
  layer=$1
  set -aE +e
  trap 'failed "$?" "$LINENO" "$BASH_COMMAND"' ERR
  trap 'stopped "$?"' EXIT
  # shellcheck source=/dev/null
  source "$layer"
  trap - ERR EXIT
  set +aE -e
  layer=
}

# Which layer set which variable, for the launcher's messages.
LAYER_ORIGINS=
declare -A environment=() current=()
for name in $(compgen -e); do
  current[$name]=${!name}
  if [[ -n ${!name} ]]; then environment[$name]=${!name}; fi
done

for file in "$WORKSPACE"/runtime_configs/benchmarking/{common,runtime}.conf "$cluster_conf"; do
  # The launcher reports a missing cluster config: it knows the nearest names.
  if [[ ! -f $file ]]; then continue; fi
  source_layer "$file"
  LAYER_ORIGINS+="${file#"$WORKSPACE/"}:"
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

# `python3 -m launcher sweep` reads the layers of many jobs: the words, then the environment.
if [[ ${LAUNCHER_COMMAND:-} == layers ]]; then
  printf '\0'
  printf '%s\0' "${#words[@]}" ${words[@]+"${words[@]}"}
  exec env --null
fi
launcher "${LAUNCHER_COMMAND:-submit}" ${words[@]+"${words[@]}"}
