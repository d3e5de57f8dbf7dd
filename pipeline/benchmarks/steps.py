"""Training steps of the trainings that get equal wall time: the time of each over the first's.

The steps are those of pipeline/train.py on one batch, without reading. They are made alternately
by one thread; the ratio is the median over all turns. CPU time decides, because other work on the
machine does not lengthen it; wall time is reported as well. The numbers of steps in
recipes/comparisons.py follow from these ratios.
"""

import os
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch

from data.manifest import Manifest
from get.cost import in_turns, median_ratio
from pipeline.benchmarks.one_step import random_pairs
from pipeline.benchmarks.results import BenchmarkConfig, save
from pipeline.recipes import RECIPES
from pipeline.recipes.comparisons import COMPARISONS, Training
from pipeline.recipes.settings_train import TrainConfig
from pipeline.training.allocator import keep_freed_memory
from pipeline.training.build import build_student
from pipeline.training.step import TrainingStep


@dataclass(frozen=True, kw_only=True)
class StepsConfig(BenchmarkConfig):
    """Time the training steps of the trainings that get equal wall time (comparisons.py).

    Attributes:
        comparisons: The comparisons whose trainings are timed; none means all.
        repeats: Turns, of one step each.
    """

    comparisons: tuple[str, ...] = ()
    repeats: int = 15


Ratios = dict[str, dict[str, dict[str, float]]]
"""Training -> clock -> seconds per step, and their ratio to the first training's."""


def main(config: StepsConfig) -> None:
    """Time every comparison; write a JSON file."""
    torch.set_num_threads(1)
    kept = keep_freed_memory()
    found: dict[str, Ratios] = {}
    for comparison in config.comparisons or COMPARISONS:
        found[comparison] = compare(comparison, COMPARISONS[comparison], config.repeats)
        for name, clocks in found[comparison].items():
            print(name, *(f"{clock} {row['ratio']:.2f}x" for clock, row in clocks.items()))
    figures = {
        "repeats": config.repeats,
        "threads": 1,
        "freed_memory_kept": kept,
        "load_average": os.getloadavg()[0],
        "comparisons": found,
    }
    save(config, "steps", figures)


def compare(comparison: str, trainings: tuple[Training, ...], repeats: int) -> Ratios:
    """Time a step of the first training and of those that get as much time."""
    first, *others = trainings
    manifest = RECIPES[comparison].manifest()
    timed = [first, *(t for t in others if t.equal == "time")]
    steps = {t.name: step_of(t.config, manifest) for t in timed}
    seconds = in_turns(steps, repeats)
    return {
        name: {
            clock: {
                "seconds": median(durations),
                "ratio": median_ratio(durations, getattr(seconds[first.name], clock)),
            }
            for clock, durations in took._asdict().items()
        }
        for name, took in seconds.items()
    }


def step_of(config: TrainConfig, manifest: Manifest) -> partial:
    """Return a training step on one batch of random pairs."""
    torch.manual_seed(config.seed)
    student = build_student(config, manifest)
    batch = random_pairs(student, config.global_batch_size)
    return partial(TrainingStep(config, student), batch, 0)
