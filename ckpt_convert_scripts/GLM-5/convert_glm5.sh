#!/usr/bin/env bash
# Convert GLM-5 between Hugging Face safetensors and Megatron-Core:
#
#   MODEL=/path/of/GLM-5.yaml TP=1 PP=13 EP=32 SOURCE_CKPT_PATH=… TARGET_CKPT_PATH=… \
#     bash ckpt_convert_scripts/GLM-5/convert_glm5.sh
#
# ../README.md has the other variables.
set -euo pipefail

exec bash "$(dirname -- "${BASH_SOURCE[0]}")/../convert.sh" glm-moe-dsa "$@"
