#!/usr/bin/env bash
# Convert DeepSeek-V2 or V2-Lite (MODEL=DeepSeek-V2-Lite) between Hugging Face safetensors and Megatron-Core:
#
#   MODEL=DeepSeek-V2 TP=1 PP=4 EP=8 SOURCE_CKPT_PATH=… TARGET_CKPT_PATH=… \
#     bash ckpt_convert_scripts/DeepSeek-V2/convert_deepseek_v2.sh
#
# ../README.md has the other variables.
set -euo pipefail

export MODEL=${MODEL:-DeepSeek-V2}
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/../convert.sh" deepseek-v2 "$@"
