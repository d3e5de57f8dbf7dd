#!/bin/bash
# Slurm on this machine, as root: a controller and one node, which is told that it has 8 cores and
# 8 GPUs. It ends with this script. Jobs need SLURM_CONF=FOLDER/slurm.conf.
#     apt-get install slurm-wlm munge
#     tests/cluster/slurm.sh FOLDER
set -euo pipefail
folder=$(realpath -m "$1") node=$(hostname -s)
mkdir -p "$folder"/{state,spool,log,dev}
for i in {0..7}; do mknod "$folder/dev/gpu$i" c 1 3; done # stands for a GPU
head -c 1024 /dev/urandom > "$folder/munge.key"
chmod 400 "$folder/munge.key"
cat > "$folder/slurm.conf" <<END
ClusterName=one
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
AuthInfo=socket=$folder/munge.socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld
SlurmdLogFile=$folder/log/slurmd
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,batch_sched_delay=1
SlurmdParameters=config_overrides
KillWait=5
GresTypes=gpu
NodeName=$node NodeAddr=127.0.0.1 CPUs=8 Gres=gpu:8
PartitionName=all Nodes=ALL Default=YES
END
echo "Name=gpu File=$folder/dev/gpu[0-7]" > "$folder/gres.conf"
export SLURM_CONF=$folder/slurm.conf

trap 'exit 0' TERM INT
end() { # jobs first: they cannot end without the rest
    scancel --user "$(id -un)" || true
    for _ in {1..60}; do [[ $(squeue --noheader) ]] || break; sleep 0.5; done
    kill $(jobs -p); wait
}
trap end EXIT
munged --foreground --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
    --pid-file="$folder/munged.pid" --seed-file="$folder/munge.seed" 2> "$folder/log/munged" &
until [[ -S $folder/munge.socket ]]; do kill -0 $!; sleep 0.1; done
slurmctld -D 2> /dev/null &
slurmd -D 2> /dev/null &
until [[ $(sinfo --noheader --format=%t 2> /dev/null) == idle ]]; do kill -0 $!; sleep 0.5; done
echo ready
wait
