#!/bin/bash
# Processes on several machines work together: run this on each of them, with the same arguments.
#     tests/cluster/node.sh MACHINES HOST:PORT PROCESSES -m pipeline.train digits ...
# HOST is one of the machines, PORT free there, PROCESSES the number on each machine.
set -euo pipefail
# torchrun would die of USR1, which asks the processes to save their state, and kill them.
export TORCHELASTIC_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=240 # seconds in which they save it, instead of 30
exec torchrun --nnodes "$1" --rdzv_backend c10d --rdzv_endpoint "$2" --rdzv_id get \
    --nproc_per_node "$3" "${@:4}"
