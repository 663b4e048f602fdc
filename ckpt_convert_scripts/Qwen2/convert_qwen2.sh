#!/usr/bin/env bash
# Qwen2-57B-A14B between Hugging Face safetensors and Megatron-Core:
#
#   MODEL=Qwen2-57B-A14B SOURCE_CKPT_PATH=… TARGET_CKPT_PATH=… TP=… PP=… EP=… bash ckpt_convert_scripts/Qwen2/convert_qwen2.sh
#
# ../README.md has the other variables.
set -euo pipefail

export MODEL=${MODEL:-Qwen2-57B-A14B}
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/../convert.sh" qwen2-moe "$@"
