#!/usr/bin/env bash
# Convert gpt-oss-20b or gpt-oss-120b between Hugging Face safetensors and Megatron-Core:
#
#   MODEL=/path/of/gpt-oss-120b.yaml TP=1 PP=4 EP=8 SOURCE_CKPT_PATH=… TARGET_CKPT_PATH=… \
#     bash ckpt_convert_scripts/gpt-oss/convert_gpt_oss.sh
#
# ../README.md has the other variables.
set -euo pipefail

exec bash "$(dirname -- "${BASH_SOURCE[0]}")/../convert.sh" gpt-oss "$@"
