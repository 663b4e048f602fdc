#!/usr/bin/env bash
# Qwen3-235B-A22B on 256 H100 (32 nodes), sequence 4,096, BF16, forced load balance.
# Published: 320 TFLOPS/GPU (276 without the CUDA graphs, 245 without A2A_OVERLAP as well).
# Recipe: the Megatron MoE Model Zoo's published launch settings. README.md says what each setting buys.
#
# Variables of the environment and flags after the script's name win over what is set below.
# DRY_RUN=1 prints the job; CLUSTER=local SMOKE=1 runs it shrunk on this machine.
set -euo pipefail

: "${NNODES:=32}" "${TP:=2}" "${PP:=8}" "${VPP:=4}" "${EP:=32}" "${CP:=1}"
: "${MBS:=1}" "${GBS:=2048}" "${SEQ_LEN:=4096}"
: "${PR:=bf16}" "${DISPATCHER:=deepep}" "${A2A_OVERLAP:=1}" "${OPTIMIZER_OFFLOAD:=0}"
: "${RUN_NAME:=qwen3-235b-h100-4k}" "${GPU:=H100}"
export MODEL=Qwen3-235B-A22B NNODES TP PP VPP EP CP MBS GBS SEQ_LEN PR DISPATCHER A2A_OVERLAP \
  OPTIMIZER_OFFLOAD RUN_NAME GPU

args=(
  --recompute-granularity selective
  --recompute-modules moe_act layernorm
  --cuda-graph-impl transformer_engine
  --cuda-graph-modules moe_router moe_preprocess
  --moe-router-force-load-balancing
)

exec bash "$(dirname -- "${BASH_SOURCE[0]}")/../../sbatch_benchmarking.sh" "${args[@]}" -- "$@"
