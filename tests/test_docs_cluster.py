"""The scripts for clusters in docs/pairs.md do what the page says, as they stand there."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data.manifest import count_shards

from .processes import ROOT, environment

PAGE = (ROOT / "docs" / "pairs.md").read_text()
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


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found, language
    return found[1]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("ends", ["", "1"], ids=["time limit", "done"])
def test_the_slurm_script_queues_itself_again_at_a_time_limit_and_only_then(tmp_path, ends):
    for name, text in FAKES.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "job.sh").write_text(block("bash"))
    log = tmp_path / "log"
    variables = environment() | {"LOG": str(log), "ENDS": ends, "SLURM_JOB_ID": "77"}
    variables["PATH"] = f"{tmp_path}:{variables['PATH']}"
    job = subprocess.Popen(["bash", tmp_path / "job.sh"], env=variables)
    while not log.exists() or not log.read_text().endswith("\n"):
        time.sleep(0.02)
    if not ends:
        job.send_signal(signal.SIGUSR1)  # what --signal=B:USR1@120 does
    job.wait()
    lines = log.read_text().splitlines()
    assert lines[0].startswith("srun python -m pipeline.make_pairs digits")
    assert lines[1:] == ([] if ends else ["stopped", "scontrol requeue 77"])
    assert "--signal=B:USR1@" in block("bash").splitlines()[1]


@pytest.mark.timeout(300)
def test_the_ray_snippet_makes_pairs_with_and_without_gpus(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    code = block("python").replace("/data/pairs", str(tmp_path / "pairs")).replace("(100)", "(3)")
    small = "output_dir=", "pairs_per_shard=8, teacher_batch_size=8, output_dir="
    command = [sys.executable, "-c", code.replace(*small)]
    subprocess.run(command, cwd=ROOT, check=True, env=environment() | {"PYTHONPATH": str(ROOT)})
    assert count_shards(tmp_path / "pairs") == 3
