#!/usr/bin/env bash
# Qwen3-235B-A22B on 256 GB200 (64 trays of 4), sequence 4,096, BF16, forced load balance.
# Published: 750 TFLOPS/GPU.
# Recipe: the Megatron MoE Model Zoo's published launch settings. README.md says what each setting buys.
#
# Variables of the environment and flags after the script's name win over what is set below.
# DRY_RUN=1 prints the job; CLUSTER=local SMOKE=1 runs it shrunk on this machine.
set -euo pipefail

: "${GB200_CLUSTER:=1}" "${SEGMENT:=2}"
: "${NNODES:=64}" "${TP:=1}" "${PP:=8}" "${VPP:=1}" "${EP:=8}" "${CP:=1}"
: "${MBS:=1}" "${GBS:=8192}" "${SEQ_LEN:=4096}"
: "${PR:=bf16}" "${DISPATCHER:=hybridep}" "${A2A_OVERLAP:=0}" "${OPTIMIZER_OFFLOAD:=0}"
: "${RUN_NAME:=qwen3-235b-gb200-4k-bf16}" "${GPU:=GB200}"
export MODEL=Qwen3-235B-A22B GB200_CLUSTER SEGMENT NNODES TP PP VPP EP CP MBS GBS SEQ_LEN PR \
  DISPATCHER A2A_OVERLAP OPTIMIZER_OFFLOAD RUN_NAME GPU

args=(
  --cuda-graph-impl transformer_engine
  --cuda-graph-modules attn moe_router moe_preprocess
  --moe-router-force-load-balancing
)

exec bash "$(dirname -- "${BASH_SOURCE[0]}")/../../sbatch_benchmarking.sh" "${args[@]}" -- "$@"
