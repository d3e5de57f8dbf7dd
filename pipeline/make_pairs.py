"""Let a teacher write noise/image pairs into sharded webdatasets.

Any number of these jobs may run at once, under torchrun, accelerate, srun or a shell loop: shards
are dealt by rank, jobs never talk to each other, and running one again writes only what is
missing. Next: train.py.
"""

import os
import sys
import time

from data.pairs import open_data_set, read_record
from data.teachers import DiffusersTeacher, Sampler
from data.writer import describe, write_shard
from pipeline import cli
from pipeline.config import PairsConfig
from pipeline.recipes import PAIRS


def main(config: PairsConfig) -> None:
    """Write this process's share of the shards that are missing."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    teacher = DiffusersTeacher(
        config.teacher, Sampler(steps=config.num_inference_steps), cli.local_device()
    )
    manifest = describe(
        teacher,
        seed=config.seed,
        teacher_batch_size=config.teacher_batch_size,
        pairs_per_shard=config.pairs_per_shard,
        image_format=config.image_format,
    )
    open_data_set(config.output_dir, manifest)
    shards = range(config.num_pairs // config.pairs_per_shard)
    mine = [i for i in shards[rank::world] if read_record(config.output_dir, i) is None]
    if not mine:
        print(
            f"{len(shards)} shards in {config.output_dir} are written; nothing to do (rank {rank})"
        )
        return

    began = time.perf_counter()
    total, name = len(mine) * config.pairs_per_shard, f"pairs {config.output_dir.name}"
    bar = cli.progress_bar(total, name, "pair", shown=cli.local_main())
    with cli.Signals() as signals, bar:

        def progress(count: int) -> None:
            bar.update(count)
            if signals.received:  # the shard in hand is dropped, as if it had never been begun
                bar.close()
                done = sum(read_record(config.output_dir, i) is not None for i in mine)
                made = f"{done} of {len(mine)} shards are written to {config.output_dir}"
                signals.exit(signals.received, made)

        for shard in mine:
            write_shard(config.output_dir, shard, teacher, manifest, progress)
    rate = len(mine) * config.pairs_per_shard / (time.perf_counter() - began)
    print(f"wrote {len(mine)} shards to {config.output_dir}: {rate:.0f} pairs/s", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main, PAIRS)
