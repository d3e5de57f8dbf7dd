"""All that only a GPU can answer, in order of worth, within so many minutes.

Each part runs in a process of its own and leaves gpu-PART.json; the same command goes on with the
parts that have none. `--rehearse` runs the same code at its smallest on a CPU, without compiling,
so that no minute on a GPU is lost to a typing error.
"""

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import torch
from torch import Tensor

from data.files import read_json
from data.teachers.edm.checkpoint import save as save_checkpoint
from data.teachers.edm.pickle_reader import Checkpoint
from data.writer import open_pairs, write_shards
from get.cost import count_macs, in_turns, median_ratio
from get.errors import InputError
from get.models import Student, build
from pipeline import make_pairs, train
from pipeline.benchmarks.costs import EDM, edm_network
from pipeline.benchmarks.one_step import count_step, random_pairs
from pipeline.benchmarks.results import BenchmarkConfig, save
from pipeline.benchmarks.train import TrainBenchmarkConfig, build_step, time_calls
from pipeline.jobs.processes import local_device
from pipeline.jobs.tables import markdown as markdown_table
from pipeline.recipes import RECIPES
from pipeline.recipes.settings_train import TrainConfig

Part = Literal["tests", "steps", "sampling", "pairs", "training"]
AT_MOST = 9 * 60  # seconds of a part
SIDE = {"cpu": 64, "cuda": 8192}  # of the square matrices whose product is the limit
PRODUCTS = 5
Figures = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class GpuConfig(BenchmarkConfig):
    """Measure what needs a GPU, as far as the minutes go; the same command goes on.

    Attributes:
        minutes: No part begins that could take longer than what is left of them.
        parts: Which parts, in this order.
        sizes: Published sizes of GET whose steps and sampling are measured.
        batch_sizes: Images of a training step.
        sampling_batches: Images at once in sampling; latency is that of 1.
        image_size: Side of the images.
        repeats: Turns.
        rehearse: Everything at its smallest, on any machine; figures mean nothing.
        only: Run this part in this process.
    """

    minutes: int = 14
    parts: tuple[Part, ...] = ("tests", "steps", "sampling", "pairs", "training")
    sizes: tuple[str, ...] = ("GET-B/2", "GET-S/2")
    batch_sizes: tuple[int, ...] = (128, 512)
    sampling_batches: tuple[int, ...] = (1, 256, 1024)
    image_size: int = 32
    repeats: int = 10
    rehearse: bool = False
    only: Part | None = None

    def sized(self) -> "GpuConfig":
        """Return what is measured: a rehearsal's is tiny."""
        if not self.rehearse:
            return self
        tiny = {"batch_sizes": (1,), "sampling_batches": (1, 2), "image_size": 4, "repeats": 1}
        return replace(self, sizes=("GET-T/2",), **tiny)


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
        if (config.output_dir / f"gpu-{part}.json").exists():
            print(f"{part}: done")
        elif (left := until - time.monotonic()) < 30:
            print(f"{part}: no time left; the same command goes on here")
        else:
            run_part(part, min(left, AT_MOST))
    print(markdown(config.output_dir))


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


# ---------------------------------------------------------------- the parts


def tests(config: GpuConfig) -> Figures:
    """Run the tests marked `gpu`; a rehearsal only collects them."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        flags = ["-n0", "-q", "-m", "gpu", f"--junitxml={report}"]
        flags += ["--collect-only"] if config.rehearse else []
        command = [sys.executable, "-m", "pytest", *flags]
        root = Path(__file__).parents[2]
        done = subprocess.run(command, cwd=root, check=False, capture_output=True, text=True)
        suites = ElementTree.parse(report).getroot().iter("testsuite") if report.exists() else ()
        counts = {k: sum(int(s.get(k, 0)) for s in suites) for k in ("tests",)}
        cases = ElementTree.parse(report).getroot().iter("testcase") if report.exists() else ()
        failed = [c.get("name") for c in cases if c.find("failure") is not None]
    return {**counts, "failed": failed, "exit_code": done.returncode, "tail": done.stdout[-1500:]}


def limit(device: torch.device, dtype: torch.dtype) -> Callable[[], object]:
    """Return a call that multiplies matrices as fast as this machine does."""
    side = SIDE[device.type]
    a, b, out = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(3))
    return lambda: [torch.mm(a, b, out=out) for _ in range(PRODUCTS)]


def steps(config: GpuConfig) -> Figures:
    """Measure training steps: TF32 as the paper's code computes, bf16, compiled, checkpointed."""
    device, rows = local_device(), []
    for size in config.sizes:
        for batch in config.batch_sizes:
            settings = TrainBenchmarkConfig(
                output_dir=config.output_dir, image_size=config.image_size, batch_size=batch
            )
            published = settings.published(size)
            bf16 = replace(published, mixed_precision="bf16")
            ways = {
                "TF32": published,
                "bf16": bf16,
                "bf16, compiled": replace(bf16, compile=True),
                "bf16, checkpointed": replace(bf16, gradient_checkpointing=True),
                "bf16, phantom": replace(bf16, gradient="phantom"),
            }
            # one after the other: five optimisers do not fit beside each other
            for name, train_config in ways.items():
                rows.append({"size": size, "batch": batch, "way": name}
                            | one_way(settings, train_config, device, config.repeats))  # fmt: skip
    return {"rows": rows}


