"""Training steps of what is compared at equal wall time: the time of each beside the first's.

A step is what train.py makes of a batch: the start of the iteration, losses, backward, clipping,
optimisers, EMA; the batch is drawn once, reading is left out. One thread, the steps of a
comparison in turn, and the median of the ratios of all turns. CPU time counts: other work on the
machine does not stretch it; wall time is told beside it. comparisons.py holds the numbers of steps
that follow.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

from data.files import write_json
from get.ema import EMA
from get.models import GET
from pipeline.jobs.provenance import provenance
from pipeline.plan import planned
from pipeline.recipes import COMPARISONS
from pipeline.recipes.settings_make import positive
from pipeline.recipes.settings_train import TrainConfig
from pipeline.training.allocator import keep_freed_memory
from pipeline.training.build import build_student, training_module
from pipeline.training.optimizers import build_optimizers

CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}


@dataclass(frozen=True, kw_only=True)
class StepsConfig:
    """Time the training steps of whatever is compared at equal wall time (comparisons.py).

    Attributes:
        output_dir: Where steps.json goes.
        comparisons: The comparisons whose trainings are timed; none means all.
        repeats: Turns, of one step each.
    """

    output_dir: Path
    comparisons: tuple[str, ...] = ()
    repeats: int = 15

    def __post_init__(self) -> None:
        """Refuse numbers below 1."""
        positive(repeats=self.repeats)


def main(config: StepsConfig) -> None:
    """Time every comparison; write a JSON."""
    torch.set_num_threads(1)
    kept = keep_freed_memory()
    found = {}
    for comparison in config.comparisons or COMPARISONS:
        first, *others = COMPARISONS[comparison]
        timed = [first, *(t for t in others if t.equal == "time")]
        steps = {t.name: Step(t.config, comparison) for t in timed}
        found[comparison] = in_turns(steps, config.repeats)
        for name, clocks in found[comparison].items():
            print(name, *(f"{clock} {t['ratio']:.2f}x" for clock, t in clocks.items()))
    result = {
        "repeats": config.repeats,
        "threads": 1,
        "freed_memory_kept": kept,
        "load_average": os.getloadavg()[0],
        "comparisons": found,
        **provenance(),
    }
    write_json(config.output_dir / "steps.json", result)
    print(f"steps {config.output_dir / 'steps.json'}")


class Step:
    """A training on one batch of random numbers; a call is a whole step."""

    def __init__(self, config: TrainConfig, pairs: str) -> None:
        """Build everything that train.py builds."""
        manifest, size = planned(pairs), config.global_batch_size
        torch.manual_seed(config.seed)
        self.config, self.student = config, build_student(config, manifest)
        self.module = training_module(config, self.student)
        self.optimizers = build_optimizers(config, self.student)
        self.ema = EMA(self.student, config.ema_decay)
        self.noise, self.target = (torch.randn(size, *manifest.image_shape) for _ in range(2))
        self.labels = torch.zeros(size, dtype=torch.int64) if manifest.num_classes else None

    def __call__(self) -> None:
        """Make one step."""
        student, z0 = self.student, None
        if isinstance(student, GET) and student.z0 == "normal":
            z0 = torch.randn(len(self.noise), student.tokens, student.width)
        losses = self.module(self.noise, self.labels, self.target, z0)
        losses.total(self.config.iterate_decay).backward()
        clip_grad_norm_(student.parameters(), self.config.max_grad_norm or torch.inf)
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        self.ema.update(student)


def in_turns(
    steps: Mapping[str, Callable[[], None]], repeats: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the median seconds of every step, and what that is beside the first in its turn."""
    spent = {name: {clock: [] for clock in CLOCKS} for name in steps}
    for step in steps.values():
        step()
    for _ in range(repeats):
        for name, step in steps.items():
            began = {clock: read() for clock, read in CLOCKS.items()}
            step()
            for clock, read in CLOCKS.items():
                spent[name][clock].append(read() - began[clock])
    first = spent[next(iter(steps))]
    return {
        name: {
            clock: {
                "seconds": median(some),
                "ratio": median(a / b for a, b in zip(some, first[clock], strict=True)),
            }
            for clock, some in clocks.items()
        }
        for name, clocks in spent.items()
    }
