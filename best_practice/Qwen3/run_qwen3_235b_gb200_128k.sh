#!/usr/bin/env bash
# Qwen3-235B-A22B on 128 GB200 (32 trays of 4), sequence 131,072, MXFP8, forced load balance.
# Published: 1,150 TFLOPS/GPU (a row that was first labelled GB300, then GB200).
# Recipe: the Megatron MoE Model Zoo's published launch settings. README.md says what each setting buys.
#
# Variables of the environment and flags after the script's name win over what is set below.
# DRY_RUN=1 prints the job; CLUSTER=local SMOKE=1 runs it shrunk on this machine.
set -euo pipefail

: "${GB200_CLUSTER:=1}" "${SEGMENT:=8}"
: "${NNODES:=32}" "${TP:=4}" "${PP:=4}" "${VPP:=12}" "${EP:=32}" "${CP:=4}"
: "${MBS:=1}" "${GBS:=1024}" "${SEQ_LEN:=131072}"
: "${PR:=mxfp8}" "${DISPATCHER:=hybridep}" "${A2A_OVERLAP:=0}" "${OPTIMIZER_OFFLOAD:=0}"
: "${RUN_NAME:=qwen3-235b-gb200-128k}" "${GPU:=GB200}"
export MODEL=Qwen3-235B-A22B GB200_CLUSTER SEGMENT NNODES TP PP VPP EP CP MBS GBS SEQ_LEN PR \
  DISPATCHER A2A_OVERLAP OPTIMIZER_OFFLOAD RUN_NAME GPU

args=(
  --recompute-granularity selective
  --recompute-modules moe_act layernorm
  --moe-router-force-load-balancing
)

exec bash "$(dirname -- "${BASH_SOURCE[0]}")/../../sbatch_benchmarking.sh" "${args[@]}" -- "$@"
