#!/usr/bin/env bash
# Kimi-K2 on 128 GB200 (32 trays of 4), sequence 131,072, MXFP8, forced load balance, 10 iterations.
# Published: no figure for these settings.
# Recipe: the Megatron MoE Model Zoo's published launch settings, the layout quoted once.
# README.md says what each setting buys.
#
# Variables of the environment and flags after the script's name win over what is set below.
# DRY_RUN=1 prints the job; CLUSTER=local SMOKE=1 runs it shrunk on this machine.
set -euo pipefail

: "${GB200_CLUSTER:=1}" "${SEGMENT:=16}"
: "${NNODES:=32}" "${TP:=16}" "${PP:=2}" "${VPP:=16}" "${EP:=64}" "${CP:=1}"
: "${MBS:=1}" "${GBS:=128}" "${SEQ_LEN:=131072}" "${PRETRAIN:=1}"
: "${PR:=mxfp8}" "${DISPATCHER:=hybridep}" "${A2A_OVERLAP:=0}" "${OPTIMIZER_OFFLOAD:=0}"
: "${RUN_NAME:=kimi-k2-gb200-128k}" "${GPU:=GB200}"
export MODEL=Kimi-K2 GB200_CLUSTER SEGMENT NNODES TP PP VPP EP CP MBS GBS SEQ_LEN PRETRAIN PR \
  DISPATCHER A2A_OVERLAP OPTIMIZER_OFFLOAD RUN_NAME GPU

args=(
  --recompute-granularity selective
  --recompute-modules mla_up_proj mlp layernorm moe_act
  --fine-grained-activation-offloading
  --offload-modules expert_fc1
  --pipeline-model-parallel-layout 'Et|t|(tt|)*29tL'
  --te-rng-tracker
  --moe-permute-fusion-into-hybridep
  --moe-router-force-load-balancing
  --train-iters 10
  --eval-iters 0
)
# Optimizer states wait in CPU memory between steps; no release has the flag, only the dev branch.
if [[ ${MCORE_RELEASE_VERSION:-} == dev ]]; then
  args+=(--offload-optimizer-states)
fi

exec bash "$(dirname -- "${BASH_SOURCE[0]}")/../../sbatch_benchmarking.sh" "${args[@]}" -- "$@"
