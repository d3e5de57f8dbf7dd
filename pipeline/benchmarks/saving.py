"""What a checkpoint costs the step that saves it: written in line, and beside the next steps.

A turn is a usual step, a step that writes a checkpoint before it ends, one that copies the state
for a writer beside it, as trainings do, and the step after that, which has the writer beside it.
Checkpoints go where the results go, so the disk is the user's. Times are wall times.
"""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch

from get.cost import count_parameters, in_turns, median_ratio
from get.models import Student
from get.pipeline_get import GETPipeline
from pipeline.benchmarks.one_step import random_pairs
from pipeline.benchmarks.results import BenchmarkConfig, save
from pipeline.benchmarks.train import TrainBenchmarkConfig, build_step
from pipeline.jobs.beside import Beside
from pipeline.jobs.checkpoints import Progress, save_checkpoint
from pipeline.jobs.host_copy import HostCopy
from pipeline.jobs.processes import local_device
from pipeline.jobs.tables import markdown as markdown_table
from pipeline.recipes import RECIPES
from pipeline.recipes.settings_train import TrainConfig
from pipeline.training.allocator import keep_freed_memory
from pipeline.training.build import build_student
from pipeline.training.step import TrainingStep

Figures = dict[str, Any]
WAYS = ("in line", "beside", "after")


@dataclass(frozen=True, kw_only=True)
class SavingConfig(BenchmarkConfig):
    """Measure how long the step takes that saves a checkpoint.

    Attributes:
        recipe: A recipe whose student is measured with its own batch.
        size: A published size, measured with `batch_size` images of `image_size`.
        image_size: Side of those images.
        batch_size: Samples per step of the published size.
        repeats: Turns.
    """

    recipe: str = "digits"
    size: str = "GET-B/2"
    image_size: int = 16
    batch_size: int = 1
    repeats: int = 5


def main(config: SavingConfig) -> None:
    """Measure both students; write a JSON file."""
    torch.set_float32_matmul_precision("high")
    device = local_device()
    keep_freed_memory()
    published = TrainBenchmarkConfig(
        output_dir=config.output_dir, image_size=config.image_size, batch_size=config.batch_size
    )
    load = [os.getloadavg()[0]]
    steps = {
        config.recipe: lambda: own_step(config, device),
        config.size: lambda: build_step(published, published.published(config.size), device),
    }
    students = {name: measure(config, build()) for name, build in steps.items()}
    figures = {
        "image_size": config.image_size,
        "batch_size": config.batch_size,
        "repeats": config.repeats,
        "threads": torch.get_num_threads(),
        "load_average": [*load, os.getloadavg()[0]],
        "students": students,
    }
    print(markdown(save(config, "saving", figures)))


def own_step(config: SavingConfig, device: torch.device) -> TrainingStep:
    """Return the training step of a recipe's student, without a Frechet distance."""
    recipe = RECIPES[config.recipe]
    train: TrainConfig = replace(
        recipe.students[config.recipe], frechet_weight=0.0, feature_network=None, real_images=None
    )
    with device:
        return TrainingStep(train, build_student(train, recipe.manifest()))


def measure(config: SavingConfig, step: TrainingStep) -> Figures:
    """Return the seconds of every kind of step, and their ratios to a usual one."""
    batch, number = random_pairs(step.student, step.config.global_batch_size), count()
    make_step = partial(step, batch, 0)
    make_step()  # the optimisers make their moments
    state, writer = HostCopy(step.updates.state), Beside()
    config.output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=config.output_dir) as folder:
        settings = replace(
            step.config, output_dir=Path(folder), checkpointing_steps=1, checkpoints_total_limit=1
        )

        def write() -> None:
            save_checkpoint(settings, state, Progress(next(number)), save_result)

        def in_line() -> None:
            make_step()
            write()

        def beside() -> None:
            make_step()
            state.take()
            writer.start(write)

        calls: dict[str, Callable[[], object]] = {
            "step": make_step,
            "in line": in_line,
            "beside": beside,
            "after": make_step,
            "rest": writer.wait,
        }
        seconds = {name: took.wall for name, took in in_turns(calls, config.repeats).items()}
        writer.end()
    return {
        "parameters": count_parameters(step.student),
        "bytes": sum(x.nbytes for tensors in state.files.values() for x in tensors.values()),
        "seconds": seconds,
        "ratio": {name: median_ratio(seconds[name], seconds["step"]) for name in WAYS},
    }


def save_result(folder: Path, averaged: Student) -> None:
    """Write the result as a training does."""
    GETPipeline(averaged).save_pretrained(folder)


def markdown(result: Figures) -> str:
    """Return the table of students."""
    head = ["student", "parameters", "usual step, s", "saves in line", "saves beside", "step after"]
    rows = [head]
    for name, figures in result["students"].items():
        ratios = [f"{figures['ratio'][way]:.2f}x" for way in WAYS]
        usual = sorted(figures["seconds"]["step"])[len(figures["seconds"]["step"]) // 2]
        rows.append([name, f"{figures['parameters']:,}", f"{usual:.3f}", *ratios])
    return markdown_table(rows)
