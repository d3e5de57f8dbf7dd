"""A training killed at any call, on any number of processes, ends with the bits of a whole one.

Every run here is a process that really dies. They are forked from a template that has imported
torch and diffusers already (`python -m tests.test_resume`): importing takes longer than training.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from resource import RLIMIT_FSIZE, setrlimit
from types import FrameType
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from data.pairs import ImageFormat, open_data_set
from pipeline import cli
from pipeline.recipes import STUDENTS
from pipeline.train import main

from .test_pairs import Softsign, manifest_of
from .test_reader import make

ROOT = Path(__file__).parents[1]
STEPS, EVERY = 12, 4  # a checkpoint every so many steps
MANY = 10**9
SMALL = (
    *("--max_train_steps", STEPS, "--checkpointing_steps", EVERY, "--validation_steps", EVERY),
    *("--model.width", 8, "--lr_warmup_steps", 2),
    *("--learning_rate", 2e-3, "--muon_learning_rate", 2e-2),
    *("--feature_network", None, "--real_images", None),
)
WEIGHTS = "model/diffusion_pytorch_model.safetensors"


# ---------------------------------------------------------------- processes that die


class Result(NamedTuple):
    codes: list[int]  # of every process; minus the signal that killed it
    out: str
    err: str


def trap(calls: list[list], number: int, group: bool) -> None:
    """Send this process, or its group, a signal once functions were called so often in turn."""
    process = os.getpid()

    def look(frame: FrameType, event: str, _: object) -> None:
        if event != "call" or not calls or calls[0][0] not in ("any", frame.f_code.co_qualname):
            return
        calls[0][1] -= 1
        if calls[0][1] > 0:
            return
        calls.pop(0)
        if not calls and os.getpid() == process:
            sys.setprofile(None)
            whom = -os.getpgrp() if group else process
            # from outside, as a scheduler does it: loader workers obey their parent alone
            subprocess.run(["kill", f"-{number}", "--", str(whom)], start_new_session=True)

    sys.setprofile(look)


def live(order: dict, rank: int) -> None:
    """Be one process of a training."""
    if order["processes"] > 1:
        os.environ |= order["environment"] | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    for number, stream in ((1, "out"), (2, "err")):
        os.dup2(os.open(order[stream], os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    if order["file_bytes"]:
        setrlimit(RLIMIT_FSIZE, (order["file_bytes"], -1))
    calls = order["at"]
    if calls and rank == order["rank"]:
        trap(calls, order["number"], order["group"])
    sys.argv = ["train", *order["arguments"]]
    try:
        cli.run(main, STUDENTS)
    finally:
        sys.setprofile(None)
        if order["count"]:
            Path(order["count"]).write_text(str(MANY - calls[0][1]))


def serve() -> None:
    """Fork the processes that each line of the standard input asks for; answer with their codes."""
    for line in sys.stdin:
        order, children = json.loads(line), []
        for rank in range(order["processes"]):
            if (child := os.fork()) == 0:
                os.setpgid(0, children[0] if children else 0)
                code: int | str | None = 70
                try:
                    live(order, rank)
                    code = 0
                except SystemExit as stop:
                    code = stop.code
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(int(code or 0))
            os.setpgid(child, children[0] if children else child)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        sys.stdout.write(json.dumps(codes) + "\n")
        sys.stdout.flush()


Job = Callable[..., Result]
At = Sequence[tuple[str, int]]  # functions, and how often each is called before the signal


@contextmanager
def template() -> Iterator[Job]:
    """Yield a function that runs `train smoke` with these arguments in forked processes."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("ACCELERATE_")}
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-m", "tests.test_resume"],
        **{"cwd": ROOT, "env": clean | quiet, "stdin": pipe, "stdout": pipe, "text": True},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def job(
            run: Path,
            *arguments: object,
            processes: int = 1,
            at: At = (),
            rank: int = 0,
            number: int = signal.SIGKILL,
            group: bool = True,
            file_bytes: int = 0,
            count: Path | None = None,
        ) -> Result:
            told = [run.with_name(f"{run.name}.{stream}") for stream in ("out", "err")]
            for path in told:
                path.unlink(missing_ok=True)
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = str(free.getsockname()[1])
            world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "1"}
            world["WORLD_SIZE"] = str(processes)
            order = {
                "arguments": [str(x) for x in ("smoke", *SMALL, "--output_dir", run, *arguments)],
                "environment": world,
                "at": at,
                "count": count and str(count),
                **{"processes": processes, "rank": rank, "number": number, "group": group},
                **{"out": str(told[0]), "err": str(told[1]), "file_bytes": file_bytes},
            }
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
            return Result(json.loads(process.stdout.readline()), *(p.read_text() for p in told))

        yield job
        process.stdin.close()


