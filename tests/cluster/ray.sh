#!/bin/bash
# Ray on this machine, with two cores; it ends with this script. Programs need
# RAY_ADDRESS=127.0.0.1:6399.
#     pip install ray
#     tests/cluster/ray.sh
set -euo pipefail
trap 'exit 0' TERM INT
trap 'kill $(jobs -p); wait' EXIT
ray start --head --block --port=6399 --node-ip-address=127.0.0.1 --num-cpus=2 \
    --dashboard-agent-grpc-port=6400 --dashboard-agent-listen-port=6401 \
    --runtime-env-agent-port=6402 --metrics-export-port=6403 \
    --include-dashboard=false --disable-usage-stats >&2 &
until ray health-check --address 127.0.0.1:6399 2> /dev/null; do kill -0 $!; sleep 1; done
echo ready
wait
