#!/usr/bin/env bash
# Qwen3-Next-80B-A3B on 128 H100 (16 nodes), sequence 4,096, BF16, MTP, forced load balance.
# Published: 89 TFLOPS/GPU, which its authors call not well tuned.
# Recipe: the Megatron MoE Model Zoo's published launch settings. README.md says what each setting buys.
#
# Variables of the environment and flags after the script's name win over what is set below.
# DRY_RUN=1 prints the job; CLUSTER=local SMOKE=1 runs it shrunk on this machine.
set -euo pipefail

: "${NNODES:=16}" "${TP:=1}" "${PP:=4}" "${VPP:=3}" "${EP:=32}" "${CP:=1}"
: "${MBS:=1}" "${GBS:=256}" "${SEQ_LEN:=4096}"
: "${PR:=bf16}" "${DISPATCHER:=deepep}" "${A2A_OVERLAP:=0}" "${OPTIMIZER_OFFLOAD:=0}"
: "${RUN_NAME:=qwen3-next-80b-h100-4k}" "${GPU:=H100}"
export MODEL=Qwen3-Next-80B-A3B NNODES TP PP VPP EP CP MBS GBS SEQ_LEN PR DISPATCHER A2A_OVERLAP \
  OPTIMIZER_OFFLOAD RUN_NAME GPU

args=(
  --recompute-granularity selective
  --recompute-modules moe_act shared_experts layernorm
  --moe-router-force-load-balancing
)
# Release 0.19 refuses the published MTP layer beside gated delta nets; the dev branch builds it.
if [[ ${MCORE_RELEASE_VERSION:-} == dev ]]; then
  args+=(--mtp-num-layers 1 --mtp-loss-scaling-factor 0.1)
fi

exec bash "$(dirname -- "${BASH_SOURCE[0]}")/../../sbatch_benchmarking.sh" "${args[@]}" -- "$@"
