"""docs/cluster.md shows the scripts that the tests of clusters run; Slurm's does what it says."""

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
echo "scontrol $*" >> $LOG
""",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_page_shows_a_script_as_it_is_run(name):
    language = "python" if name.endswith(".py") else "bash"
    shown = f"`tests/cluster/{name}`:\n\n```{language}\n{(FOLDER / name).read_text()}```\n"
    assert shown in (ROOT / "docs" / "cluster.md").read_text()


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("ends", "array", "again"),
    [
        ("", {}, ["stopped", "scontrol requeue 77"]),
        # 77 would queue all elements again: one of them has the number of the array
        (
            *("", {"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "3"}),
            ["stopped", "scontrol requeue 77_3"],
        ),
        ("1", {}, []),
    ],
    ids=["time limit", "element", "done"],
)
def test_the_slurm_script_queues_itself_again_at_a_time_limit_and_only_then(
    tmp_path: Path, ends: str, array: dict[str, str], again: list[str]
) -> None:
    for name, text in FAKES.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    log = tmp_path / "log"
    variables = environment() | {"LOG": str(log), "ENDS": ends, "SLURM_JOB_ID": "77"} | array
    variables["PATH"] = f"{tmp_path}:{variables['PATH']}"
    command = ["bash", FOLDER / "requeue.sbatch", "python", "-m", "pipeline.train", "digits"]
    job = subprocess.Popen(command, env=variables)
    while not log.exists() or not log.read_text().endswith("\n"):
        time.sleep(0.02)
    if not ends:
        job.send_signal(signal.SIGUSR1)  # what --signal=B:USR1@120 does
    job.wait()
    lines = log.read_text().splitlines()
    assert lines[0] == "srun python -m pipeline.train digits"
    assert lines[1:] == again
