"""Trainings in processes that really die, forked from one that has imported everything.

`python -m tests.processes` is that one: importing torch and diffusers takes longer than training.
"""

import json
import os
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

from data.manifest import ImageFormat, open_data_set
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
        [sys.executable, "-m", "tests.processes"],
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


def make_pairs(folder: Path, form: ImageFormat = "png") -> Path:
    """Write four shards to train on and one to hold out."""
    open_data_set(folder, manifest_of(Softsign(), form))
    return make(folder, 5, form)


def checkpoints(run: Path) -> list[int]:
    return sorted(int(p.name[11:]) for p in run.glob("checkpoints/checkpoint-*"))


if __name__ == "__main__":
    serve()
