#!/usr/bin/env bash
# Convert GLM-4.5, GLM-4.5-Air or GLM-4.6 between Hugging Face safetensors and Megatron-Core:
#
#   MODEL=/path/of/GLM-4.5-Air.yaml TP=1 PP=4 EP=8 SOURCE_CKPT_PATH=… TARGET_CKPT_PATH=… \
#     bash ckpt_convert_scripts/GLM-4.5/convert_glm4_5.sh
#
# ../README.md has the other variables.
set -euo pipefail

exec bash "$(dirname -- "${BASH_SOURCE[0]}")/../convert.sh" glm4-moe "$@"
