"""Scripts in processes that really die, forked from one that has imported everything.

`python -m tests.processes` is that one: importing torch and diffusers takes longer than most tests.

A process is killed at an audit event (PEP 578), so moments are named by what happens, not by
functions of ours. Python has events for files, raised before they are touched: "open", "os.mkdir",
"os.rename", "shutil.copyfile". pipeline/jobs/run.py adds "get.step", raised in every step.
"""

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from resource import RLIMIT_FSIZE, setrlimit
from tempfile import TemporaryDirectory
from types import FrameType
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
MANY = 10**9
IMPORTED = ("pipeline.train", "pipeline.make_pairs", "pipeline.train_teacher", "pipeline.evaluate")
QUIET = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


class Result(NamedTuple):
    codes: list[int]  # of every process; minus the signal that killed it
    out: str
    err: str

    @property
    def code(self) -> int:
        (code,) = self.codes
        return code


class At(NamedTuple):
    """A moment in the life of a process."""

    event: str  # name of an audit event
    pattern: str  # fits one of its values: a path, the number of a step
    count: int = 1  # which of the events that fit
    calls: int = 0  # so many function calls later


def completed(result: Result) -> Result:
    assert not any(result.codes), result.err[-2000:]
    return result


def environment() -> dict[str, str]:
    """Return the variables of a script: no GPU, no network, no settings of accelerate."""
    return {k: v for k, v in os.environ.items() if not k.startswith("ACCELERATE_")} | QUIET


# ---------------------------------------------------------------- in the processes


class Trap:
    """Strikes at a moment of this process."""

    def __init__(self, at: At, strike: Callable[[], object]) -> None:
        self.at, self.strike, self.process = at, strike, os.getpid()
        self.events = self.calls = 0
        sys.addaudithook(self.audit)

    def audit(self, event: str, values: tuple) -> None:
        if event != self.at.event or os.getpid() != self.process:
            return
        if any(fnmatch(str(value), self.at.pattern) for value in values):
            self.events += 1
            if self.events == self.at.count:
                sys.setprofile(self.profile) if self.at.calls else self.strike()

    def profile(self, frame: FrameType, event: str, _: object) -> None:
        if event == "call" and os.getpid() == self.process:
            self.calls += 1
            if self.calls == self.at.calls:
                sys.setprofile(None)
                self.strike()


def live(order: dict, rank: int) -> None:
    """Be one process of a script."""
    os.environ.update(order["environment"])
    if order["processes"] > 1:
        os.environ.update(order["world"], RANK=str(rank), LOCAL_RANK=str(rank))
    for number, stream in ((1, "out"), (2, "err")):
        os.dup2(os.open(order[stream], os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    if order["file_bytes"]:
        setrlimit(RLIMIT_FSIZE, (order["file_bytes"], -1))
    trap, whom = None, -os.getpgrp() if order["group"] else os.getpid()
    if order["at"] and rank == order["rank"]:
        # from outside, as a scheduler does it: loader workers obey their parent alone
        kill = ["kill", f"-{order['number']}", "--", str(whom)]
        trap = Trap(At(*order["at"]), lambda: subprocess.run(kill, start_new_session=True))
    sys.argv = [order["module"], *order["arguments"]]
    sys.modules.pop(order["module"], None)
    try:
        runpy.run_module(order["module"], run_name="__main__", alter_sys=True)
    finally:
        sys.setprofile(None)
        if trap and order["count"]:
            Path(order["count"]).write_text(str(trap.calls))


def serve() -> None:
    """Fork the processes that each line of the standard input asks for; answer with their codes."""
    for name in IMPORTED:
        import_module(name)
    for line in sys.stdin:
        if not line.strip():  # the end: loader workers of tests may hold the pipe open
            break
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
    os._exit(0)  # to end in the usual way takes a second or two


# ---------------------------------------------------------------- in the tests

Script = Callable[..., Result]


@contextmanager
def template() -> Iterator[Script]:
    """Yield a function that runs `python -m module arguments` in forked processes."""
    with (
        TemporaryDirectory() as folder,
        subprocess.Popen(
            [sys.executable, "-m", "tests.processes"],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        streams = {name: Path(folder) / name for name in ("out", "err")}

        def script(
            module: str,
            *arguments: object,
            processes: int = 1,
            at: At | None = None,
            rank: int = 0,
            number: int = signal.SIGKILL,
            group: bool = True,
            file_bytes: int = 0,
            count: Path | None = None,
            **environment: str,
        ) -> Result:
            """Run a script.

            Args:
                module: Its name.
                arguments: Of its command line.
                processes: As torchrun would start them.
                at: When it gets a signal; None: never.
                rank: Of the process in which that moment is awaited.
                number: The signal.
                group: Whether all processes get it, loader workers too.
                file_bytes: Size at which files are full; 0: no limit.
                count: Gets the number of function calls after the moment `at`.
                environment: More variables.
            """
            for path in streams.values():
                path.write_text("")
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = str(free.getsockname()[1])
            world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "1"}
            order = {
                "module": module,
                "arguments": [str(argument) for argument in arguments],
                "environment": environment,
                "world": {**world, "WORLD_SIZE": str(processes)},
                "at": at,
                "count": count and str(count),
                **{"processes": processes, "rank": rank, "number": number, "group": group},
                **{name: str(path) for name, path in streams.items()},
                "file_bytes": file_bytes,
            }
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
            codes = json.loads(process.stdout.readline())
            return Result(codes, *(path.read_text() for path in streams.values()))

        yield script
        with suppress(BrokenPipeError):
            process.stdin.write("\n")
            process.stdin.close()


if __name__ == "__main__":
    serve()
