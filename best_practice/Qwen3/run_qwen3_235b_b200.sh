#!/usr/bin/env bash
# Qwen3-235B-A22B on 128 B200 (16 nodes), sequence 4,096, BF16, forced load balance.
# Published: no figure for these settings.
# Recipe: the Megatron MoE Model Zoo's published launch settings. README.md says what each setting buys.
#
# Variables of the environment and flags after the script's name win over what is set below.
# DRY_RUN=1 prints the job; CLUSTER=local SMOKE=1 runs it shrunk on this machine.
set -euo pipefail

: "${NNODES:=16}" "${TP:=1}" "${PP:=4}" "${VPP:=24}" "${EP:=16}" "${CP:=1}"
: "${MBS:=1}" "${GBS:=1024}" "${SEQ_LEN:=4096}"
: "${PR:=bf16}" "${DISPATCHER:=deepep}" "${A2A_OVERLAP:=1}" "${OPTIMIZER_OFFLOAD:=0}"
: "${RUN_NAME:=qwen3-235b-b200-4k}" "${GPU:=B200}"
export MODEL=Qwen3-235B-A22B NNODES TP PP VPP EP CP MBS GBS SEQ_LEN PR DISPATCHER A2A_OVERLAP \
  OPTIMIZER_OFFLOAD RUN_NAME GPU

args=(
  --moe-router-force-load-balancing
)

exec bash "$(dirname -- "${BASH_SOURCE[0]}")/../../sbatch_benchmarking.sh" "${args[@]}" -- "$@"
