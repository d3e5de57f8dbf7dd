"""Whole training steps compared with the machine's matmul rate and with the same GET on torchdeq.

The steps are those of pipeline/train.py with the published settings, on one batch. The limit is
the time that their multiply-accumulates would take at the rate of a large square matmul, which is
timed in the same turns: the machine's speed may change. Ratios are medians over all turns. Bytes
are counted as in memory.py.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch

from get.cost import in_turns, median_ratio
from get.errors import InputError
from get.losses import IterateLoss
from get.models import GET
from get.sizes import GET_SIZES, SIZES
from pipeline.benchmarks.on_torchdeq import OnTorchdeq
from pipeline.benchmarks.one_step import count_step, random_pairs
from pipeline.benchmarks.results import BenchmarkConfig, save
from pipeline.jobs.processes import local_device
from pipeline.jobs.tables import markdown as markdown_table
from pipeline.recipes import RECIPES
from pipeline.recipes.published import as_published, get_model, vit_model
from pipeline.recipes.settings_train import TrainConfig
from pipeline.training.allocator import keep_freed_memory
from pipeline.training.build import build_student
from pipeline.training.step import TrainingStep

Figures = dict[str, Any]
SIDE = {"cpu": 1024, "cuda": 8192}  # of the square matrices whose product sets the limit
PRODUCTS = 5  # of them in one call


@dataclass(frozen=True, kw_only=True)
class TrainBenchmarkConfig(BenchmarkConfig):
    """Compare whole training steps with the machine's matmul rate and with torchdeq.

    Attributes:
        sizes: Published sizes, of GET or ViT.
        fast_size: On a GPU: the size whose compiled step in bf16 is compared with that in TF32.
        image_size: Side of the images.
        batch_size: Samples per step.
        repeats: Turns, of one step each.
    """

    sizes: tuple[str, ...] = ("GET-T/2", "ViT-S/2")
    fast_size: str = "GET-B/2"
    image_size: int = 32
    batch_size: int = 4
    repeats: int = 6

    def __post_init__(self) -> None:
        """Refuse numbers below 1 and unknown sizes."""
        super().__post_init__()
        for size in (*self.sizes, self.fast_size):
            if size not in SIZES:
                raise InputError(f"expected a size among {', '.join(SIZES)}, got {size}")

    def published(self, size: str) -> TrainConfig:
        """Return the published training of a size, with this benchmark's batch."""
        if size in GET_SIZES:
            model = get_model(size)
        else:
            name, patch = size.split("/")
            model = replace(vit_model(name), patch_size=int(patch))
        batch = self.batch_size
        return as_published(
            TrainConfig(output_dir=self.output_dir, pairs="", model=model, global_batch_size=batch)
        )


def main(config: TrainBenchmarkConfig) -> None:
    """Measure every size; write a JSON file."""
    torch.set_float32_matmul_precision("high")  # TF32 on GPUs that have it
    device = local_device()
    load = [os.getloadavg()[0]]
    kept = keep_freed_memory()
    sizes = {size: measure(config, ways(config, size, device)) for size in config.sizes}
    if device.type == "cuda":
        sizes[config.fast_size] = fast(config, device)
    figures = {
        "image_size": config.image_size,
        "batch_size": config.batch_size,
        "repeats": config.repeats,
        "threads": torch.get_num_threads(),
        "load_average": [*load, os.getloadavg()[0]],
        "freed_memory_kept": kept,
        "sizes": sizes,
    }
    print(markdown(save(config, "train", figures)))


def ways(config: TrainBenchmarkConfig, size: str, device: torch.device) -> dict[str, TrainingStep]:
    """Return every way of making the same step; torchdeq's only where it is installed."""
    train = config.published(size)
    steps = {"unrolled": build_step(config, train, device)}
    if size in GET_SIZES:
        recompute = replace(train, gradient_checkpointing=True)
        steps["checkpointed"] = build_step(config, recompute, device)
        if find_spec("torchdeq"):
            steps["torchdeq"] = build_step(config, train, device, OnTorchdeq)
            saving = partial(OnTorchdeq, recompute=True)
            steps["torchdeq --mem"] = build_step(config, train, device, saving)
    return steps


