"""The settings of make_pairs.py as the writer takes them (data/writer.py)."""

from data.teachers.settings import Execution, Sampler
from data.writer import PairSettings
from pipeline.recipes.settings_make import PairsConfig


def pair_settings(config: PairsConfig) -> PairSettings:
    """Return all that decides the bytes of the pairs, and their folder."""
    return PairSettings(
        teacher=config.teacher,
        folder=config.output_dir,
        sampler=Sampler(
            steps=config.num_inference_steps,
            name=config.sampler,
            guidance_scale=config.guidance_scale,
        ),
        execution=Execution(
            mixed_precision=config.mixed_precision,
            compile=config.compile,
            memory_format=config.memory_format,
        ),
        seed=config.seed,
        teacher_batch_size=config.teacher_batch_size,
        pairs_per_shard=config.pairs_per_shard,
        image_format=config.image_format,
        pack=config.pack,
    )
