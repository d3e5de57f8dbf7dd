#!/usr/bin/env bash
# On the GPU machine: install what wheels.sh fetched, then measure what only a GPU can answer.
#   tests/gpu/run.sh WHEELS OUTPUT MINUTES [RESULT]
# OUTPUT/gpu.json has every row as soon as it is measured; where it is, the same command goes on with
# what is missing. RESULT gets a copy of it, without the pairs and checkpoints that lie beside it.
# MINUTES are those of the measurements alone: stay a minute below what the machine is lent for.
set -euo pipefail
wheels=$1 output=$2 minutes=$3 result=${4:-}
if [ -n "$result" ]; then trap 'cp "$output/gpu.json" "$result/"' EXIT; fi
# Beside the machine's own packages: what is there may not be replaceable.
site=${TMPDIR:-/tmp}/get-site
python3 -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade \
    --target "$site" "$wheels"/*.whl
export PYTHONPATH=$site:$PWD HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
python3 -m pipeline.benchmark gpu --minutes "$minutes" --output_dir "$output"
