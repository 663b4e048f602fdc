#!/usr/bin/env bash
# Makes the Python environments under .venv/ that this machine lacks. Nothing is written elsewhere.
#
#   bash launcher/setup.sh launcher [ARGUMENTS…]   PyYAML and Jinja2, then the launcher with ARGUMENTS
#   bash launcher/setup.sh training                Megatron-Core and torch, for CLUSTER=local
#   bash launcher/setup.sh test                    the same and what the tests need
export -n SHELLOPTS BASHOPTS # of the calling shell: they are not for other programs
set -euo pipefail

ROOT=$(dirname -- "$(dirname -- "$(realpath -- "${BASH_SOURCE[0]}")")")
readonly ROOT VENV=$ROOT/.venv
readonly TRAINING_PYTHONS=(3.12 3.13) # what the pinned megatron-core and torch have wheels for

say() { printf 'Set-up: %s\n' "$*" >&2; }
fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# Print the pinned requirements of groups of pyproject.toml, one a line.
pins() {
  local group
  for group in "$@"; do
    sed -n "/^$group = \[/,/^\]/s/^ *\"\(.*\)\",\{0,1\}.*/\1/p" "$ROOT/pyproject.toml"
  done
}

# Print the first Python on PATH, then under pyenv, that runs and has one of the wanted versions.
find_python() {
  local version candidate
  for version in "${TRAINING_PYTHONS[@]}"; do
    for candidate in "python$version" python3 python "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$version"*/bin/python3; do
      # A pyenv shim may be on PATH and refuse to run, so only an answer counts.
      if [[ $("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) == "$version" ]]; then
        "$candidate" -c 'import sys; print(sys.executable)'
        return
      fi
    done
  done
  return 1
}

# Print a uv to install with: the one on PATH, else a pinned one of our own.
find_uv() {
  if command -v uv; then return; fi
  local -r own=$VENV/uv/bin/uv
  if [[ ! -x $own ]]; then
    python3 -m venv "$VENV/uv" >&2 ||
      fail "python3 cannot make a virtual environment: install python3-venv (Debian, Ubuntu) or uv"
    "$VENV/uv/bin/python" -m pip install --quiet --no-cache-dir --disable-pip-version-check "$(pins setup)" >&2 ||
      fail "uv could not be installed from the package index; install uv yourself and try again"
  fi
  printf '%s\n' "$own"
}

# Only one process at a time makes environments; the others wait and find them made.
lock() {
  mkdir -p "$VENV" || fail "$VENV cannot be written; set-up installs only there"
  exec 9>"$VENV/lock"
  if flock --nonblock 9; then return; fi
  say "another set-up is at work in $VENV; waiting for it"
  flock 9
}

# Run a command that says nothing but errors, and show on a terminal how far folder $1 has grown.
watch_grow() {
  local -r folder=$1
  local child status=0
  if [[ ! -t 2 ]]; then
    "${@:2}" >&2
    return
  fi
  "${@:2}" >&2 &
  child=$!
  trap 'kill "$child" 2>/dev/null' EXIT
  while kill -0 "$child" 2>/dev/null; do
    printf '\rSet-up: %d s, %s so far ' "$SECONDS" "$(du -sh "$folder" 2>/dev/null | cut -f1)" >&2
    sleep 1
  done
  wait "$child" || status=$?
  trap - EXIT
  printf '\r\033[K' >&2
  return "$status"
}

# Say whether an environment was finished and holds all of the wanted requirements.
has_all() {
  [[ -f $1/installed ]] && ! grep -qFxvf "$1/installed" <<<"$2"
}

# Make $VENV/$1 from the pinned groups $2… unless it holds them already.
make_environment() {
  local -r target=$VENV/$1 wanted=$(pins "${@:2}")
  local python uv
  # `installed` is written last, so an interrupted set-up starts over.
  if has_all "$target" "$wanted"; then return; fi
  lock
  if has_all "$target" "$wanted"; then return; fi
  uv=$(find_uv)
  export UV_CACHE_DIR=$VENV/cache UV_PYTHON_INSTALL_DIR=$VENV/python
  if ! python=$(find_python); then
    say "no Python ${TRAINING_PYTHONS[0]} on PATH or under pyenv; asking uv for one"
    "$uv" python install --no-bin "${TRAINING_PYTHONS[0]}" >&2 ||
      fail "Megatron-Core needs Python ${TRAINING_PYTHONS[0]} or ${TRAINING_PYTHONS[1]}: install one (apt install python3.12, pyenv install 3.12, conda create python=3.12) and try again"
    python=${TRAINING_PYTHONS[0]}
  fi
  [[ -x $target/bin/python ]] || "$uv" venv --quiet --python "$python" "$target"
  say "installing into $target (once, about 5 GB): ${wanted//$'\n'/ }"
  rm -f "$target/installed"
  printf '%s\n' "$wanted" >"$target/wanted"
  # Compiled once here: a start of torch or Megatron-Core takes less than half as long.
  watch_grow "$target" "$uv" pip install --quiet --compile-bytecode \
    --python "$target/bin/python" --requirement "$target/wanted" ||
    fail "set-up of $target did not finish; the lines above say why, and a rerun continues"
  mv "$target/wanted" "$target/installed"
  rm -rf "$VENV/cache"
}

case ${1:-} in
launcher)
  lock
  readonly python=$VENV/launcher/bin/python
  if [[ ! -f $VENV/launcher/installed ]]; then
    say "python3 lacks PyYAML or Jinja2; installing into .venv/launcher (once): $(pins dependencies | tr '\n' ' ')"
    python3 -m venv "$VENV/launcher" >&2 || fail "python3 cannot make a virtual environment: install python3-venv, or PyYAML and Jinja2"
    pins dependencies | "$python" -m pip install --quiet --no-cache-dir --disable-pip-version-check --requirement /dev/stdin >&2 ||
      fail "PyYAML and Jinja2 could not be installed; install them for python3 and try again"
    touch "$VENV/launcher/installed"
  fi
  exec 9>&-
  exec "$python" "$ROOT/launcher/__main__.py" "${@:2}"
  ;;
training) make_environment training dependencies training ;;
test) make_environment training dependencies training test ;;
*) fail "usage: bash launcher/setup.sh launcher|training|test" ;;
esac
