"""What writing pairs costs in addition to the teacher: its images/s alone, and of the whole job.

Both make the same images of the same noise, alternately, in this process; the job also draws the
noise, encodes, hashes and writes.
"""

import tempfile
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from data.writer import open_pairs, write_shards
from get.cost import in_turns
from get.noise import draw
from pipeline.benchmarks.results import BenchmarkConfig, save
from pipeline.jobs.processes import local_device
from pipeline.recipes import RECIPES


@dataclass(frozen=True, kw_only=True)
class WriterConfig(BenchmarkConfig):
    """Compare the rate of a teacher alone with that of the whole job of writing its pairs.

    Attributes:
        recipe: The recipe whose teacher and settings are used.
        repeats: Shards written, and made without writing.
    """

    recipe: str = "digits"
    repeats: int = 5


def main(config: WriterConfig) -> None:
    """Measure both rates; write a JSON file."""
    with tempfile.TemporaryDirectory() as folder:
        settings = replace(RECIPES[config.recipe].pairs, output_dir=Path(folder))
        teacher, manifest = open_pairs(settings, local_device())
        pairs, size = manifest.pairs_per_shard, manifest.teacher_batch_size
        batches = [
            draw(0, range(at, at + size), manifest.image_shape, manifest.num_classes)
            for at in range(0, pairs, size)
        ]
        shards = count()
        calls = {
            "teacher": lambda: [teacher(*batch).cpu() for batch in batches],
            "job": lambda: write_shards(settings.output_dir, [next(shards)], teacher, manifest),
        }
        seconds = in_turns(calls, config.repeats)
    alone, job = (pairs / min(seconds[name].wall) for name in calls)
    figures = {
        "recipe": config.recipe,
        "pairs_per_shard": pairs,
        "teacher_batch_size": size,
        "repeats": config.repeats,
        "teacher_images_per_second": alone,
        "job_pairs_per_second": job,
        "overhead": 1 - job / alone,
    }
    save(config, "writer", figures)
    print(
        f"teacher alone {alone:.1f} images/s, whole job {job:.1f} pairs/s: "
        f"overhead {figures['overhead']:.1%}"
    )
