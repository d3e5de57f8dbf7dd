#!/usr/bin/env bash
# On the GPU machine: install what wheels.sh fetched, then measure what only a GPU can answer.
#   tests/gpu/run.sh WHEELS OUTPUT MINUTES
# Every row is in OUTPUT/gpu.json as soon as it is measured; the same command goes on after it.
set -euo pipefail
wheels=$1 output=$2 minutes=$3
# Beside the machine's own packages: what is there may not be replaceable.
site=${TMPDIR:-/tmp}/get-site
python3 -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade \
    --target "$site" "$wheels"/*.whl
export PYTHONPATH=$site:$PWD HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
python3 -m pipeline.benchmark gpu --minutes "$minutes" --output_dir "$output"
