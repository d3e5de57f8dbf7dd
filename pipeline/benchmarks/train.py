"""Whole training steps beside the machine's own matmul rate, and beside the same GET on torchdeq.

A step is what train.py makes: a loss on every iterate, backward, clipping, fused AdamW, EMA. The
limit is the time its multiply-accumulates would take at the rate of a large square matmul. That
rate is measured before and after every step, the steps in turn, and what is told is the median of
the ratios of all turns: the machine's speed may change. Bytes are as in benchmark_memory.py.
"""

import copy
import os
import resource
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from data.files import read_json, write_json
from get.cost import LiveBytes, Macs
from get.ema import EMA
from get.losses import IterateLoss
from get.models import GET, ViT, build
from pipeline.benchmarks.on_torchdeq import OnTorchdeq
from pipeline.jobs.processes import local_device
from pipeline.jobs.provenance import provenance
from pipeline.recipes.settings_make import positive
from pipeline.training.allocator import keep_freed_memory
from pipeline.training.build import compile_blocks

Objective = IterateLoss | OnTorchdeq
Figures = dict[str, Any]
ITERATE_DECAY, EMA_DECAY, LEARNING_RATE = 0.8, 0.9999, 1e-4  # as published
SIDE = {"cpu": 1024, "cuda": 8192}  # of the square matrices whose product sets the limit
PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
CLASSES = {  # what the name of an operation contains: where its time belongs
    "scaled_dot_product": "attention",
    "gelu": "GELU",
    "layer_norm": "LayerNorm",
    "adamw": "AdamW and EMA",
    "lerp": "AdamW and EMA",
    "mm": "matmul",
    "conv": "matmul",
}


@dataclass(frozen=True, kw_only=True)
class TrainBenchmarkConfig:
    """Time whole training steps beside the machine's matmul rate, and beside torchdeq.

    Attributes:
        output_dir: Where train.json goes.
        sizes: Published sizes, of GET or ViT.
        fast_size: On a GPU: the size whose bf16, compiled step is timed beside its TF32 one.
        image_size: Side of the images.
        batch_size: Samples a step.
        repeats: Turns, of one step each.
    """

    output_dir: Path
    sizes: tuple[str, ...] = ("GET-T/2", "ViT-S/2")
    fast_size: str = "GET-B/2"
    image_size: int = 32
    batch_size: int = 4
    repeats: int = 6

    def __post_init__(self) -> None:
        """Refuse numbers below 1."""
        positive(image_size=self.image_size, batch_size=self.batch_size, repeats=self.repeats)


class Training:
    """A model in training on one batch of random numbers: `step()` makes one whole step."""

    def __init__(
        self, module: Objective, batch_size: int, device: torch.device, bf16: bool = False
    ) -> None:
        """Draw a batch and set up optimiser and average; `bf16` is mixed precision."""
        self.module, self.device, self.bf16 = module.to(device), device, bf16
        self.model = model = module.model
        self.trainable = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.trainable, LEARNING_RATE, weight_decay=0.0, fused=True
        )
        self.ema = EMA(model, EMA_DECAY)
        generator = torch.Generator().manual_seed(0)
        shape = (batch_size, model.channels, model.image_size, model.image_size)
        self.noise, self.target = (
            torch.randn(shape, generator=generator).to(device) for _ in range(2)
        )
        self.z0 = None
        if isinstance(model, GET):
            self.z0 = torch.randn(batch_size, model.tokens, model.width, generator=generator).to(
                device
            )

    def loss(self) -> Tensor:
        """Return the loss, a weighted sum over the iterates."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            losses = self.module(self.noise, None, self.target, self.z0)
        return losses.total(ITERATE_DECAY)

    def step(self) -> None:
        """Make one step, as train.py does."""
        self.loss().backward()
        clip_grad_norm_(self.trainable, torch.inf)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.model)

    def macs(self) -> int:
        """Return the multiply-accumulates of a step, forward and backward."""
        with Macs() as work:
            self.loss().backward()
        self.optimizer.zero_grad()
        return work.total

    def bytes(self) -> dict[str, int]:
        """Return bytes kept for, and peak including, the backward pass; gradients exist before."""
        for p in self.trainable:
            p.grad = torch.zeros_like(p)
        with LiveBytes() as memory:
            loss = self.loss()
            kept = memory.now
            loss.backward()
        self.optimizer.zero_grad()
        return {"kept": kept, "peak": memory.peak}


def published(size: str, image_size: int) -> GET | ViT:
    """Return a new model as published, but for a decoder that is not zero."""
    torch.manual_seed(0)
    model = build(size, image_size=image_size)
    nn.init.normal_(model.decode.linear.weight, std=0.02)
    if isinstance(model, GET):
        model.map, model.z0 = "plain", "normal"
    return model


def modules(size: str, image_size: int) -> dict[str, Objective]:
    """Return every way of making the same step; torchdeq's only where it is installed."""
    model = published(size, image_size)
    found: dict[str, Objective] = {"unrolled": IterateLoss(model)}
    if isinstance(model, GET):
        saving = copy.deepcopy(model)
        saving.enable_gradient_checkpointing()
        found["checkpointed"] = IterateLoss(saving)
        if find_spec("torchdeq"):
            found["torchdeq"] = OnTorchdeq(copy.deepcopy(model))
            found["torchdeq --mem"] = OnTorchdeq(copy.deepcopy(model), recompute=True)
    return found


