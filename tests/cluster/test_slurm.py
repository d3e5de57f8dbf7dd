"""Slurm: arrays, steps and allocations share the work; jobs queue themselves again."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.claims import read_claims
from data.manifest import list_shards
from tests.processes import ROOT, Script, completed
from tests.runs import assert_same_end, checkpoints, metrics

from .conftest import HERE, PAIRS, SHARDS, engine, needs, shards, until, variables

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]
PYTHON = (sys.executable, "-m")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Start Slurm; the variables of its users."""
    needs("slurmctld", "slurmd", "munged")
    if os.getuid():
        pytest.skip("slurm.sh needs root")
    folder = tmp_path_factory.mktemp("slurm")
    with engine("slurm.sh", folder):
        yield variables() | {"SLURM_CONF": f"{folder}/slurm.conf"}


class Cluster:
    """Commands of Slurm, with the logs of jobs in a folder."""

    def __init__(self, variables: dict[str, str], folder: Path) -> None:
        self.variables, self.folder = variables, folder

    def __call__(self, *command: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*map(str, command)],
            cwd=ROOT,
            env=self.variables,
            check=check,
            capture_output=True,
            text=True,
        )

    def submit(self, options: str, *command: object, job: str = "requeue.sbatch") -> str:
        """Submit a documented script; the number of the job."""
        log = f"--output={self.folder}/%j.log"
        call = ("sbatch", "--parsable", log, *options.split(), HERE / job, *command)
        return self(*call).stdout.strip()

    def jobs(self, number: str) -> list[dict[str, str]]:
        """Return what Slurm says of a job or of the elements of an array."""
        shown = self("scontrol", "show", "job", "-o", number).stdout
        return [dict(re.findall(r"(\w+)=(\S*)", line)) for line in shown.splitlines() if line]

    def again(self, number: str, seconds: float = 300) -> None:
        """Wait until a job has queued itself again; it begins after ten seconds, not two minutes.

        Earlier its nodes may refuse it as the job that has just ended. Its time limit is gone.
        """

        def queued() -> bool:
            (job,) = self.jobs(number)
            return job["Restarts"] != "0" and job["JobState"] == "PENDING"

        until(queued, seconds, f"the restart of job {number}")
        self("scontrol", "update", f"JobId={number}", "StartTime=now+10", "TimeLimit=30")

    def end(self, number: str) -> list[dict[str, str]]:
        """Wait until all elements of a job have ended."""
        active = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED")
        until(
            lambda: not any(job["JobState"].startswith(active) for job in self.jobs(number)),
            seconds=1800,
            what=f"the end of job {number}",
        )
        return self.jobs(number)

    def log(self) -> str:
        return "".join(path.read_text() for path in sorted(self.folder.glob("*.log")))


@pytest.fixture
def cluster(slurm: dict[str, str], tmp_path: Path) -> Cluster:
    return Cluster(slurm, tmp_path)


def claimed(folder: Path, shards: range) -> bool:
    """Say whether a job is at work on one of these shards."""
    return folder.exists() and any(claim.shard in shards for claim in read_claims(folder))


def test_an_array_queues_again_what_is_stopped_and_a_second_submission_does_nothing(
    cluster: Cluster, alone: Path
) -> None:
    folder = cluster.folder / "pairs"
    command = (*PYTHON, *PAIRS, "--output_dir", folder)
    number = cluster.submit("--array=0-1%2", *command)
    until(lambda: claimed(folder, range(1, SHARDS, 2)), what="a claim of element 1")
    cluster("scancel", "--signal=USR1", "--batch", f"{number}_1")  # as at a time limit
    cluster.again(f"{number}_1")
    ended = cluster.end(number)
    assert {job["JobState"] for job in ended} == {"COMPLETED"}, cluster.log()
    assert {job["ArrayTaskId"]: job["Restarts"] for job in ended} == {"0": "0", "1": "1"}
    assert shards(folder) == shards(alone)

    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = cluster.end(cluster.submit("--array=0-1", *command))
    assert {job["JobState"] for job in again} == {"COMPLETED"}
    assert cluster.log().count("nothing to do for task") == 2
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == times


