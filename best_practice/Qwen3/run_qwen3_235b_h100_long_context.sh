#!/usr/bin/env bash
# Qwen3-235B-A22B on 256 H100 (32 nodes), long sequences, BF16, dropless.
# SEQ_LEN chooses the row: 16384 (default), 32768, 65536 or 131072.
# Published: 237, 277, 320 and 357 TFLOPS/GPU in that order; with the flag
# --moe-router-force-load-balancing 295, 335, 368 and 389.
# Recipe: the Megatron MoE Model Zoo's published launch settings. README.md says what each setting buys.
#
# Variables of the environment and flags after the script's name win over what is set below.
# DRY_RUN=1 prints the job; CLUSTER=local SMOKE=1 runs it shrunk on this machine.
set -euo pipefail

: "${SEQ_LEN:=16384}"
# CP grows with the sequence, so a rank keeps 16,384 / TP tokens of it.
case $SEQ_LEN in
16384) : "${CP:=1}" "${RUN_NAME:=qwen3-235b-h100-16k}" ;;
32768) : "${CP:=2}" "${RUN_NAME:=qwen3-235b-h100-32k}" ;;
65536) : "${CP:=4}" "${RUN_NAME:=qwen3-235b-h100-64k}" ;;
131072) : "${CP:=8}" "${RUN_NAME:=qwen3-235b-h100-128k}" ;;
*)
  echo "error: SEQ_LEN='$SEQ_LEN' is not allowed: 16384, 32768, 65536, 131072" >&2
  exit 1
  ;;
esac

: "${NNODES:=32}" "${TP:=4}" "${PP:=8}" "${VPP:=4}" "${EP:=8}"
: "${MBS:=1}" "${GBS:=256}"
: "${PR:=bf16}" "${DISPATCHER:=deepep}" "${A2A_OVERLAP:=0}" "${OPTIMIZER_OFFLOAD:=0}" "${GPU:=H100}"
export MODEL=Qwen3-235B-A22B SEQ_LEN CP RUN_NAME NNODES TP PP VPP EP MBS GBS PR DISPATCHER \
  A2A_OVERLAP OPTIMIZER_OFFLOAD GPU

args=(
  --recompute-granularity selective
  --recompute-modules layernorm moe
)

exec bash "$(dirname -- "${BASH_SOURCE[0]}")/../../sbatch_benchmarking.sh" "${args[@]}" -- "$@"
