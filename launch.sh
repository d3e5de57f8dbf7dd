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
                     without one, 1, and for pairs one per core, 8 at most)
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
# A stage runs in the background so that a signal to this script reaches it at once; the stage saves
# its state, and this script ends with 128 + signal.
child="" signal=""
forward() {
    signal=$1
    [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true
}
trap 'forward 2' INT
trap 'forward 15' TERM
run() {
    local code=0
    [[ -z $signal ]] || exit $((128 + signal))
    "$@" & child=$!
    [[ -z $signal ]] || forward "$signal" # it came between the last two commands
    wait "$child" || code=$?
    while kill -0 "$child" 2>/dev/null; do code=0; wait "$child" || code=$?; done
    child=""
    [[ -z $signal ]] || exit $((128 + signal))
    [[ $code -eq 0 ]] || exit "$code"
}
several() { # several N COMMAND: N jobs that share the work; the first one alone shows its progress
    local number code=0 jobs=()
    trap 'kill -TERM "${jobs[@]}" 2>/dev/null || true' INT TERM
    for ((number = 0; number < $1; number++)); do
        if [[ $number -eq 0 ]]; then "${@:2}" & else LOCAL_RANK=$number "${@:2}" > /dev/null & fi
        jobs+=($!)
    done
    for number in "${jobs[@]}"; do
        while kill -0 "$number" 2>/dev/null; do wait "$number" || true; done
        wait "$number" || code=$?
    done
    return "$code"
}

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
pair_jobs=${processes:-$((cores < 8 ? cores : 8))}
[[ -n $processes ]] || processes=$((gpus > 0 ? gpus : 1))
timed() { # timed NAME TITLE COMMAND: its time is a line of the summary
    local began=$SECONDS
    echo "== $2"
    run "${@:3}"
    summary+="$(printf '%-24s %5d s' "$1" $((SECONDS - began)))"$'\n'
}
stage() { timed "$1" "$1" "$python" -m "${@:2}"; } # stage NAME MODULE ARGUMENTS: one process
stage_each() { # the same in $processes processes
    local title="$1 ($processes processes)"
    if [[ $processes -eq 1 ]]; then
        stage "$@"
    elif [[ $gpus -gt 0 ]]; then
        timed "$1" "$title" "$python" -m accelerate.commands.launch --multi_gpu \
            --num_processes "$processes" --num_machines 1 --mixed_precision no \
            --dynamo_backend no -m "${@:2}"
    else # accelerate launch --cpu --num_processes N would run one process
        ACCELERATE_USE_CPU=1 OMP_NUM_THREADS=$((cores > processes ? cores / processes : 1)) \
            timed "$1" "$title" "$python" -m torch.distributed.run --standalone \
            --nproc_per_node "$processes" -m "${@:2}"
    fi
}
stage_pairs() { # the same; on a CPU, jobs of one thread write more pairs than one job of many
    if [[ $gpus -gt 0 || $pair_jobs -eq 1 ]]; then
        stage_each "$@"
    else
        OMP_NUM_THREADS=1 timed "$1" "$1 ($pair_jobs processes)" \
            several "$pair_jobs" "$python" -m "${@:2}"
    fi
}

# ---------------------------------------------------------------- the stages of a recipe
run_recipe() { # run_recipe STAGE_FUNCTION TITLE MODULE NAME ARGUMENTS
    local function=$1 title=$2 module=$3 name=$4; shift 4
    "$function" "$title" "$module" "$name" ${own_recipes[@]+"${own_recipes[@]}"} "$@"
}
stages=$("$python" -m pipeline.recipes "$recipe" ${own_recipes[@]+"${own_recipes[@]}"})
{ read -r features_do features; read -r teacher_do teacher; read -r -a students; } <<< "$stages"
summary="" features_flag=()
if [[ $features_do == train ]]; then
    features=$output/$recipe-features features_flag=(--feature_network "$features")
    run_recipe stage features pipeline.train_classifier "$recipe" --output_dir "$features"
fi
if [[ $teacher_do == train || $retrain -eq 1 ]]; then
    teacher=$output/$recipe-teacher
    run_recipe stage teacher pipeline.train_teacher "$recipe" --output_dir "$teacher"
elif [[ $teacher_do == check ]]; then
    run_recipe stage teacher pipeline.train_teacher "$recipe" --check --output_dir "$teacher"
fi
pairs=$output/pairs/$recipe
run_recipe stage_pairs pairs pipeline.make_pairs "$recipe" --teacher "$teacher" --output_dir "$pairs"
runs=()
for student in "${students[@]}"; do
    run_recipe stage_each "train $student" pipeline.train "$student" --pairs "$pairs" \
        --output_dir "$output/$student" ${features_flag[@]+"${features_flag[@]}"}
    runs+=("$output/$student")
done
run_recipe stage_each sample pipeline.sample "${students[0]}" \
    --model "${runs[0]}" --output_dir "${runs[0]}/images"
run_recipe stage evaluate pipeline.evaluate "$recipe" --pairs "$pairs" --teacher "$teacher" \
    --runs "${runs[@]}" --output_dir "${runs[0]}/evaluation" \
    ${features_flag[@]+--feature_networks "$features"}
run_recipe stage report pipeline.report "$recipe" --runs "${runs[@]}" \
    --evaluation "${runs[0]}/evaluation"
printf '\n%s' "$summary"
