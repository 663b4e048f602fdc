#!/usr/bin/env bash
# Qwen3-30B-A3B on 32 H100 (4 nodes), sequence 4,096, BF16, forced load balance.
# RECOMPUTE chooses the recipe: none (default, micro-batch 1) or full (micro-batch 4).
# Published: no figure.
# Recipe: the Megatron MoE Model Zoo's published launch settings. README.md says what each setting buys.
#
# Variables of the environment and flags after the script's name win over what is set below.
# DRY_RUN=1 prints the job; CLUSTER=local SMOKE=1 runs it shrunk on this machine.
set -euo pipefail

args=(--moe-router-force-load-balancing)
: "${RECOMPUTE:=none}"
case $RECOMPUTE in
none) : "${MBS:=1}" "${RUN_NAME:=qwen3-30b-h100-4k}" ;;
full)
  : "${MBS:=4}" "${RUN_NAME:=qwen3-30b-h100-4k-full-recompute}"
  args+=(--recompute-granularity full --recompute-method uniform --recompute-num-layers 1)
  ;;
*)
  echo "error: RECOMPUTE='$RECOMPUTE' is not allowed: none, full" >&2
  exit 1
  ;;
esac

: "${NNODES:=4}" "${TP:=1}" "${PP:=1}" "${VPP:=1}" "${EP:=8}" "${CP:=1}"
: "${GBS:=256}" "${SEQ_LEN:=4096}"
: "${PR:=bf16}" "${DISPATCHER:=alltoall}" "${A2A_OVERLAP:=0}" "${OPTIMIZER_OFFLOAD:=0}" "${GPU:=H100}"
export MODEL=Qwen3-30B-A3B MBS RUN_NAME NNODES TP PP VPP EP CP GBS SEQ_LEN PR DISPATCHER \
  A2A_OVERLAP OPTIMIZER_OFFLOAD GPU

exec bash "$(dirname -- "${BASH_SOURCE[0]}")/../../sbatch_benchmarking.sh" "${args[@]}" -- "$@"
