#!/bin/bash
# Ray on this machine, with two cores; it ends with this script. Programs need
# RAY_ADDRESS=127.0.0.1:6399, and both need RAY_AUTH_MODE=token RAY_AUTH_TOKEN=SECRET.
#     pip install ray
#     tests/cluster/ray.sh FOLDER
set -euo pipefail
folder=$1 # for logs and sockets, whose paths must be short
trap 'exit 0' TERM INT
trap 'kill $(jobs -p) 2> /dev/null || true; wait' EXIT
started() { grep -q 'Ray runtime started' "$folder/log" 2> /dev/null; }
for _ in {1..5}; do # it gives its own processes 15 seconds to start, too few on a busy machine
    ray start --head --block --port=6399 --num-cpus=2 --temp-dir="$folder" \
        --include-dashboard=false --disable-usage-stats > "$folder/log" 2>&1 &
    until started || ! kill -0 $! 2> /dev/null; do sleep 0.5; done
    ! started || break
    wait $! || true
done
started || { cat "$folder/log" >&2; exit 1; }
echo ready
wait
