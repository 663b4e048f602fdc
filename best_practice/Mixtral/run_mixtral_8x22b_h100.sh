#!/usr/bin/env bash
# Mixtral-8x22B on 128 H100 (16 nodes), sequence 4,096.
# VARIANT chooses the recipe; published TFLOPS/GPU in brackets:
#   dropless  BF16, the router's own choice, default (445)
#   balanced  BF16, forced load balance (465)
#   fp8       FP8 blockwise, forced load balance (560)
#   drop      BF16, tokens above capacity factor 1.0 dropped, the rest padded to it (470)
# Recipe: the Megatron MoE Model Zoo's published launch settings. README.md says what each setting buys.
#
# Variables of the environment and flags after the script's name win over what is set below.
# DRY_RUN=1 prints the job; CLUSTER=local SMOKE=1 runs it shrunk on this machine.
set -euo pipefail

args=()
: "${VARIANT:=dropless}"
case $VARIANT in
dropless) : "${RUN_NAME:=mixtral-8x22b-h100}" ;;
balanced) args+=(--moe-router-force-load-balancing) ;;
fp8)
  : "${PR:=fp8}"
  args+=(--moe-router-force-load-balancing)
  ;;
drop) args+=(--moe-expert-capacity-factor 1.0 --moe-pad-expert-input-to-capacity) ;;
*)
  echo "error: VARIANT='$VARIANT' is not allowed: dropless, balanced, fp8, drop" >&2
  exit 1
  ;;
esac
: "${RUN_NAME:=mixtral-8x22b-h100-$VARIANT}"

: "${NNODES:=16}" "${TP:=2}" "${PP:=8}" "${VPP:=7}" "${EP:=8}" "${CP:=1}"
: "${MBS:=1}" "${GBS:=256}" "${SEQ_LEN:=4096}"
: "${PR:=bf16}" "${DISPATCHER:=alltoall}" "${A2A_OVERLAP:=0}" "${OPTIMIZER_OFFLOAD:=0}" "${GPU:=H100}"
export MODEL=Mixtral-8x22B RUN_NAME NNODES TP PP VPP EP CP MBS GBS SEQ_LEN PR DISPATCHER \
  A2A_OVERLAP OPTIMIZER_OFFLOAD GPU

exec bash "$(dirname -- "${BASH_SOURCE[0]}")/../../sbatch_benchmarking.sh" "${args[@]}" -- "$@"
