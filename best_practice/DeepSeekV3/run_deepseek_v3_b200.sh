#!/usr/bin/env bash
# DeepSeek-V3 on 256 B200 (32 nodes), sequence 4,096, MXFP8, MTP, forced load balance.
# Published: no figure for these settings.
# Recipe: the Megatron MoE Model Zoo's published launch settings. README.md says what each setting buys.
#
# Variables of the environment and flags after the script's name win over what is set below.
# DRY_RUN=1 prints the job; CLUSTER=local SMOKE=1 runs it shrunk on this machine.
set -euo pipefail

: "${NNODES:=32}" "${TP:=1}" "${PP:=8}" "${VPP:=2}" "${EP:=32}" "${CP:=1}"
: "${MBS:=1}" "${GBS:=8192}" "${SEQ_LEN:=4096}"
: "${PR:=mxfp8}" "${DISPATCHER:=deepep}" "${A2A_OVERLAP:=0}" "${OPTIMIZER_OFFLOAD:=0}"
: "${RUN_NAME:=dsv3-b200-4k}" "${GPU:=B200}"
export MODEL=DeepSeek-V3 NNODES TP PP VPP EP CP MBS GBS SEQ_LEN PR DISPATCHER A2A_OVERLAP \
  OPTIMIZER_OFFLOAD RUN_NAME GPU

args=(
  --recompute-granularity selective
  --recompute-modules mlp mla_up_proj
  --pipeline-model-parallel-layout 'Et*4|(tttt|)*14tmL'
  --mtp-num-layers 1
  --mtp-loss-scaling-factor 0.1
  --moe-deepep-num-sms 24
  --moe-router-force-load-balancing
)

exec bash "$(dirname -- "${BASH_SOURCE[0]}")/../../sbatch_benchmarking.sh" "${args[@]}" -- "$@"
