#!/bin/bash
# What the tests in this folder need: Slurm and munge from Debian, if this is root; Ray, s3fs and
# moto from the package index, into a folder of their own, in the versions that go with PYTHON's.
#     tests/cluster/install.sh PYTHON FOLDER
set -euo pipefail
python=$1 folder=$2
if ! command -v slurmctld > /dev/null; then
    if [[ $(id -u) -eq 0 ]] && command -v apt-get > /dev/null; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
            slurm-wlm munge > /dev/null
    else
        echo "install.sh: the tests of Slurm need slurm-wlm, munge and root; they will be skipped" >&2
    fi
fi
[[ ! -f $folder/installed ]] || exit 0
pins=$(mktemp); trap 'rm -f "$pins"' EXIT
"$python" -m pip freeze --exclude-editable | grep '==' > "$pins"
"$python" -m pip install --quiet --disable-pip-version-check --upgrade --target "$folder" \
    --constraint "$pins" ray s3fs 'moto[server,s3]'
touch "$folder/installed"
