#!/usr/bin/env bash
# Convert Qwen2-57B-A14B between Hugging Face safetensors and Megatron-Core:
#
#   MODEL=Qwen2-57B-A14B TP=1 PP=4 EP=8 SOURCE_CKPT_PATH=… TARGET_CKPT_PATH=… \
#     bash ckpt_convert_scripts/Qwen2/convert_qwen2.sh
#
# ../README.md has the other variables.
set -euo pipefail

export MODEL=${MODEL:-Qwen2-57B-A14B}
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/../convert.sh" qwen2-moe "$@"
