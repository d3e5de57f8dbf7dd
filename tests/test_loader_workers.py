"""Loader workers outlive signals while training needs them, and never their trainer."""

import subprocess
import sys
from pathlib import Path

import pytest

from .processes import ROOT, environment
from .shards import folder as folder

CRASH = """
import multiprocessing, os, signal, sys
from pathlib import Path
from data.order import Order
from data.reader import batches

sizes = dict(shards=8, pairs_per_shard=6, seed=0, streams=8, batch_size=16)
loader = batches(Order(source=Path(sys.argv[1]), **sizes), workers=2)
next(loader)
print([worker.pid for worker in multiprocessing.active_children()], flush=True)
if sys.argv[2] == "a worker is killed":
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    while True:
        next(loader)
raise IndexError("a label out of range")
"""


@pytest.mark.timeout(150)
@pytest.mark.parametrize(
    ("crash", "shown"),
    [
        ("a worker is killed", "expected 2 loader workers, got one that was killed"),
        ("the trainer raises", "a label out of range"),
    ],
)
def test_a_trainer_that_crashes_ends_and_takes_its_workers_along(folder, crash, shown):
    command = [sys.executable, "-c", CRASH, str(folder), crash]
    ended = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 1
    assert shown in ended.stderr
    workers = ended.stdout.strip("[]\n").split(", ")
    assert len(workers) == 2
    assert not any(alive(int(pid)) for pid in workers)


def alive(process: int) -> bool:
    """Say whether a process exists and is more than a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
