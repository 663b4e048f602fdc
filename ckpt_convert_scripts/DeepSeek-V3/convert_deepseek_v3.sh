#!/usr/bin/env bash
# Convert DeepSeek-V3 or Kimi-K2 (MODEL=Kimi-K2) between Hugging Face safetensors and Megatron-Core:
#
#   MODEL=DeepSeek-V3 TP=1 PP=4 EP=8 SOURCE_CKPT_PATH=… TARGET_CKPT_PATH=… \
#     bash ckpt_convert_scripts/DeepSeek-V3/convert_deepseek_v3.sh
#
# ../README.md has the other variables.
set -euo pipefail

export MODEL=${MODEL:-DeepSeek-V3}
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/../convert.sh" deepseek-v3 "$@"
