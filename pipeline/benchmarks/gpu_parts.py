"""The parts of the benchmark `gpu`: tests, training steps, sampling, pairs, a training.

`gpu.py` runs each in a process of its own.
"""

import json
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

from data.teachers.edm.checkpoint import save as save_checkpoint
from data.teachers.edm.pickle_reader import Checkpoint
from data.writer import open_pairs, write_shards
from get.cost import count_macs, in_turns, median_ratio
from get.models import Student, build
from pipeline.benchmarks.costs import EDM, edm_network
from pipeline.benchmarks.one_step import count_step, random_pairs
from pipeline.benchmarks.results import BenchmarkConfig
from pipeline.benchmarks.train import TrainBenchmarkConfig, build_step, time_calls
from pipeline.jobs.processes import local_device
from pipeline.recipes import RECIPES
from pipeline.recipes.settings_train import TrainConfig

Part = Literal["tests", "steps", "sampling", "pairs", "training"]
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


def tests(config: GpuConfig) -> Figures:
    """Run the tests marked `gpu`; a rehearsal only collects them."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        flags = ["-n0", "-q", "-m", "gpu", f"--junitxml={report}"]
        flags += ["--collect-only"] if config.rehearse else []
        command = [sys.executable, "-m", "pytest", *flags]
        root = Path(__file__).parents[2]
        done = subprocess.run(command, cwd=root, check=False, capture_output=True, text=True)
        cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
        failed = [c.get("name") for c in cases if c.find("failure") is not None]
    return {
        "tests": len(cases),
        "failed": failed,
        "exit_code": done.returncode,
        "tail": done.stdout[-1500:],
    }


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
                "bf16, CUDA graphs": replace(bf16, compile=True, cuda_graphs=True),
                "bf16, checkpointed": replace(bf16, gradient_checkpointing=True),
                "bf16, phantom": replace(bf16, gradient="phantom"),
            }
            # one after the other: six optimisers do not fit beside each other
            for name, train_config in ways.items():
                rows.append({"size": size, "batch": batch, "way": name}
                            | one_way(settings, train_config, device, config.repeats))  # fmt: skip
    return {"rows": rows}


def one_way(
    settings: TrainBenchmarkConfig, train_config: TrainConfig, device: torch.device, repeats: int
) -> Figures:
    """Return rate, share of the limit of bf16, and peak memory of a step."""
    plain = replace(train_config, compile=False, cuda_graphs=False)
    counted = build_step(settings, plain, device)
    few = random_pairs(counted.student, 1)
    macs = count_step(counted.module, plain, few, counted.random_start(0, 1)).macs
    del counted
    step = build_step(settings, train_config, device)
    batch = random_pairs(step.student, settings.batch_size)
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
    """Write pairs and train a student on them by the commands, in bf16 and compiled."""
    recipe = "smoke" if config.rehearse else "photos"
    folder = config.output_dir / "gpu-training"
    quick = [] if config.rehearse else ["--mixed_precision", "bf16", "--compile"]
    pairs, run = ["--output_dir", folder / "pairs"], ["--output_dir", folder / "run"]
    run_verb("make_pairs", recipe, *pairs)
    began = time.perf_counter()
    run_verb("train", recipe, "--pairs", folder / "pairs", *run, *quick)
    seconds = time.perf_counter() - began
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return {"recipe": recipe, "train_seconds": seconds, "last": list(map(json.loads, lines[-3:]))}


def run_verb(name: str, *arguments: object) -> None:
    """Run one of our commands."""
    command = [sys.executable, "-m", f"pipeline.{name}", *map(str, arguments)]
    subprocess.run(command, check=True)


PARTS: dict[Part, Callable[[GpuConfig], Figures]] = {
    "tests": tests,
    "steps": steps,
    "sampling": sampling,
    "pairs": pairs,
    "training": training,
}
