"""Ray: the documented program makes pairs, whoever of its workers dies."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import pytest

from data import SHIPPED
from data.manifest import list_shards
from tests.processes import Script, completed

from .conftest import HERE, engine, shards, until, variables

SLOW = "Ray did not start in five attempts: it gives its processes 15 seconds"
SHARDS = 2  # one a core
SECRET = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid4().hex * 2}
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]


def descendants(pid: int) -> list[int]:
    """Return the processes that a process has started, and theirs."""
    try:
        own = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [other for child in map(int, own) for other in (child, *descendants(child))]


def workers(pid: int) -> list[int]:
    """Return the processes of Ray that are at work on a shard."""

    def command(process: int) -> str:
        try:
            return Path(f"/proc/{process}/cmdline").read_text()
        except OSError:
            return ""

    return [p for p in descendants(pid) if command(p).startswith("ray::generate_shard")]


def test_the_documented_program_makes_the_pairs_of_one_process_though_a_worker_is_killed(
    tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    teacher, folder, alone = SHIPPED / "digits-teacher", tmp_path / "pairs", tmp_path / "alone"
    for name, value in SECRET.items():
        monkeypatch.setenv(name, value)
    with TemporaryDirectory(prefix="ray") as logs, engine("ray.sh", logs, skip=SLOW) as head:
        program = subprocess.Popen(
            [sys.executable, HERE / "pairs_on_ray.py", teacher, folder, str(SHARDS)],
            cwd=tmp_path,
            env=variables() | {"RAY_ADDRESS": "127.0.0.1:6399"},
            stdout=subprocess.PIPE,
            text=True,
        )
        until(lambda: list(folder.glob(".pairs-*.tmp")) and workers(head.pid), 400, "work")
        os.kill(workers(head.pid)[0], signal.SIGKILL)
        # Ray tells of its worker there too.
        assert program.communicate()[0].endswith(f"{SHARDS * 1024} pairs\n")
        assert program.returncode == 0
    assert list_shards(folder) == list(range(SHARDS))
    few = "--num_pairs", SHARDS * 1024, "--teacher", teacher, "--output_dir", alone
    completed(script("pipeline.make_pairs", "digits", *few))
    assert shards(folder) == shards(alone)
