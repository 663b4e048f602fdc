#!/usr/bin/env bash
# Convert the language model of Qwen3.5 or Qwen3.6 between Hugging Face safetensors and Megatron-Core:
#
#   MODEL=/path/of/Qwen3.5-35B-A3B.yaml TP=1 PP=4 EP=8 SOURCE_CKPT_PATH=… TARGET_CKPT_PATH=… \
#     bash ckpt_convert_scripts/Qwen3.5/convert_qwen3_5.sh
#
# ../README.md has the other variables.
set -euo pipefail

exec bash "$(dirname -- "${BASH_SOURCE[0]}")/../convert.sh" qwen3-5-moe "$@"
