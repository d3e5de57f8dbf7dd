"""docs/cluster.md shows the scripts that the tests of clusters run; Slurm's do what they say."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from .processes import ROOT, environment

FOLDER = ROOT / "tests" / "cluster"
SCRIPTS = sorted(
    path.name
    for path in FOLDER.iterdir()
    if path.suffix in (".sh", ".sbatch", ".py")
    and not path.name.startswith(("test_", "conftest", "__init__"))
)
FAKES = {  # what Slurm provides, on this machine
    "srun": """#!/bin/bash
trap 'echo stopped >> $LOG; exit 138' USR1
echo "srun $*" >> $LOG
if [ $ENDS ]; then exit 0; fi
while true; do sleep 0.05; done
""",
    "scontrol": """#!/bin/bash
if [ "$1" = show ]; then echo one; echo two; exit; fi
echo "scontrol $*" >> $LOG
""",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_page_shows_a_script_as_it_is_run(name):
    language = "python" if name.endswith(".py") else "bash"
    shown = f"`tests/cluster/{name}`:\n\n```{language}\n{(FOLDER / name).read_text()}```\n"
    assert shown in (ROOT / "docs" / "cluster.md").read_text()


def table(found: dict) -> str:
    """Return what the tests of clusters found, as `./launch.sh test --cluster` has written it."""
    lines = ["| test | outcome | seconds | commit |", "|---|---|--:|---|"]
    for name, test in found["tests"].items():
        what = name.partition(".test_")[2].replace("_", " ")
        reason = f": {test['reason'].removeprefix('Skipped: ')}" if "reason" in test else ""
        outcome, seconds = test["outcome"] + reason, test["seconds"]
        lines.append(f"| {what} | {outcome} | {seconds:.0f} | {test['commit']} |")
    return "\n".join(lines)


def test_the_page_says_what_the_tests_of_clusters_found():
    found = json.loads((ROOT / "docs" / "measurements" / "cluster" / "cluster.json").read_text())
    page = (ROOT / "docs" / "cluster.md").read_text()
    assert f"<!-- tests -->\n{table(found)}\n<!-- end -->" in page


JOB = "tests/cluster/node.sh 2 one:29500 8 -m pipeline.train digits"
SUBMITTED = {  # what the script is given, and what it hands to srun
    "requeue.sbatch": (("python", "-m", "pipeline.train", "digits"),) * 2,
    "train.sbatch": (("digits",), tuple(JOB.split())),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("name", "ends", "array", "again"),
    [
        ("requeue.sbatch", "", {}, ["stopped", "scontrol requeue 77"]),
        ("train.sbatch", "", {}, ["stopped", "scontrol requeue 77"]),
        # 77 would queue all elements again: one of them has the number of the array
        (
            *("requeue.sbatch", "", {"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "3"}),
            ["stopped", "scontrol requeue 77_3"],
        ),
        ("requeue.sbatch", "1", {}, []),
        ("train.sbatch", "1", {}, []),
    ],
    ids=["time limit", "training's", "element", "done", "training done"],
)
def test_the_slurm_script_queues_itself_again_at_a_time_limit_and_only_then(
    tmp_path: Path, name: str, ends: str, array: dict[str, str], again: list[str]
) -> None:
    for command, text in FAKES.items():
        (tmp_path / command).write_text(text)
        (tmp_path / command).chmod(0o755)
    log = tmp_path / "log"
    variables = environment() | {"LOG": str(log), "ENDS": ends, "SLURM_JOB_ID": "77"} | array
    variables["PATH"] = f"{tmp_path}:{variables['PATH']}"
    variables |= {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[1-2]"}
    variables |= {"SLURM_GPUS_ON_NODE": "8"}
    given, handed_on = SUBMITTED[name]
    job = subprocess.Popen(["bash", FOLDER / name, *given], env=variables)
    while not log.exists() or not log.read_text().endswith("\n"):
        time.sleep(0.02)
    if not ends:
        job.send_signal(signal.SIGUSR1)  # what --signal=B:USR1@120 does
    job.wait()
    lines = log.read_text().splitlines()
    assert lines[0] == " ".join(("srun", *handed_on))
    assert lines[1:] == again
