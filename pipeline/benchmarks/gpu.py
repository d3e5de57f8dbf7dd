"""All that only a GPU can answer, in order of worth, within so many minutes.

Each part runs in a process of its own and leaves gpu-PART.json; the same command goes on with the
parts that have none. `--rehearse` runs the same code at its smallest on a CPU, without compiling,
so that no minute on a GPU is lost to a typing error.
"""

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import torch

from data.files import read_json
from get.errors import InputError
from pipeline.benchmarks.gpu_parts import PARTS, GpuConfig, Part
from pipeline.benchmarks.results import save
from pipeline.jobs.tables import markdown as markdown_table

AT_MOST = 9 * 60  # seconds of a part


def main(config: GpuConfig) -> None:
    """Run the parts that have no result yet, or one of them here.

    Raises:
        InputError: If there is no GPU and this is no rehearsal.
    """
    if not config.rehearse and not torch.cuda.is_available():
        raise InputError("expected a GPU, got none; --rehearse runs the same code on a CPU")
    if config.only is not None:
        if config.rehearse:  # compiling takes longer than all the rest
            torch.compiler.set_stance("force_eager")
        torch.set_float32_matmul_precision("high")  # TF32
        figures = PARTS[config.only](config.sized())
        save(config, f"gpu-{config.only}", {"rehearsal": config.rehearse, **figures})
        return
    until = time.monotonic() + 60 * config.minutes
    for part in config.parts:
        if is_done(config, part):
            print(f"{part}: done")
        elif (left := until - time.monotonic()) < 30:
            print(f"{part}: no time left; the same command goes on here")
        else:
            run_part(part, min(left, AT_MOST))
    print(markdown(config.output_dir))


def is_done(config: GpuConfig, part: Part) -> bool:
    """Say whether a part has a result; that of a rehearsal is none of the measurement."""
    path = config.output_dir / f"gpu-{part}.json"
    return path.exists() and read_json(path)["rehearsal"] == config.rehearse


def run_part(part: Part, seconds: float) -> None:
    """Run a part in a process of its own, with the flags of this command, and go on without it."""
    command = [sys.executable, "-m", "pipeline.benchmark", *sys.argv[1:], "--only", part]
    try:
        done = subprocess.run(command, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        print(f"{part}: stopped after {seconds:.0f} s, without a result")
    else:
        if done.returncode:
            print(f"{part}: failed with exit code {done.returncode}; the others go on")


def markdown(folder: Path) -> str:
    """Return the tables of the parts that have results."""
    tables = []
    with contextlib.suppress(InputError):
        head = ["model", "batch", "way", "images/s", "of the limit", "peak GiB"]
        rows = [
            [r["size"], str(r["batch"]), r["way"], f"{r['images_per_second']:.0f}",
             f"{r['of_limit']:.1%}", f"{(r['peak_bytes'] or 0) / 2**30:.1f}"]
            for r in read_json(folder / "gpu-steps.json")["rows"]
        ]  # fmt: skip
        tables.append(markdown_table([head, *rows]))
    with contextlib.suppress(InputError):
        head = ["model", "images at once", "way", "ms", "of the limit"]
        rows = [
            [r["size"], str(r["batch"]), r["way"], f"{r['seconds'] * 1e3:.1f}",
             f"{r['of_limit']:.1%}"]
            for r in read_json(folder / "gpu-sampling.json")["rows"]
        ]  # fmt: skip
        tables.append(markdown_table([head, *rows]))
    return "\n\n".join(tables)