def build_step(
    config: TrainBenchmarkConfig,
    train: TrainConfig,
    device: torch.device,
    wrap: Callable[[GET], IterateLoss] | None = None,
) -> TrainingStep:
    """Return the training step of a new student; `wrap` makes another objective of a GET."""
    torch.manual_seed(0)
    side = config.image_size
    images = replace(RECIPES["cifar10"].manifest(), image_shape=(3, side, side))
    with device:
        student = build_student(train, images)
    objective = wrap(student) if wrap and isinstance(student, GET) else None
    return TrainingStep(train, student, objective=objective)


def measure(config: TrainBenchmarkConfig, steps: dict[str, TrainingStep]) -> Figures:
    """Return the work, time and memory of the steps of one size."""
    student = steps["unrolled"].student
    batch, device = random_pairs(student, config.batch_size), student.device
    z0 = steps["unrolled"].random_start(0, config.batch_size)
    counts = {name: count_step(s.module, s.config, batch, z0) for name, s in steps.items()}
    a, b, product = (torch.randn([SIDE[device.type]] * 2, device=device) for _ in range(3))
    calls: dict[str, Callable[[], object]] = {
        "limit": lambda: [torch.mm(a, b, out=product) for _ in range(PRODUCTS)],
        **{name: partial(step, batch, 0) for name, step in steps.items()},
    }
    seconds = time_calls(calls, config.repeats, device)
    limit = [took / (PRODUCTS * SIDE[device.type] ** 3) for took in seconds["limit"]]
    macs = counts["unrolled"].macs
    others = [name for name in steps if "torchdeq" in name]
    return {
        "macs": macs,
        "macs_per_second": 1 / min(limit),
        "steps": {
            name: {
                "bytes": {"kept": counts[name].kept, "peak": counts[name].peak},
                "seconds": min(seconds[name]),
                "of_limit": macs * median_ratio(limit, seconds[name]),
                "ratio_to": {
                    other: {
                        "seconds": median_ratio(seconds[name], seconds[other]),
                        "peak": counts[name].peak / counts[other].peak,
                    }
                    for other in others
                    if name not in others
                },
            }
            for name in steps
        },
    }


def fast(config: TrainBenchmarkConfig, device: torch.device, compiled: bool = True) -> Figures:
    """Return the time of a step in TF32, and compiled in bf16: for a GPU."""
    train = config.published(config.fast_size)
    quick = replace(train, mixed_precision="bf16", compile=compiled)
    calls: dict[str, Callable[[], object]] = {}
    for name, settings in {"TF32": train, "bf16, compiled": quick}.items():
        step = build_step(config, settings, device)
        calls[name] = partial(step, random_pairs(step.student, config.batch_size), 0)
    seconds = time_calls(calls, config.repeats, device)
    return {
        "steps": {name: {"seconds": min(durations)} for name, durations in seconds.items()},
        "speedup": median_ratio(seconds["TF32"], seconds["bf16, compiled"]),
    }


def time_calls(
    calls: dict[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Return the seconds of every call and turn: CPU time where one CPU thread does the work."""
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    seconds = in_turns(calls, repeats)
    return {name: took.cpu if alone else took.wall for name, took in seconds.items()}


def markdown(result: Figures) -> str:
    """Return the table of steps."""
    head = ["model", "step", "seconds", "of the limit", "bytes kept / peak, MiB"]
    head += ["time / torchdeq's, / its --mem's", "peak / torchdeq's, / its --mem's"]
    rows = [head]
    for size, figures in result["sizes"].items():
        for name, step in figures["steps"].items():
            cells = [size, name, f"{step['seconds']:.2f}"]
            if "of_limit" in step:
                kept, peak = (f"{step['bytes'][key] / 2**20:.0f}" for key in ("kept", "peak"))
                cells += [f"{step['of_limit']:.2f}", f"{kept} / {peak}"]
                for key in ("seconds", "peak"):
                    ratios = [f"{ratio[key]:.2f}" for ratio in step["ratio_to"].values()]
                    cells.append(", ".join(ratios) or "-")
            rows.append([*cells, *["-"] * (len(head) - len(cells))])
    return markdown_table(rows)
