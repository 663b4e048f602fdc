#!/usr/bin/env bash
# Qwen3-30B-A3B on 8 B200 (1 node), sequence 4,096, BF16, forced load balance.
# Published: no figure for these settings.
# Recipe: the Megatron MoE Model Zoo's published launch settings. README.md says what each setting buys.
#
# Variables of the environment and flags after the script's name win over what is set below.
# DRY_RUN=1 prints the job; CLUSTER=local SMOKE=1 runs it shrunk on this machine.
set -euo pipefail

: "${NNODES:=1}" "${TP:=1}" "${PP:=1}" "${VPP:=1}" "${EP:=8}" "${CP:=1}"
: "${MBS:=4}" "${GBS:=256}" "${SEQ_LEN:=4096}"
: "${PR:=bf16}" "${DISPATCHER:=alltoall}" "${A2A_OVERLAP:=0}" "${OPTIMIZER_OFFLOAD:=0}"
: "${RUN_NAME:=qwen3-30b-b200-1node}" "${GPU:=B200}"
export MODEL=Qwen3-30B-A3B NNODES TP PP VPP EP CP MBS GBS SEQ_LEN PR DISPATCHER A2A_OVERLAP \
  OPTIMIZER_OFFLOAD RUN_NAME GPU

args=(
  --recompute-granularity selective
  --recompute-modules moe_act layernorm
  --moe-router-force-load-balancing
)

exec bash "$(dirname -- "${BASH_SOURCE[0]}")/../../sbatch_benchmarking.sh" "${args[@]}" -- "$@"
