#!/usr/bin/env bash
# Fetch the packages that a GPU machine with torch but without a package index lacks, for run.sh:
#   tests/gpu/wheels.sh PYTHON_VERSION FOLDER        for example 3.12 .whl
# They are pure Python, about 10 MB; torch, torchvision, accelerate, numpy, scipy and the like are
# taken to be there. importlib-metadata needs lazy-importer; pytest 9 reads our settings; torchdeq
# makes the steps that ours are compared with.
set -euo pipefail
version=$1 folder=$2
mkdir -p "$folder"
"${PYTHON:-python}" -m pip download --quiet --no-deps --only-binary=:all: \
    --python-version "$version" --platform any --dest "$folder" --constraint constraints.txt \
    diffusers importlib-metadata lazy-importer zipp \
    tyro typeguard docstring-parser jaxtyping wadler-lindig beartype \
    webdataset braceexpand torch-fidelity torchdeq \
    pytest pluggy iniconfig pytest-timeout pytest-xdist execnet
ls -l "$folder"
