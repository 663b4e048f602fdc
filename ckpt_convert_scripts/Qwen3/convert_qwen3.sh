#!/usr/bin/env bash
# Convert Qwen3-235B-A22B or Qwen3-30B-A3B (MODEL=Qwen3-30B-A3B) between Hugging Face safetensors and Megatron-Core:
#
#   MODEL=Qwen3-235B-A22B TP=1 PP=4 EP=8 SOURCE_CKPT_PATH=… TARGET_CKPT_PATH=… \
#     bash ckpt_convert_scripts/Qwen3/convert_qwen3.sh
#
# ../README.md has the other variables.
set -euo pipefail

export MODEL=${MODEL:-Qwen3-235B-A22B}
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/../convert.sh" qwen3-moe "$@"