def main(config: TrainBenchmarkConfig) -> None:
    """Measure every size; write a JSON."""
    torch.set_float32_matmul_precision("high")  # TF32 where there is such a thing
    device = local_device()
    load = [os.getloadavg()[0]]
    ways = {
        size: {
            name: Training(module, config.batch_size, device)
            for name, module in modules(size, config.image_size).items()
        }
        for size in config.sizes
    }
    # How malloc treats large blocks is set for good: first as it is, then keeping what is freed.
    before = {size: paging(w["unrolled"]) for size, w in ways.items()}
    kept = keep_freed_memory()
    found = {size: measure(w, config.repeats) for size, w in ways.items()}
    for size, figures in found.items():
        figures["paging"]["before_freed_memory_is_kept"] = before[size]
    if device.type == "cuda":
        found[config.fast_size] = fast(config, device)
    load.append(os.getloadavg()[0])
    result = {
        "image_size": config.image_size,
        "batch_size": config.batch_size,
        "repeats": config.repeats,
        "threads": torch.get_num_threads(),
        "load_average": load,
        "freed_memory_kept": kept,
        "sizes": found,
        **provenance(),
    }
    write_json(config.output_dir / "train.json", result)
    print(markdown(read_json(config.output_dir / "train.json")))
    print(f"train {config.output_dir / 'train.json'}")


def measure(ways: dict[str, Training], repeats: int) -> Figures:
    """Return what the steps of one size cost, and where the time of the unrolled one goes."""
    steps: dict[str, Figures] = {n: {"bytes": way.bytes()} for n, way in ways.items()}
    first = ways["unrolled"]
    with Products() as products:
        first.step()
    macs = first.macs()
    calls: dict[str, Callable[[], object]] = {name: way.step for name, way in ways.items()}
    calls["products"] = products.replay
    seconds, limits = in_turns(calls, first.device, repeats)
    for name, step in steps.items():
        step["seconds"] = min(seconds[name])
        step["of_limit"] = macs * ratio(limits[name], seconds[name])
        step["ratio_to"] = {
            other: {
                "seconds": ratio(seconds[name], seconds[other]),
                "peak": step["bytes"]["peak"] / steps[other]["bytes"]["peak"],
            }
            for other in steps
            if "torchdeq" in other and "torchdeq" not in name
        }
    return {
        "macs": macs,
        "macs_per_second": 1 / min(min(some) for some in limits.values()),
        "products": {
            "share_of_macs": products.macs / macs,
            "share_of_step": ratio(seconds["products"], seconds["unrolled"]),
            "of_limit": products.macs * ratio(limits["products"], seconds["products"]),
        },
        "steps": steps,
        "paging": {"now": paging(first)},
        "shares": shares(first),
    }


def fast(config: TrainBenchmarkConfig, device: torch.device, compiled: bool = True) -> Figures:
    """Return the steps of one size in bf16 and compiled, and in TF32 as it stands: for a GPU."""
    plain, quick = (published(config.fast_size, config.image_size) for _ in range(2))
    if compiled:
        compile_blocks(quick)
    ways = {
        "TF32": Training(IterateLoss(plain), config.batch_size, device),
        "bf16, compiled": Training(IterateLoss(quick), config.batch_size, device, bf16=True),
    }
    seconds, _ = in_turns({name: w.step for name, w in ways.items()}, device, config.repeats)
    return {
        "steps": {name: {"seconds": min(some)} for name, some in seconds.items()},
        "speedup": ratio(seconds["TF32"], seconds["bf16, compiled"]),
    }


