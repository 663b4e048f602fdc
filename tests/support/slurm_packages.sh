#!/usr/bin/env bash
# Installs what tests/slurm/ needs from Debian: Slurm's daemons, its plugin interface, a C compiler.
# Does nothing where it is there already; where it cannot be installed the tests say so and skip.
set -euo pipefail

readonly PACKAGES=(slurmctld slurmd slurm-client munge libslurm-dev libpmix-dev gcc libc6-dev)

has_all() {
  # shellcheck disable=SC2016 # dpkg's own format
  [[ $(dpkg-query --show --showformat '${db:Status-Status}\n' "${PACKAGES[@]}" 2>/dev/null | grep -cx installed) == "${#PACKAGES[@]}" ]]
}

if ! command -v apt-get >/dev/null || has_all; then exit 0; fi
if [[ $(id -u) != 0 ]]; then
  echo "Slurm's packages are missing and only root can install them: ${PACKAGES[*]}" >&2
  exit 0
fi
echo "Set-up: installing Slurm for the tests (once): ${PACKAGES[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
# Debian starts a daemon when it installs one; the tests start their own.
readonly policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
  trap 'rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
fi
{
  apt-get update -qq && apt-get install -y -qq --no-install-recommends "${PACKAGES[@]}"
} >/dev/null || echo "Slurm could not be installed; its tests will be skipped" >&2