def whole(result: Result) -> Result:
    assert not any(result.codes), result.err[-2000:]
    return result


def contents(run: Path) -> dict[str, object]:
    """Return all that a run may end with, byte by byte; times are no part of it."""
    found: dict[str, object] = {}
    for path in sorted(p for p in run.rglob("*") if p.is_file()):
        value: object = path.read_bytes()
        if path.name in ("state.json", "finished.json"):
            value = {**json.loads(path.read_text()), "seconds": None}
        found[str(path.relative_to(run))] = value
    return {name: value for name, value in found.items() if name not in ("run.json", "run.lock")}


def assert_same(run: Path, other: Path) -> None:
    assert (found := contents(run)).keys() == (wanted := contents(other)).keys()
    assert [name for name in wanted if found[name] != wanted[name]] == []


# ---------------------------------------------------------------- what they start from


def make_pairs(folder: Path, form: ImageFormat = "png") -> Path:
    """Write four shards to train on and one to hold out."""
    open_data_set(folder, manifest_of(Softsign(), form))
    return make(folder, 5, form)


@pytest.fixture(scope="module")
def job() -> Iterator[Job]:
    with template() as job:
        yield job


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def undisturbed(job: Job, pairs: Path) -> dict[int, Path]:
    """Runs that nobody touches, by number of processes."""
    runs = {n: pairs.with_name(f"undisturbed-{n}") for n in (1, 2)}
    for processes, run in runs.items():
        whole(job(run, "--pairs", pairs, processes=processes))
    return runs


def checkpoints(run: Path) -> list[int]:
    return sorted(int(p.name[11:]) for p in run.glob("checkpoints/checkpoint-*"))


# ---------------------------------------------------------------- kill -9

MOMENTS = {
    "before its settings are written": ([("Run.__enter__", 1), ("write_json", 1)], []),
    "before the first checkpoint": ([("EMA.update", 3)], []),
    "inside a step": ([("EMA.update", 7)], [4]),  # weights have moved, their average has not
    "inside a checkpoint": ([("Path.rename", 1), ("save_moments", 1)], [4]),
    "before a checkpoint's rename": ([("Path.rename", 2)], [4]),
    "before an old one is deleted": ([("Path.rename", 3), ("checkpoints", 1)], [4, 8, 12]),
    "after the last step": ([("Run._publish", 1)], [8, 12]),
    "inside the result": ([("Run._publish", 1), ("copyfile", 2)], [8, 12]),
    "before it is called finished": ([("Run._publish", 1), ("write_json", 1)], [8, 12]),
}


@pytest.mark.parametrize(("at", "left"), MOMENTS.values(), ids=MOMENTS)
def test_a_training_killed_at_a_bad_moment_ends_with_the_same_bits(
    at, left, job, pairs, undisturbed, tmp_path
):
    run = tmp_path / "run"
    assert job(run, "--pairs", pairs, at=at).codes == [-signal.SIGKILL]
    assert checkpoints(run) == left
    assert not (run / "finished.json").exists()
    if (lines := run / "metrics.jsonl").exists():
        lines.write_text(lines.read_text() + '{"step": 9, "lo')  # killed as it wrote this
    again = whole(job(run, "--pairs", pairs))
    if left:
        assert f"continuing at step {left[-1]} of {STEPS}\n" in again.out
    assert_same(run, undisturbed[1])


WORLDS = [(0, 1), (2, 1), (0, 2), (2, 2)]  # loader workers, processes