def in_turns(
    calls: Mapping[str, Callable[[], object]], device: torch.device, repeats: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return the seconds of every call in every turn, and those a large product took then.

    The latter are seconds a multiply-accumulate, before and after the call.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    limits: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    before = limit(device)
    for turn in range(repeats):
        for name, call in list(calls.items())[:: 1 if turn % 2 == 0 else -1]:
            seconds[name].append(timed(call, device))
            after = limit(device)
            limits[name].append((before + after) / 2)
            before = after
    return seconds, limits


def ratio(some: list[float], others: list[float]) -> float:
    """Return the median over the turns of what one takes beside the other."""
    return median(a / b for a, b in zip(some, others, strict=True))


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one call; of one thread its own, whatever else the machine does."""
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = clock()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - began


def limit(device: torch.device) -> float:
    """Return the seconds of a multiply-accumulate in a large square product."""
    side, count = SIDE[device.type], 5
    a, b, out = (torch.ones(side, side, device=device) for _ in range(3))
    timed(lambda: torch.mm(a, b, out=out), device)
    return timed(lambda: [torch.mm(a, b, out=out) for _ in range(count)], device) / count / side**3


class Products(TorchDispatchMode):
    """Notes every matrix product made while it is active, to make them again and nothing else."""

    def __init__(self) -> None:
        """None yet."""
        super().__init__()
        self.macs = 0
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []
        self.operands: dict[Any, Tensor] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation and note it if it is a product."""
        if func in PRODUCTS:
            keys = tuple((i, x.shape, x.stride(), x.dtype) for i, x in enumerate(args))
            for key, x in zip(keys, args, strict=True):
                if key not in self.operands:
                    self.operands[key] = torch.empty_like(x).copy_(x)
            self.calls.append((func, keys))
            self.macs += args[-2].shape[0] * args[-2].shape[1] * args[-1].shape[1]
        return func(*args, **(kwargs or {}))

    def replay(self) -> None:
        """Make the products again, in order, with their shapes and layouts."""
        with torch.no_grad():
            for func, keys in self.calls:
                func(*(self.operands[key] for key in keys))


def paging(training: Training, turns: int = 3) -> dict[str, float]:
    """Return what a step costs the system: its time, and pages that had to be mapped."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    seconds, limits = in_turns({"step": training.step}, training.device, turns)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "of_limit": training.macs() * ratio(limits["step"], seconds["step"]),
        "system_seconds": (after.ru_stime - before.ru_stime) / (turns + 1),
        "page_faults": (after.ru_minflt - before.ru_minflt) / (turns + 1),
    }


def shares(training: Training) -> dict[str, float]:
    """Return the shares of a step that its kinds of operation take."""
    on_gpu = training.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen:
        began = time.perf_counter()
        timed(training.step, training.device)
        whole = time.perf_counter() - began
    spent: Counter[str] = Counter()
    for event in seen.key_averages():
        if on_gpu or event.key.startswith("aten::"):
            kind = next((k for part, k in CLASSES.items() if part in event.key), "elementwise")
            spent[kind] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
    found = {kind: microseconds / 1e6 / whole for kind, microseconds in spent.most_common()}
    return found | {"between operations": 1 - sum(found.values())}


def markdown(result: Figures) -> str:
    """Return the table of steps, and a line a size on where the time goes."""
    head = ["model", "step", "seconds", "of the limit", "bytes kept / peak, MiB"]
    head += ["time beside torchdeq, its --mem", "peak beside torchdeq, its --mem"]
    lines, remarks = [head, ["---"] * len(head)], []
    for size, found in result["sizes"].items():
        for name, step in found["steps"].items():
            cells = [size, name, f"{step['seconds']:.2f}"]
            if "of_limit" in step:
                kept, peak = (f"{step['bytes'][key] / 2**20:.0f}" for key in ("kept", "peak"))
                cells += [f"{step['of_limit']:.2f}", f"{kept} / {peak}"]
            for key in ("seconds", "peak"):
                ratios = [f"{ratio[key]:.2f}" for ratio in step.get("ratio_to", {}).values()]
                cells.append(", ".join(ratios) if len(ratios) == 2 else "-")
            lines.append([*cells, *["-"] * (len(head) - len(cells))])
        if "shares" in found:
            took = ", ".join(f"{kind} {share:.0%}" for kind, share in found["shares"].items())
            remarks.append(
                f"{size}: its matrix products alone, in their own shapes, reach "
                f"{found['products']['of_limit']:.2f} of the limit. Of the unrolled step: {took}."
            )
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([table, *remarks])
