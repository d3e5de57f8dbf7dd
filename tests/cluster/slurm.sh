#!/bin/bash
# Slurm on this machine, as root: a controller and two nodes, which are told that they have 8 cores
# and 8 GPUs each. It ends with this script. Jobs need SLURM_CONF=FOLDER/slurm.conf.
#     apt-get install slurm-wlm munge
#     tests/cluster/slurm.sh FOLDER
set -euo pipefail
folder=$(realpath -m "$1") host=$(hostname -s)
nodes=("$host" localhost) # jobs find one another by these names; Slurm wants the host first
mkdir -p "$folder"/{state,log,dev} "${nodes[@]/#/$folder/spool/}"
for i in {0..7}; do mknod "$folder/dev/gpu$i" c 1 3; done # stands for a GPU
head -c 1024 /dev/urandom > "$folder/munge.key"
chmod 400 "$folder/munge.key"
cat > "$folder/slurm.conf" <<END
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmUser=root
AuthInfo=socket=$folder/munge.socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/log/slurmctld
SlurmdLogFile=$folder/log/slurmd-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,batch_sched_delay=1
SlurmdParameters=config_overrides
KillWait=5
GresTypes=gpu
NodeName=DEFAULT CPUs=8 Gres=gpu:8
NodeName=${nodes[0]} NodeHostname=$host NodeAddr=127.0.0.1 Port=16818
NodeName=${nodes[1]} NodeHostname=$host NodeAddr=127.0.0.1 Port=16819
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
for name in "${nodes[@]}"; do slurmd -D -N "$name" 2> /dev/null & done
until [[ $(sinfo --noheader --format=%D%t 2> /dev/null) == 2idle ]]; do kill -0 $!; sleep 0.5; done
echo ready
wait
