"""Engines for the tests in this folder: each is started by one script, and ends with it.

`./launch.sh test --cluster` installs the engines and runs these tests. What each of them finds is
written to runs/cluster.json, in which all is of one commit.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import distributions
from pathlib import Path

import pytest

from data.files import write_json
from pipeline.jobs.provenance import provenance
from tests.processes import ROOT, Result, Script, completed, environment
from tests.runs import WEIGHTS, metrics
from tests.shards import write_pairs

HERE = Path(__file__).parent
PACKAGES = ("ray", "s3fs", "moto")
PAIRS = (  # eight shards, each a second or more of work
    *("pipeline.make_pairs", "smoke", "--num_pairs", 256, "--pairs_per_shard", 32),
    *("--teacher_batch_size", 32, "--num_inference_steps", 40),
)
SHARDS = 8
STEPS = 120
FEW = (  # the memory holds eight shards of `many`, so a training reads until its end
    *("--max_train_steps", STEPS, "--validation_steps", STEPS, "--checkpointing_steps", 40),
    *("--shard_memory", 4e-6),
)
BEGAN = time.monotonic()


def variables() -> dict[str, str]:
    """Return the variables of a script: programs of this Python and of the engines come first."""
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return environment() | {"PATH": programs}


def needs(*commands: str) -> None:
    """Skip a test whose engine is not installed."""
    if missing := [name for name in commands if shutil.which(name) is None]:
        pytest.skip(f"{' and '.join(missing)} not installed: see tests/cluster/install.sh")


@contextmanager
def engine(
    script: str, *arguments: object, skip: str | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Run a script of this folder that says `ready` and works until it is ended.

    If it does not start, the test fails, or is skipped for the reason that is given.
    """
    command = [sys.executable] if script.endswith(".py") else ["bash"]
    process = subprocess.Popen(
        [*command, HERE / script, *map(str, arguments)],
        env=variables(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            pytest.skip(skip) if skip else pytest.fail(f"{script} did not start")
        yield process
    finally:
        process.terminate()
        process.communicate()


def free_port() -> int:
    """Return a port of this machine that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def until(condition: Callable[[], object], seconds: float = 600, what: str = "") -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what or condition}"
        time.sleep(0.2)


def shards(folder: Path) -> dict[str, bytes]:
    """Return the files of a data set."""
    return {path.name: path.read_bytes() for path in folder.glob("[!.]*")}


@pytest.fixture(scope="session")
def alone(script, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the data set that one process writes."""
    folder = tmp_path_factory.mktemp("alone") / "pairs"
    completed(script(*PAIRS, "--output_dir", folder))
    return folder


# ---------------------------------------------------------------- trainings whose store dies


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More shards than a training keeps in memory."""
    return write_pairs(tmp_path_factory.mktemp("many"), 25, "png")


@pytest.fixture(scope="session")
def local(many: Path, train: Script) -> Path:
    """A training that reads them from the disk."""
    run = many.with_name("local")
    completed(train(run, "--pairs", many, *FEW))
    return run


def same(run: Path, other: Path) -> bool:
    return (run / WEIGHTS).read_bytes() == (other / WEIGHTS).read_bytes()


def stopped_at_a_step(run: Path, kill: Callable[[], object], start: Callable[[], Result]) -> Result:
    """Start a training, kill its store once it has made a few steps, and wait for it."""
    with ThreadPoolExecutor(1) as thread:
        result = thread.submit(start)
        until(lambda: (run / "metrics.jsonl").exists() and len(metrics(run)) > 3)
        kill()
        return result.result()


def one_line(result: Result) -> str:
    """Return the message of a script that has refused its input."""
    assert result.code == 2, result.err[-3000:]
    assert "Traceback" not in result.err
    return result.err.strip().splitlines()[-1]


# ---------------------------------------------------------------- what happened


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    report = yield
    if report.when == "call" or report.outcome != "passed":
        result = {"outcome": report.outcome, "seconds": round(report.duration, 1)}
        if report.skipped:
            result["reason"] = report.longrepr[2]
        note(f"{item.path.stem}.{item.name}", result)
    return report


def note(test: str, result: dict[str, object]) -> None:
    """Write what a test found, and how long it all took; others of this commit stay."""
    engines = {d.name: d.version for d in distributions() if d.name in PACKAGES}
    for name, command in {"slurm": ["slurmctld", "-V"], "munge": ["munged", "-V"]}.items():
        if shutil.which(command[0]):
            shown = subprocess.run(command, capture_output=True, text=True).stdout
            engines[name] = shown.split()[1] if name == "slurm" else shown.split()[0]
    where = provenance()
    path = ROOT / "runs" / "cluster.json"
    path.parent.mkdir(exist_ok=True)
    earlier = json.loads(path.read_text()) if path.exists() else {}
    tests = earlier["tests"] if earlier.get("commit") == where["commit"] else {}
    whole = {
        "engines": engines,
        "seconds": round(time.monotonic() - BEGAN),  # since the first test was looked for
        "tests": dict(sorted({**tests, test: {**result, "commit": where["commit"]}}.items())),
    }
    write_json(path, {**where, **whole})
