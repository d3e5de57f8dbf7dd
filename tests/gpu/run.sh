#!/usr/bin/env bash
# On the GPU machine: install what wheels.sh fetched, then measure what only a GPU can answer.
#   tests/gpu/run.sh WHEELS OUTPUT MINUTES
# Results of parts lie in OUTPUT as gpu-PART.json; the same command goes on with the others.
set -euo pipefail
wheels=$1 output=$2 minutes=$3
python3 -m pip install --quiet --no-index --no-deps --break-system-packages "$wheels"/*.whl
export PYTHONPATH=$PWD HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
python3 -m pipeline.benchmark gpu --minutes "$minutes" --output_dir "$output"
