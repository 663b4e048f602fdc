#!/usr/bin/env bash
# Convert DeepSeek-V3.2 between Hugging Face safetensors and Megatron-Core:
#
#   MODEL=/path/of/DeepSeek-V3.2.yaml TP=1 PP=16 EP=64 SOURCE_CKPT_PATH=… TARGET_CKPT_PATH=… \
#     bash ckpt_convert_scripts/DeepSeek-V3.2/convert_deepseek_v3_2.sh
#
# ../README.md has the other variables.
set -euo pipefail

exec bash "$(dirname -- "${BASH_SOURCE[0]}")/../convert.sh" deepseek-v3.2 "$@"
