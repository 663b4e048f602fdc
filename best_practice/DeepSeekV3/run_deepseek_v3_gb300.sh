#!/usr/bin/env bash
# DeepSeek-V3 on 128 GB300 (32 trays of 4), sequence 4,096, MXFP8, MTP, forced load balance.
# Published: 1,233 TFLOPS/GPU (headline of arXiv:2603.07685, whose abstract does not state the settings).
# Recipe: the Megatron MoE Model Zoo's published launch settings. README.md says what each setting buys.
#
# Variables of the environment and flags after the script's name win over what is set below.
# DRY_RUN=1 prints the job; CLUSTER=local SMOKE=1 runs it shrunk on this machine.
set -euo pipefail

: "${GB200_CLUSTER:=1}" "${SEGMENT:=8}"
: "${NNODES:=32}" "${TP:=1}" "${PP:=4}" "${VPP:=4}" "${EP:=32}" "${CP:=1}"
: "${MBS:=1}" "${GBS:=4096}" "${SEQ_LEN:=4096}"
: "${PR:=mxfp8}" "${DISPATCHER:=hybridep}" "${A2A_OVERLAP:=0}" "${OPTIMIZER_OFFLOAD:=0}"
: "${RUN_NAME:=dsv3-gb300-4k}" "${GPU:=GB300}"
export MODEL=DeepSeek-V3 GB200_CLUSTER SEGMENT NNODES TP PP VPP EP CP MBS GBS SEQ_LEN PR \
  DISPATCHER A2A_OVERLAP OPTIMIZER_OFFLOAD RUN_NAME GPU

args=(
  --recompute-granularity selective
  --recompute-modules mlp
  --cuda-graph-impl transformer_engine
  --cuda-graph-modules attn moe_router moe_preprocess
  --te-rng-tracker
  --cuda-graph-warmup-steps 0
  --pipeline-model-parallel-layout 'Et*4|(tttt|)*14tmL'
  --mtp-num-layers 1
  --mtp-loss-scaling-factor 0.1
  --moe-router-force-load-balancing
)

exec bash "$(dirname -- "${BASH_SOURCE[0]}")/../../sbatch_benchmarking.sh" "${args[@]}" -- "$@"
