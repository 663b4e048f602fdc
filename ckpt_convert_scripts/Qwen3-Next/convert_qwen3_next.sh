#!/usr/bin/env bash
# Convert Qwen3-Next-80B-A3B between Hugging Face safetensors and Megatron-Core:
#
#   MODEL=Qwen3-Next-80B-A3B TP=1 PP=4 EP=8 SOURCE_CKPT_PATH=… TARGET_CKPT_PATH=… \
#     bash ckpt_convert_scripts/Qwen3-Next/convert_qwen3_next.sh
#
# ../README.md has the other variables.
set -euo pipefail

export MODEL=${MODEL:-Qwen3-Next-80B-A3B}
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/../convert.sh" qwen3-next "$@"
