"""A training ends with the launcher of accelerate; processes of a machine share its cores."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.jobs.launcher import COMPILERS, share_cores

from .processes import ROOT, environment
from .runs import checkpoints

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children")

CHILD = """
import signal, sys
from pipeline.jobs.launcher import end_with_launcher

end_with_launcher()
signal.signal(signal.SIGALRM, lambda *_: (print("alone", flush=True), sys.exit()))
signal.signal(signal.SIGTERM, lambda *_: (print("ended", flush=True), sys.exit()))
print("ready", flush=True)
signal.setitimer(signal.ITIMER_REAL, 0.3)
signal.pause()
"""
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"


@pytest.mark.parametrize(
    ("name", "end"), [("bin/accelerate", "ended"), ("accelerate_all.sh", "alone")]
)
def test_a_process_ends_with_the_launcher_that_started_it_and_with_nothing_else(name, end):
    command = [sys.executable, "-c", PARENT, CHILD, name]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        parent.kill()
        assert parent.stdout.readline() == f"{end}\n"


def test_processes_of_a_machine_share_its_cores_when_they_compile(monkeypatch):
    from torch._inductor.config import decide_compile_threads

    alone = decide_compile_threads()
    for processes, expected in (("1", alone), ("2", max(1, alone // 2)), ("1000", 1)):
        variables = {"LOCAL_WORLD_SIZE": processes}
        share_cores(variables)
        monkeypatch.setenv(COMPILERS, variables.get(COMPILERS, str(alone)))
        assert decide_compile_threads() == expected
    told = {"LOCAL_WORLD_SIZE": "2", COMPILERS: "7"}
    share_cores(told)
    assert told[COMPILERS] == "7"


@pytest.mark.slow
def test_sigterm_to_accelerate_launch_saves_the_training_it_started(smoke_pairs, tmp_path: Path):
    run = tmp_path / "run"
    script = "pipeline/train.py", "smoke", "--pairs", smoke_pairs, "--output_dir", run
    long = "--max_train_steps", 100_000, "--checkpointing_steps", 100_000, "--log_steps", 1
    command = [sys.executable, "-m", "accelerate.commands.launch", *map(str, (*script, *long))]
    with subprocess.Popen(command, cwd=ROOT, env=environment()) as launcher:
        deadline = time.monotonic() + 120
        while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        (child,) = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        launcher.send_signal(signal.SIGTERM)
        launcher.wait(timeout=20)
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    if Path(f"/proc/{child}").exists():
        os.kill(int(child), signal.SIGKILL)
        pytest.fail("the training goes on without its launcher")
    (saved,) = checkpoints(run)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == saved
