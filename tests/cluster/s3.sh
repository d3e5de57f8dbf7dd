#!/bin/bash
# An object store on this machine, empty, in memory; it ends with this script. Programs need
#     AWS_ENDPOINT_URL=http://127.0.0.1:PORT AWS_ACCESS_KEY_ID=any AWS_SECRET_ACCESS_KEY=any
#     pip install s3fs 'moto[server]'
#     tests/cluster/s3.sh PORT
set -euo pipefail
trap 'exit 0' TERM INT
trap 'kill $(jobs -p); wait' EXIT
moto_server --host 127.0.0.1 --port "$1" >&2 &
until (: < /dev/tcp/127.0.0.1/$1) 2> /dev/null; do kill -0 $!; sleep 0.2; done
echo ready
wait
