"""What writing pairs costs beside the teacher: images/s of the teacher alone and of the whole job.

Both make the same images of the same noise, in turn, in this process; the job draws the noise,
encodes, hashes and writes besides.
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

from data.files import write_json
from data.writer import open_pairs, write_shards
from get.noise import draw
from pipeline.jobs.processes import local_device
from pipeline.jobs.provenance import provenance
from pipeline.make_pairs import pair_settings
from pipeline.recipes import PAIRS
from pipeline.recipes.settings_make import positive


@dataclass(frozen=True, kw_only=True)
class WriterConfig:
    """Compare the rate of a teacher alone with that of the whole job of writing its pairs.

    Attributes:
        output_dir: Where pairs.json goes.
        recipe: The recipe whose teacher and settings are used.
        repeats: Shards written, and made without writing, in turn.
    """

    output_dir: Path
    recipe: str = "digits"
    repeats: int = 5

    def __post_init__(self) -> None:
        """Refuse numbers below 1."""
        positive(repeats=self.repeats)


def main(config: WriterConfig) -> None:
    """Measure both rates; write a JSON."""
    alone, job = [], []
    with tempfile.TemporaryDirectory() as folder:
        settings = replace(pair_settings(PAIRS[config.recipe]), folder=Path(folder))
        teacher, manifest = open_pairs(settings, local_device())
        pairs, size = manifest.pairs_per_shard, manifest.teacher_batch_size
        batches = [
            draw(0, range(at, at + size), manifest.image_shape, manifest.num_classes)
            for at in range(0, pairs, size)
        ]
        teacher(*batches[0])
        for shard in range(config.repeats):
            began = time.perf_counter()
            for batch in batches:
                teacher(*batch).cpu()
            between = time.perf_counter()
            write_shards(settings.folder, [shard], teacher, manifest)
            ended = time.perf_counter()
            alone.append(pairs / (between - began))
            job.append(pairs / (ended - between))
    result = {
        "recipe": config.recipe,
        "pairs_per_shard": pairs,
        "teacher_batch_size": size,
        "repeats": config.repeats,
        "teacher_images_per_second": max(alone),
        "job_pairs_per_second": max(job),
        "overhead": 1 - max(job) / max(alone),
        **provenance(),
    }
    write_json(config.output_dir / "pairs.json", result)
    print(
        f"teacher alone {max(alone):.1f} images/s, whole job {max(job):.1f} pairs/s: "
        f"overhead {result['overhead']:.1%}"
    )
    print(f"pairs {config.output_dir / 'pairs.json'}")
