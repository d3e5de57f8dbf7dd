"""All that only a GPU can answer, in order of worth, within so many minutes.

Each part runs in a process of its own, and every row is kept in gpu.json at once (gpu_rows.py); the
same command goes on with what is missing. `--rehearse` runs the same code at its smallest on a CPU,
without compiling, so that no minute on a GPU is lost to a typing error.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import torch

from data.files import read_json
from get.errors import InputError
from pipeline.benchmarks import gpu_jobs, gpu_models
from pipeline.benchmarks.gpu_rows import GpuConfig, Part, Rows, found, measure
from pipeline.benchmarks.gpu_table import markdown

PARTS: dict[Part, Callable[[GpuConfig], Rows]] = {
    "tests": gpu_jobs.tests,
    "steps": gpu_models.steps,
    "sampling": gpu_models.sampling,
    "pairs": gpu_jobs.pairs,
    "saving": gpu_jobs.saving,
    "training": gpu_jobs.training,
}
SHARES: dict[Part, int] = {  # seconds of the first go, so that every part has a first row
    "tests": 150, "steps": 270, "sampling": 90, "pairs": 90, "saving": 60, "training": 180
}  # fmt: skip
LEAST = 30  # seconds in which a part can do anything


def main(config: GpuConfig) -> None:
    """Measure what is missing, or a part of it here.

    Raises:
        InputError: If there is no GPU and this is no rehearsal.
    """
    if not config.rehearse and not torch.cuda.is_available():
        raise InputError("expected a GPU, got none; --rehearse runs the same code on a CPU")
    if config.only is not None:
        if config.rehearse:  # compiling takes longer than all the rest
            torch.compiler.set_stance("force_eager")
        torch.set_float32_matmul_precision("high")  # TF32
        measure(config, config.only, PARTS[config.only](config.sized()))
        return
    until = time.monotonic() + 60 * config.minutes
    new = [part for part in config.parts if not found(config, part)["rows"]]
    for part in new:
        share = until - time.monotonic() if config.rehearse else SHARES[part]
        go(config, part, min(share, until - time.monotonic()))
    for part in config.parts:
        go(config, part, until - time.monotonic())
    if (path := config.output_dir / "gpu.json").exists():
        print(markdown(read_json(path)))


def go(config: GpuConfig, part: Part, seconds: float) -> None:
    """Measure what is missing of a part, in a process of its own with the flags of this command."""
    if found(config, part)["whole"]:
        return
    if seconds < LEAST:
        print(f"{part}: no time left; the same command goes on here", flush=True)
        return
    print(f"{part}: up to {seconds:.0f} s", flush=True)
    command = [sys.executable, "-m", "pipeline.benchmark", *sys.argv[1:], "--only", part]
    code = run_for(command, seconds)
    if code is None:
        print(f"{part}: stopped after {seconds:.0f} s; its rows are kept", flush=True)
    elif code:
        print(f"{part}: failed with exit code {code}; the others go on", flush=True)


def run_for(command: Sequence[str], seconds: float) -> int | None:
    """Return the exit code of a command; None if it, with all it has started, was stopped then."""
    with subprocess.Popen(command, process_group=0) as process:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
