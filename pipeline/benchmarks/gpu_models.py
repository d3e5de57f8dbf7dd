"""Training steps and sampling on a GPU, as shares of its rate of matrix products: for gpu.py."""

import gc
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from importlib.util import find_spec
from statistics import median
from typing import Any

import torch
from torch import Tensor

from get.cost import in_turns, median_ratio
from get.models import Student, build
from pipeline.benchmarks.gpu_rows import Figures, GpuConfig, Rows
from pipeline.benchmarks.on_torchdeq import OnTorchdeq
from pipeline.benchmarks.one_step import random_pairs
from pipeline.benchmarks.train import TrainBenchmarkConfig, build_step, time_calls
from pipeline.jobs.processes import local_device
from pipeline.recipes import RECIPES
from pipeline.training.peaks import peak, step_macs
from pipeline.training.step_cost import image_macs

SIDE = {"cpu": 64, "cuda": 8192}  # of the square matrices whose product is the limit
PRODUCTS = 5
WARM = {"cpu": 0, "cuda": 2}  # calls before any is timed: the second records CUDA graphs

PAPER = "TF32, torchdeq"  # as the code of the paper makes a step
BF16 = {"mixed_precision": "bf16"}
WAYS: dict[str, dict[str, Any]] = {
    PAPER: {},
    "TF32": {},
    "bf16": BF16,
    "bf16, compiled": {**BF16, "compile": True},
    "bf16, CUDA graphs": {**BF16, "compile": True, "cuda_graphs": True},
}
OTHERS: dict[str, dict[str, Any]] = {  # measured for one size and batch
    "bf16, checkpointed": {**BF16, "gradient_checkpointing": True},
    "bf16, implicit": {**BF16, "gradient": "implicit"},
    "bf16, phantom": {**BF16, "gradient": "phantom"},
}
SAMPLING: dict[str, dict[str, Any] | None] = {  # what torch.compile is told; None does not compile
    "eager": None,
    "CUDA graph": {"mode": "reduce-overhead"},
    "compiled": {},
}


def steps(config: GpuConfig) -> Rows:
    """Return the training steps: TF32 as the paper's code computes, bf16, compiled, others."""
    usual = [x for x in WAYS if x != PAPER or find_spec("torchdeq")]
    several = [(size, n) for n in config.batch_sizes for size in config.sizes]
    (size, n), *rest = several
    rows = [(size, n, way) for way in [*usual, *OTHERS]]  # the others are not compiled: quick
    rows += [(size, n, way) for size, n in rest for way in usual]
    return {f"{s}, {n}, {way}": partial(training_step, config, s, n, way) for s, n, way in rows}


def training_step(config: GpuConfig, size: str, batch: int, way: str) -> Figures:
    """Return rate, share of the limit and of the peak of bf16, and memory of a training step."""
    forget()
    device = local_device()
    settings = TrainBenchmarkConfig(
        output_dir=config.output_dir, image_size=config.image_size, batch_size=batch
    )
    train = replace(settings.published(size), **(WAYS | OTHERS)[way])
    step = build_step(settings, train, device, OnTorchdeq if way == PAPER else None)
    call = partial(step, random_pairs(step.student, batch), 0)
    figures = {"size": size, "batch": batch, "way": way, **warm_up(call, device)}
    calls = {"step": call, "limit": limit(device)}
    seconds = time_calls(calls, config.repeats, device)
    # Nobody knows beforehand how much work a solve is.
    macs = macs_of_step(size, config.image_size) if train.gradient == "unrolled" else None
    return {**figures, **rates(seconds["step"], seconds["limit"], batch, macs, device)}


@cache
def macs_of_step(size: str, image_size: int) -> float:
    """Return the multiply-accumulates of a training step for each image."""
    config = TrainBenchmarkConfig(image_size=image_size, batch_size=1).published(size)
    manifest = replace(RECIPES["cifar10"].manifest(), image_shape=(3, image_size, image_size))
    return step_macs(config, manifest, 1)


@cache
def macs_of_image(size: str, image_size: int) -> int:
    """Return the multiply-accumulates of sampling one image."""
    with torch.device("meta"):
        return image_macs(build(size, image_size=image_size))


def sampling(config: GpuConfig) -> Rows:
    """Return latency and rate of sampling in bf16: eager, as a CUDA graph, compiled."""
    return {
        f"{size}, {batch}, {way}": partial(sample, config, size, batch, way)
        for size in config.sizes
        for batch in config.sampling_batches
        for way in SAMPLING
    }


@torch.no_grad()
def sample(config: GpuConfig, size: str, batch: int, way: str) -> Figures:
    """Return the time of one call that makes so many images, and its share of the limit."""
    forget()
    device, options = local_device(), SAMPLING[way]
    model = build(size, image_size=config.image_size)
    torch.nn.Module.to(model, device, torch.bfloat16).eval()
    make: Callable[[Tensor], Tensor] = model.images
    if options is not None:
        make = torch.compile(make, fullgraph=True, **options)
    call = partial(make, noise_of(model, batch))
    figures = {"size": size, "batch": batch, "way": way, **warm_up(call, device)}
    seconds = in_turns({"call": call, "limit": limit(device)}, config.repeats)
    macs = macs_of_image(size, config.image_size)
    return {
        **figures, **rates(seconds["call"].wall, seconds["limit"].wall, batch, macs, device)
    }  # fmt: skip


def noise_of(model: Student, batch: int) -> Tensor:
    """Return noise as a model takes it."""
    return torch.randn(batch, *model.image_shape, device=model.device, dtype=model.dtype)


def forget() -> None:
    """Free what an earlier row holds: modules in cycles, compiled code, the memory of graphs."""
    torch.compiler.reset()
    if torch.cuda.is_available():
        gc.collect()
        from torch._inductor.cudagraph_trees import reset_cudagraph_trees

        reset_cudagraph_trees()  # torch 2.11 leaves them
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def warm_up(call: Callable[[], object], device: torch.device) -> Figures:
    """Call until nothing is compiled any more; return how long that took and the peak of memory."""
    began = time.perf_counter()
    for _ in range(WARM[device.type]):
        call()
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
    return {
        "warm_up_seconds": time.perf_counter() - began,
        "peak_bytes": torch.cuda.max_memory_allocated() if cuda else None,
    }


def limit(device: torch.device) -> Callable[[], object]:
    """Return a call that multiplies bf16 matrices as fast as this machine does.

    Random ones: a GPU is faster with ones or zeros.
    """
    side = SIDE[device.type]
    a, b, out = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(3))
    return lambda: [torch.mm(a, b, out=out) for _ in range(PRODUCTS)]


def rates(
    seconds: list[float],
    limits: list[float],
    batch: int,
    macs: float | None,
    device: torch.device,
) -> Figures:
    """Return what a call's turns say.

    Args:
        seconds: Of the call, turn by turn.
        limits: Of `limit`, in the same turns.
        batch: Images of a call.
        macs: Multiply-accumulates of an image; None if they are not known.
        device: Whose peak is the datasheet's.
    """
    usual, of_limit, of_peak = median(seconds), None, None
    if macs is not None:
        products = PRODUCTS * SIDE[device.type] ** 3
        of_limit = median_ratio(limits, seconds) * batch * macs / products
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        if (most := peak(name, "bf16")) is not None:
            of_peak = batch * macs / usual / most
    return {
        "seconds": usual,
        "images_per_second": batch / usual,
        "macs_per_image": macs,
        "of_limit": of_limit,
        "of_peak": of_peak,
    }
