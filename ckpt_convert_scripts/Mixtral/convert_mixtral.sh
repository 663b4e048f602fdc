#!/usr/bin/env bash
# Convert Mixtral-8x7B or Mixtral-8x22B (MODEL=Mixtral-8x22B) between Hugging Face safetensors and Megatron-Core:
#
#   MODEL=Mixtral-8x7B TP=1 PP=4 EP=8 SOURCE_CKPT_PATH=… TARGET_CKPT_PATH=… \
#     bash ckpt_convert_scripts/Mixtral/convert_mixtral.sh
#
# ../README.md has the other variables.
set -euo pipefail

export MODEL=${MODEL:-Mixtral-8x7B}
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/../convert.sh" mixtral "$@"