def one_way(
    settings: TrainBenchmarkConfig, train_config: TrainConfig, device: torch.device, repeats: int
) -> Figures:
    """Return rate, share of the limit of bf16, and peak memory of a step."""
    step = build_step(settings, train_config, device)
    batch = random_pairs(step.student, settings.batch_size)
    few = random_pairs(step.student, 1)
    macs = count_step(step.module, train_config, few, step.random_start(0, 1)).macs
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    calls = {"step": partial(step, batch, 0), "limit": limit(device, torch.bfloat16)}
    seconds = time_calls(calls, repeats, device)
    of_limit = median_ratio(seconds["limit"], seconds["step"]) * settings.batch_size * macs
    return {
        "seconds": min(seconds["step"]),
        "images_per_second": settings.batch_size / min(seconds["step"]),
        "macs_per_image": macs,
        "of_limit": of_limit / (PRODUCTS * SIDE[device.type] ** 3),
        "peak_bytes": torch.cuda.max_memory_allocated() if cuda else None,
    }


@torch.no_grad()
def sampling(config: GpuConfig) -> Figures:
    """Measure latency and rate of sampling in bf16: eager, compiled, as a CUDA graph."""
    device, rows = local_device(), []
    for size in config.sizes:
        model = build(size, image_size=config.image_size)
        torch.nn.Module.to(model, device, torch.bfloat16).eval()
        macs = count_macs(lambda m=model: m.images(noise_of(m, 1)))
        for batch in config.sampling_batches:
            noise = noise_of(model, batch)
            calls = {
                "eager": lambda m=model, x=noise: m.images(x),
                "compiled": partial(torch.compile(model.images, fullgraph=True), noise),
                "CUDA graph": partial(
                    torch.compile(model.images, fullgraph=True, mode="reduce-overhead"), noise
                ),
                "limit": limit(device, torch.bfloat16),
            }
            seconds = in_turns(calls, config.repeats)
            for way in ("eager", "compiled", "CUDA graph"):
                share = median_ratio(seconds["limit"].wall, seconds[way].wall) * batch * macs
                rows.append({
                    "size": size, "batch": batch, "way": way,
                    "seconds": min(seconds[way].wall),
                    "of_limit": share / (PRODUCTS * SIDE[device.type] ** 3),
                })  # fmt: skip
    return {"rows": rows}


def noise_of(model: Student, batch: int) -> Tensor:
    """Return noise as a model takes it."""
    return torch.randn(batch, *model.image_shape, device=model.device, dtype=model.dtype)


def pairs(config: GpuConfig) -> Figures:
    """Measure the writing of pairs beside their teacher: EDM's DDPM++ with random weights."""
    batch, channels, calls_each = (4, 8, 1) if config.rehearse else (512, 128, 3)
    recipe = RECIPES["smoke" if config.rehearse else "cifar10"].pairs
    with tempfile.TemporaryDirectory() as folder:
        (weights := Path(folder) / "teacher").mkdir()
        network = edm_network(channels)
        arguments: Any = {k: list(v) if isinstance(v, tuple) else v for k, v in EDM.items()}
        arguments |= {"model_channels": channels, "model_type": "SongUNet"}
        state = {f"model.{k}": v for k, v in network.state_dict().items()}
        save_checkpoint(Checkpoint("EDMPrecond", arguments, state), weights)
        settings = replace(
            recipe, teacher=str(weights), output_dir=Path(folder) / "pairs",
            teacher_batch_size=batch, pairs_per_shard=batch,
        )  # fmt: skip
        teacher, manifest = open_pairs(settings, local_device())
        noise, shards = torch.randn(batch, *teacher.image_shape), count()
        calls = {
            "teacher": lambda: teacher(noise, None).cpu(),
            "job": lambda: write_shards(settings.output_dir, [next(shards)], teacher, manifest),
        }
        seconds = in_turns(calls, calls_each)
    alone, job = (batch / min(seconds[name].wall) for name in calls)
    return {
        "teacher_images_per_second": alone, "pairs_per_second": job, "overhead": 1 - job / alone
    }  # fmt: skip


def training(config: GpuConfig) -> Figures:
    """Write pairs and train a student on them, in bf16 and compiled."""
    name = "smoke" if config.rehearse else "photos"
    recipe = RECIPES[name]
    folder = config.output_dir / "gpu-training"
    made = replace(recipe.pairs, output_dir=folder / "pairs")
    make_pairs.main(made)
    student, settings = next(iter(recipe.students.items()))
    settings = replace(settings, pairs=made.output_dir, output_dir=folder / student)
    if not config.rehearse:
        settings = replace(settings, mixed_precision="bf16", compile=True)
    began = time.perf_counter()
    train.main(settings)
    seconds = time.perf_counter() - began
    lines = (folder / student / "metrics.jsonl").read_text().splitlines()
    return {
        "recipe": name, "steps": settings.max_train_steps, "seconds": seconds,
        "images_per_second": settings.max_train_steps * settings.global_batch_size / seconds,
        "last": lines[-3:],
    }  # fmt: skip


PARTS: dict[Part, Callable[[GpuConfig], Figures]] = {
    "tests": tests,
    "steps": steps,
    "sampling": sampling,
    "pairs": pairs,
    "training": training,
}


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
