#!/usr/bin/env bash
# DeepSeek-V3 on 1,024 H100 (128 nodes), sequence 4,096, FP8 blockwise, MTP.
# Published: 338 TFLOPS/GPU (Megatron-Bridge, NeMo 25.09: same parallelism, GPUs and batch).
# Recipe: the Megatron MoE Model Zoo's published launch settings. README.md says what each setting buys.
#
# Variables of the environment and flags after the script's name win over what is set below.
# DRY_RUN=1 prints the job; CLUSTER=local SMOKE=1 runs it shrunk on this machine.
set -euo pipefail

: "${NNODES:=128}" "${TP:=2}" "${PP:=8}" "${VPP:=4}" "${EP:=64}" "${CP:=1}"
: "${MBS:=1}" "${GBS:=8192}" "${SEQ_LEN:=4096}"
: "${PR:=fp8}" "${DISPATCHER:=deepep}" "${A2A_OVERLAP:=1}" "${OPTIMIZER_OFFLOAD:=0}"
: "${RUN_NAME:=dsv3-h100-4k}" "${GPU:=H100}"
export MODEL=DeepSeek-V3 NNODES TP PP VPP EP CP MBS GBS SEQ_LEN PR DISPATCHER A2A_OVERLAP \
  OPTIMIZER_OFFLOAD RUN_NAME GPU

args=(
  --recompute-granularity selective
  --recompute-modules mla_up_proj mlp
  --pipeline-model-parallel-layout 'Et|(tt|)*30mL'
  --mtp-num-layers 1
  --mtp-loss-scaling-factor 0.1
)

exec bash "$(dirname -- "${BASH_SOURCE[0]}")/../../sbatch_benchmarking.sh" "${args[@]}" -- "$@"
