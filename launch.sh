#!/usr/bin/env bash
# One command for everything: set up an environment, run every stage of a recipe, or run the checks.
set -euo pipefail
caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
    cat <<'EOF'
Usage: ./launch.sh [RECIPE] [--recipes FILE.py] [--num_processes N] [--output_dir DIR]
                   [--retrain_teacher]
       ./launch.sh test [--slow] [--cluster] [PYTEST ARGUMENTS]
       ./launch.sh --help

Without an argument: sets up .venv and runs the recipe `digits` through all its stages:
feature network and teacher (shipped or trained) -> pairs -> train GET and the ViT baseline
-> sample -> evaluate -> report.
Run it again: it skips what is finished and continues what was interrupted.

  RECIPE             digits; photos: colour patches of three photographs; equilibria: what a
                     table in docs/ compares; smoke: everything at its smallest; or your own
  --recipes FILE.py  your own recipes (CONTRIBUTING.md shows one for a folder of pictures)
  --num_processes N  processes of the pair, training and sampling stages (default: one per GPU;
                     without one, one per core, 8 at most, for pairs, and
                     models are trained side by side)
  --output_dir DIR   where everything goes (default: runs)
  --retrain_teacher  train the teacher anew instead of using the shipped one

  test               lint, types, import rules and tests; --slow runs the slow tests as well;
                     --cluster installs Slurm, Ray and an S3 server and runs only what tests them

In an active virtual or conda environment it installs only what is missing, never torch.
EOF
}

# ---------------------------------------------------------------- arguments
recipe=digits processes="" output=runs retrain=0 slow=0 cluster=0 own_recipes=() pytest_arguments=()
if [[ ${1:-} == test ]]; then
    recipe=test; shift
