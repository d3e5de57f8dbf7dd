#!/bin/bash
# What the tests in this folder need: Slurm and munge from Debian, if this is root; Ray, s3fs and
# moto from the package index, in an environment of their own that also has all of PYTHON's packages.
#     tests/cluster/install.sh PYTHON FOLDER
set -euo pipefail
python=$1 folder=$2 here=$(dirname "${BASH_SOURCE[0]}")
if ! command -v slurmctld > /dev/null; then
    if [[ $(id -u) -eq 0 ]] && command -v apt-get > /dev/null; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
            slurm-wlm munge > /dev/null
    else
        echo "install.sh: the tests of Slurm need slurm-wlm, munge and root; they will be skipped" >&2
    fi
fi
# Another Python, or other versions: begin anew.
wanted=$("$python" -c 'import sys; print(sys.prefix, sys.version)' | cat - "$here"/constraints.txt)
[[ $(cat "$folder/installed" 2> /dev/null) != "$wanted" ]] || exit 0
"$python" -m venv --clear --without-pip "$folder" # its pip is that of PYTHON
path='import sysconfig; print(sysconfig.get_path("purelib"))'
"$python" -c "$path" > "$("$folder/bin/python" -c "$path")/all_of_python.pth"
# All versions are given, because pip would try hundreds of those of botocore.
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint "$here/constraints.txt" ray s3fs 'moto[s3]' flask flask-cors
echo "$wanted" > "$folder/installed"
