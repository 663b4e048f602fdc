#!/usr/bin/env bash
# DeepSeek-V3 on 256 H100 (32 nodes; 262,144 tokens: 512, 64 nodes), FP8 blockwise, MTP.
# SEQ_LEN chooses the row: 4096, 16384 (default), 32768, 65536, 131072 or 262144.
# Published: no figure.
# Recipe: the Megatron MoE Model Zoo's published launch settings. README.md says what each setting buys.
#
# Variables of the environment and flags after the script's name win over what is set below.
# DRY_RUN=1 prints the job; CLUSTER=local SMOKE=1 runs it shrunk on this machine.
set -euo pipefail

: "${SEQ_LEN:=16384}"
# TP grows with the sequence, so a rank keeps 4,096 tokens of it; a batch keeps about 63M tokens.
case $SEQ_LEN in
4096) : "${TP:=1}" "${GBS:=8192}" "${NNODES:=32}" "${RUN_NAME:=dsv3-h100-256gpu-4k}" ;;
16384) : "${TP:=4}" "${GBS:=3840}" "${NNODES:=32}" "${RUN_NAME:=dsv3-h100-16k}" ;;
32768) : "${TP:=8}" "${GBS:=1920}" "${NNODES:=32}" "${RUN_NAME:=dsv3-h100-32k}" ;;
65536) : "${TP:=16}" "${GBS:=960}" "${NNODES:=32}" "${RUN_NAME:=dsv3-h100-64k}" ;;
131072) : "${TP:=32}" "${GBS:=480}" "${NNODES:=32}" "${RUN_NAME:=dsv3-h100-128k}" ;;
262144) : "${TP:=64}" "${GBS:=240}" "${NNODES:=64}" "${RUN_NAME:=dsv3-h100-256k}" ;;
*)
  echo "error: SEQ_LEN='$SEQ_LEN' is not allowed: 4096, 16384, 32768, 65536, 131072, 262144" >&2
  exit 1
  ;;
esac

: "${PP:=8}" "${VPP:=4}" "${EP:=32}" "${CP:=1}" "${MBS:=1}"
: "${PR:=fp8}" "${DISPATCHER:=deepep}" "${A2A_OVERLAP:=0}" "${OPTIMIZER_OFFLOAD:=1}" "${GPU:=H100}"
export MODEL=DeepSeek-V3 SEQ_LEN TP GBS NNODES RUN_NAME PP VPP EP CP MBS PR DISPATCHER A2A_OVERLAP \
  OPTIMIZER_OFFLOAD GPU

args=(
  --recompute-granularity selective
  --recompute-modules mla_up_proj moe mlp layernorm
  --pipeline-model-parallel-layout 'Et*2|(tt|)*22t|(tt|)*7mL'
  --mtp-num-layers 1
  --mtp-loss-scaling-factor 0.1
)

exec bash "$(dirname -- "${BASH_SOURCE[0]}")/../../sbatch_benchmarking.sh" "${args[@]}" -- "$@"