elif [[ $# -gt 0 && $1 != -* ]]; then
    recipe=$1; shift
fi
need() { [[ $# -ge 2 && -n $2 ]] || { echo "launch.sh: expected a value after $1" >&2; exit 2; }; }
while [[ $# -gt 0 ]]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --num_processes) need "$@"; processes=$2; shift 2 ;;
        --output_dir)
            need "$@"; output=$2; shift 2
            # relative to where the caller stands, not to the repository
            [[ $output == /* || $caller == "$PWD" ]] || output=$caller/$output ;;
        --recipes)
            need "$@"; file=$2; shift 2
            [[ $file == /* || $file != *.py || $caller == "$PWD" ]] || file=$caller/$file
            own_recipes=(--recipes "$file") ;;
        --retrain_teacher) retrain=1; shift ;;
        --slow) slow=1; shift ;;
        --cluster) cluster=1; shift ;;
        *)
            if [[ $recipe == test ]]; then pytest_arguments+=("$1"); shift
            else echo "launch.sh: expected an option of --help, got $1" >&2; exit 2; fi ;;
    esac
done
if [[ -n $processes && ! $processes =~ ^[1-9][0-9]*$ ]]; then
    echo "launch.sh: expected a positive number after --num_processes, got $processes" >&2; exit 2
fi

# ---------------------------------------------------------------- environment
find_python() {
    local candidate
    for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"; return
        fi
    done
    echo "launch.sh: expected Python 3.11 or newer, found none; install it first" >&2
    return 2
}
if [[ $recipe == test ]]; then packages='.[dev]'; else packages=.; fi
# A wrong name is answered before anything is installed; a file of recipes may need packages.
if [[ $recipe != test && ${#own_recipes[@]} -eq 0 ]]; then
    "$(find_python)" -m pipeline.recipes "$recipe" > /dev/null
fi
if [[ -n ${VIRTUAL_ENV:-}${CONDA_PREFIX:-} ]]; then
    python=python
    # Whatever pip installs here, torch and torchvision stay as they are.
    pins=$("$python" - <<'EOF'
from importlib.metadata import version
print(f"torch=={version('torch')}\ntorchvision=={version('torchvision')}")
EOF
    ) || { echo "launch.sh: expected torch and torchvision in the active environment; install" \
        "them there, or deactivate it and run again" >&2; exit 2; }
    constraints=$(mktemp); trap 'rm -f "$constraints"' EXIT
    echo "$pins" > "$constraints"
else
    python=.venv/bin/python constraints=constraints.txt
    [[ -x $python ]] || "$(find_python)" -m venv .venv
fi
# The stamp is written last, so an installation that broke off is repeated.
stamp=$("$python" -c 'import sys; print(sys.prefix)')/.get-installed
wanted=$(cat pyproject.toml constraints.txt | cksum)
if [[ $(grep -sF "$wanted $packages" "$stamp" || true) == "" ]]; then
    echo "== install (about 3 minutes and 6 GB where torch is missing)"
    quiet=(--quiet); [[ ! -t 1 ]] || quiet=() # pip's own progress bars for people
    "$python" -m pip install ${quiet[@]+"${quiet[@]}"} --disable-pip-version-check \
        --constraint "$constraints" --editable "$packages"
    [[ -s $stamp && $(head -n 1 "$stamp") == "$wanted"* ]] || : > "$stamp"
    echo "$wanted $packages" >> "$stamp"
fi

# ---------------------------------------------------------------- running and stopping
# Commands run in the background so that a signal to this script reaches them at once; they save
# their state, and this script ends with 128 + signal.
children=() signal=""
forward() {
    signal=$1
    [[ ${#children[@]} -eq 0 ]] || kill -TERM "${children[@]}" 2>/dev/null || true
}
trap 'forward 2' INT
trap 'forward 15' TERM
start() {
    [[ -z $signal ]] || exit $((128 + signal))
    "$@" & children+=($!)
    [[ -z $signal ]] || forward "$signal" # it came between the last two commands
}
wait_for_all() {
    local child code=0 last
    for child in "${children[@]}"; do
        last=0; wait "$child" || last=$?
        while kill -0 "$child" 2>/dev/null; do last=0; wait "$child" || last=$?; done
        [[ $last -eq 0 ]] || code=$last
    done
    children=()
    [[ -z $signal ]] || exit $((128 + signal))
    [[ $code -eq 0 ]] || exit "$code"
}
run() { start "$@"; wait_for_all; }

if [[ $recipe == test && $cluster -eq 1 ]]; then
    run tests/cluster/install.sh "$python" .cluster
    programs=$("$python" -c 'import sys; print(sys.prefix)')/bin
    PATH=$programs:$PATH PYTHONPATH=$PWD run .cluster/bin/python -m pytest -n0 -m cluster \
        tests/cluster ${pytest_arguments[@]+"${pytest_arguments[@]}"}
    exit 0
fi
if [[ $recipe == test ]]; then
    run "$python" -m ruff format --check .
    run "$python" -m ruff check .
    run "$python" -m pyrefly check
    run "$("$python" -c 'import sys; print(sys.prefix)')/bin/lint-imports"
    marks="not slow and not gpu and not network and not cluster"
    [[ $slow -eq 0 ]] || marks="not gpu and not network and not cluster"
    run "$python" -m pytest -n auto -m "$marks" ${pytest_arguments[@]+"${pytest_arguments[@]}"}
    exit 0
fi

gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())')
cores=$("$python" -c 'import os; f = getattr(os, "sched_getaffinity", None); print(len(f(0)) if f else os.cpu_count())')
# On a CPU one process is slow at pairs and leaves cores idle while it trains a small model.
at_once=$((cores < 8 ? cores : 8))
pair_jobs=${processes:-$at_once}
[[ $gpus -eq 0 && -z $processes ]] || at_once=1
[[ -n $processes ]] || processes=$((gpus > 0 ? gpus : 1))

# ---------------------------------------------------------------- kinds of stages
begin() { name=$1 began=$SECONDS; echo "== ${2:-$1}"; } # begin NAME [TITLE]
end() { # waits for what was started; the time is a line of the summary
    wait_for_all
    summary+="$(printf '%-24s %5d s' "$name" $((SECONDS - began)))"$'\n'
}
module() { # module NAME RECIPE ARGUMENTS: starts one process
    start "$python" -m "$1" "$2" ${own_recipes[@]+"${own_recipes[@]}"} "${@:3}"
}
stage() { begin "$1"; module "${@:2}"; end; } # stage TITLE MODULE RECIPE ARGUMENTS
stage_each() { # the same in $processes processes that know of each other
    [[ $processes -gt 1 ]] || { stage "$@"; return; }
    begin "$1" "$1 ($processes processes)"
    local arguments=("$2" "$3" ${own_recipes[@]+"${own_recipes[@]}"} "${@:4}")
    if [[ $gpus -gt 0 ]]; then
        start "$python" -m accelerate.commands.launch --multi_gpu \
            --num_processes "$processes" --num_machines 1 --mixed_precision no \
            --dynamo_backend no -m "${arguments[@]}"
    else # accelerate launch --cpu --num_processes N would run one process
        ACCELERATE_USE_CPU=1 OMP_NUM_THREADS=$((cores > processes ? cores / processes : 1)) \
            start "$python" -m torch.distributed.run --standalone \
            --nproc_per_node "$processes" -m "${arguments[@]}"
    fi
    end
}
stage_pairs() { # on a CPU: $pair_jobs processes of one thread that share the work by claims
    [[ $gpus -eq 0 && $pair_jobs -gt 1 ]] || { stage_each "$@"; return; }
    local number
    local -x OMP_NUM_THREADS=1
    begin "$1" "$1 ($pair_jobs processes)"
    module "${@:2}"
    for ((number = 1; number < pair_jobs; number++)); do
        TQDM_DISABLE=1 module "${@:2}" > /dev/null
    done
    end
}
stage_train() { # stage_train STUDENTS: side by side; the first has a progress bar, the others a name
    local title student of_each
    title=$(printf ', %s' "$@")
    local -x OMP_NUM_THREADS=$((cores / $#))
    begin "train${title:1}" "train${title:1} (side by side)"
    for student; do
        of_each=("$student" --output_dir "$output/$student" "${train_arguments[@]}")
        if [[ $student == "$1" ]]; then
            module pipeline.train "${of_each[@]}"
        else
            TQDM_DISABLE=1 PYTHONUNBUFFERED=1 module pipeline.train "${of_each[@]}" \
                > >(sed "s/^/$student: /")
        fi
    done
    end
}

# ---------------------------------------------------------------- the stages of a recipe
stages=$("$python" -m pipeline.recipes "$recipe" ${own_recipes[@]+"${own_recipes[@]}"})
{ read -r features_do features; read -r teacher_do teacher; read -r -a students; } <<< "$stages"
summary="" features_flag=()
if [[ $features_do == train ]]; then
    features=$output/$recipe-features features_flag=(--feature_network "$features")
    stage features pipeline.train_classifier "$recipe" --output_dir "$features"
fi
if [[ $teacher_do == train || $retrain -eq 1 ]]; then
    teacher=$output/$recipe-teacher
    stage teacher pipeline.train_teacher "$recipe" --output_dir "$teacher"
elif [[ $teacher_do == check ]]; then
    stage teacher pipeline.train_teacher "$recipe" --check --output_dir "$teacher"
fi
pairs=$output/pairs/$recipe
stage_pairs pairs pipeline.make_pairs "$recipe" --teacher "$teacher" --output_dir "$pairs"
train_arguments=(--pairs "$pairs" ${features_flag[@]+"${features_flag[@]}"})
for ((first = 0; first < ${#students[@]}; first += at_once)); do
    group=("${students[@]:first:at_once}") student=${students[first]}
    if [[ ${#group[@]} -gt 1 ]]; then
        stage_train "${group[@]}"
    else
        stage_each "train $student" pipeline.train "$student" --output_dir "$output/$student" \
            "${train_arguments[@]}"
    fi
done
runs=("${students[@]/#/$output/}")
stage_each sample pipeline.sample "${students[0]}" --model "${runs[0]}" \
    --output_dir "${runs[0]}/images"
stage evaluate pipeline.evaluate "$recipe" --pairs "$pairs" --teacher "$teacher" \
    --runs "${runs[@]}" --output_dir "${runs[0]}/evaluation" \
    ${features_flag[@]+--feature_networks "$features"}
stage report pipeline.report "$recipe" --runs "${runs[@]}" --evaluation "${runs[0]}/evaluation"
printf '\n%s' "$summary"