def random_kills(count: int, seed: int) -> list[tuple[float, int, int]]:
    """Return moments of a training, as shares of its function calls, in every world in turn."""
    draws = random.Random(seed)
    return [(draws.random(), *WORLDS[i % len(WORLDS)]) for i in range(count)]


@pytest.fixture(scope="module")
def calls(job: Job, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many functions are called from the opening of a run to its end."""
    folder = tmp_path_factory.mktemp("calls")
    at = [("Run.__enter__", 1), ("any", MANY)]
    whole(job(folder / "run", "--pairs", pairs, at=at, count=folder / "calls"))
    return int((folder / "calls").read_text())


@pytest.mark.parametrize(
    ("share", "workers", "processes"),
    [
        *random_kills(4, seed=0),
        *(pytest.param(*kill, marks=pytest.mark.slow) for kill in random_kills(20, seed=1)),
    ],
)
def test_a_training_killed_at_a_random_call_ends_with_the_same_bits(
    share, workers, processes, job, pairs, calls, undisturbed, tmp_path
):
    command = tmp_path / "run", "--pairs", pairs, "--dataloader_num_workers", workers
    at = [("Run.__enter__", 1), ("any", int(share * calls))]
    killed = job(*command, processes=processes, at=at)
    assert killed.codes == [-signal.SIGKILL] * processes
    whole(job(*command, processes=processes))
    assert_same(tmp_path / "run", undisturbed[processes])


def test_loader_workers_of_a_killed_training_do_not_keep_its_folder(
    job, pairs, undisturbed, tmp_path
):
    command = tmp_path / "run", "--pairs", pairs, "--dataloader_num_workers", 2
    job(*command, at=[("EMA.update", 7)], group=False)
    whole(job(*command))
    assert_same(tmp_path / "run", undisturbed[1])


def test_a_training_ends_with_one_of_its_processes_and_goes_on_with_the_same_bits(
    job, pairs, undisturbed, tmp_path
):
    command = tmp_path / "run", "--pairs", pairs
    alone, killed = job(*command, processes=2, rank=1, at=[("EMA.update", 7)], group=False).codes
    assert killed == -signal.SIGKILL
    assert alone not in (0, -signal.SIGKILL)
    whole(job(*command, processes=2))
    assert_same(tmp_path / "run", undisturbed[2])


# ---------------------------------------------------------------- another number of processes


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_close(run: Path, other: Path) -> None:
    """Compare runs that sum gradients in another order: all figures of all steps, the result.

    Not the raw weights: where the gradient is nothing but rounding, as for the bias of attention's
    keys, AdamW makes a step of it.
    """
    for ours, theirs in zip(metrics(run), metrics(other), strict=True):
        assert ours == pytest.approx(theirs, rel=0, abs=1e-6)
    result, wanted = load_file(run / WEIGHTS), load_file(other / WEIGHTS)
    torch.testing.assert_close(result, wanted, rtol=0, atol=1e-6)


def test_two_processes_train_what_one_does(undisturbed):
    assert_close(undisturbed[2], undisturbed[1])


@pytest.mark.parametrize("before", [1, 2])
def test_another_number_of_processes_goes_on_and_is_told(before, job, pairs, undisturbed, tmp_path):
    run, now = tmp_path / "run", 3 - before
    job(run, "--pairs", pairs, at=[("EMA.update", 7)], processes=before)
    told = whole(job(run, "--pairs", pairs, processes=now)).out
    assert f"continuing at step 4 of {STEPS}, on {now} processes instead of {before}\n" in told
    assert_close(run, undisturbed[1])


# ---------------------------------------------------------------- signals


@pytest.mark.parametrize(
    ("number", "workers"),
    [(signal.SIGINT, 2), (signal.SIGTERM, 0), (signal.SIGUSR1, 2), (signal.SIGTERM, 2)],
)
def test_a_signal_to_all_its_processes_saves_the_step_and_ends_the_training(
    number, workers, job, pairs, undisturbed, tmp_path
):
    command = tmp_path / "run", "--pairs", pairs, "--dataloader_num_workers", workers
    stopped = job(*command, at=[("EMA.update", 6)], number=number)
    assert stopped.codes == [128 + number], stopped.err[-2000:]
    assert f"stopped by {number.name}: step 6 of {STEPS} is saved" in stopped.err
    assert checkpoints(tmp_path / "run") == [4, 6]
    whole(job(*command))
    assert_same(tmp_path / "run", undisturbed[1])


def test_a_signal_to_one_of_two_processes_ends_both(job, pairs, undisturbed, tmp_path):
    command = tmp_path / "run", "--pairs", pairs
    ended = job(
        *command, processes=2, rank=1, at=[("EMA.update", 3)], number=signal.SIGUSR1, group=False
    )
    assert ended.codes == [128 + signal.SIGUSR1] * 2
    (step,) = checkpoints(tmp_path / "run")[-1:]
    assert f"step {step} of {STEPS} is saved" in ended.err
    whole(job(*command, processes=2))
    assert (tmp_path / "run" / WEIGHTS).read_bytes() == (undisturbed[2] / WEIGHTS).read_bytes()


# ---------------------------------------------------------------- other settings


def moved(run: Path, step: int) -> float:
    """Return how far the weights have gone in the step after this one."""
    return float((weights(run, step + 1) - weights(run, step)).norm())


def weights(run: Path, step: int) -> torch.Tensor:
    path = run / "checkpoints" / f"checkpoint-{step}" / "state" / "model.safetensors"
    return torch.cat([x.double().flatten() for x in load_file(path).values()])


def test_other_settings_are_refused_in_one_line_or_hold_from_the_next_step(job, pairs, tmp_path):
    run, same = tmp_path / "run", tmp_path / "same"
    job(run, "--pairs", pairs, at=[("EMA.update", 7)])
    before = contents(run)
    refused = job(run, "--pairs", pairs, "--model.width", 16, "--learning_rate", 1e-4)
    assert (refused.codes, refused.err.count("\n")) == ([2], 1)
    assert "model.width was 8, is 16" in refused.err
    assert "learning_rate was 0.002, is 0.0001" in refused.err
    assert "--allow_config_change" in refused.err
    assert contents(run) == before

    shutil.copytree(run, same)
    slower = "--learning_rate", 1e-4, "--muon_learning_rate", 1e-3, "--allow_config_change"
    next_step = {"at": [("EMA.update", 1)], "number": signal.SIGTERM}  # the one after step 4
    told = job(run, "--pairs", pairs, *slower, **next_step)
    job(same, "--pairs", pairs, **next_step)
    assert told.codes == [128 + signal.SIGTERM]
    assert "going on with other settings: learning_rate was 0.002, is 0.0001; " in told.out
    assert moved(run, 4) == pytest.approx(moved(same, 4) / 20, rel=1e-3)

    record = json.loads((run / "run.json").read_text())
    (earlier,) = record["earlier"]
    assert (record["config"]["learning_rate"], earlier["config"]["learning_rate"]) == (1e-4, 2e-3)
    assert earlier["until"] == "checkpoint-4"
    whole(job(run, "--pairs", pairs, *slower[:-1]))  # no change any more, so no leave is needed


LONGER = ("--max_train_steps", STEPS + 2)


KILLED = [("keep_settings", 1), ("write_json", 1)]


@pytest.mark.parametrize("at", [(), KILLED])
def test_a_finished_run_trains_for_longer_if_it_may(at, job, pairs, undisturbed, tmp_path):
    run = shutil.copytree(undisturbed[1], tmp_path / "run")
    command = run, "--pairs", pairs, *LONGER
    refused = job(*command)
    assert (refused.codes, refused.err.count("\n")) == ([2], 1)
    assert f"max_train_steps was {STEPS}, is {STEPS + 2}" in refused.err
    if at:
        killed = job(*command, "--allow_config_change", at=at)  # as it takes the change down
        assert killed.codes == [-signal.SIGKILL]
    whole(job(*command, "--allow_config_change"))
    assert json.loads((run / "finished.json").read_text())["steps"] == STEPS + 2
    assert [x["step"] for x in metrics(run) if "loss" in x] == list(range(1, STEPS + 3))
    assert (run / WEIGHTS).read_bytes() != (undisturbed[1] / WEIGHTS).read_bytes()


if __name__ == "__main__":
    serve()