def test_steps_in_the_elements_of_an_array_have_shares_of_their_own(cluster: Cluster) -> None:
    quick = ("pipeline.make_pairs", "smoke", "--output_dir")
    folder = cluster.folder / "array"
    ended = cluster.end(cluster.submit("--array=0-1 --ntasks=2", *PYTHON, *quick, folder))
    assert {job["JobState"] for job in ended} == {"COMPLETED"}, cluster.log()
    assert sorted(re.findall(r"wrote (\d) shards", cluster.log())) == ["1", "1", "1", "2"]
    assert list_shards(folder) == list(range(5))


def test_a_process_in_an_allocation_without_srun_does_all_the_work(cluster: Cluster) -> None:
    folder = cluster.folder / "pairs"
    command = (*PYTHON, "pipeline.make_pairs", "smoke", "--output_dir", folder)
    assert "wrote 5 shards" in cluster("salloc", "--ntasks=4", *command).stderr


def test_a_killed_task_fails_its_job_and_the_same_command_makes_the_rest(
    cluster: Cluster, alone: Path, script: Script
) -> None:
    folder = cluster.folder / "pairs"
    command = (*PAIRS, "--output_dir", folder)
    number = cluster.submit("--ntasks=2", *PYTHON, *command)
    until(lambda: claimed(folder, range(1, SHARDS, 2)), what="a claim of task 1")
    (claim, *_) = [c for c in read_claims(folder) if c.shard % 2]
    os.kill(claim.owner.pid, signal.SIGKILL)
    (job,) = cluster.end(number)
    assert job["JobState"] == "FAILED", cluster.log()
    assert len(list_shards(folder)) < SHARDS
    completed(script(*command))
    assert shards(folder) == shards(alone)


STEPS = 150
TRAINING = (
    *("smoke", "--validation_steps", 1000, "--checkpointing_steps", 1000),
    *("--max_train_steps", STEPS, "--output_dir"),
)


def test_a_training_on_two_nodes_that_queues_itself_again_ends_with_the_same_bits(
    cluster: Cluster, script: Script, smoke_pairs: Path
) -> None:
    cluster.variables["ACCELERATE_USE_CPU"] = "1"
    run, alone = cluster.folder / "run", cluster.folder / "alone"
    command = (*TRAINING, run, "--pairs", smoke_pairs)
    small = "--gpus-per-node=1 --cpus-per-task=1"
    number = cluster.submit(small, *command, job="train.sbatch")
    until(lambda: (run / "metrics.jsonl").exists() and len(metrics(run)) > 3, what="steps")
    assert cluster.jobs(number)[0]["NumNodes"] == "2"
    cluster("scancel", "--signal=USR1", "--batch", number)
    cluster.again(number)
    assert checkpoints(run), cluster.log()
    assert checkpoints(run)[0] < STEPS
    (job,) = cluster.end(number)
    assert job["JobState"] == "COMPLETED", cluster.log()
    completed(script("pipeline.train", *TRAINING, alone, "--pairs", smoke_pairs, processes=2))
    assert_same_end(run, alone)


SLOWLY = """import runpy, sys, time
sys.addaudithook(lambda event, _: event == "get.step" and time.sleep(0.4))
sys.argv.pop(0)
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def test_a_training_that_queues_itself_again_at_its_time_limit_ends_with_the_same_bits(
    cluster: Cluster, script: Script, smoke_pairs: Path
) -> None:
    run, alone = cluster.folder / "run", cluster.folder / "alone"
    command = ("pipeline.train", *TRAINING)
    (program := cluster.folder / "slowly.py").write_text(SLOWLY)
    slowly = (sys.executable, program, *command, run, "--pairs", smoke_pairs)
    # It takes a minute at least, and Slurm sends the signal 10 to 40 seconds before the limit.
    number = cluster.submit("--time=1 --signal=B:USR1@10", *slowly)
    cluster.again(number)
    assert checkpoints(run), cluster.log()
    assert checkpoints(run)[0] < STEPS
    (job,) = cluster.end(number)
    assert job["JobState"] == "COMPLETED", cluster.log()
    completed(script(*command, alone, "--pairs", smoke_pairs))
    assert_same_end(run, alone)
