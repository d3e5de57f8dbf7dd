"""Let a teacher write noise/image pairs into sharded webdatasets.

Any number of these jobs may run at once, as Slurm arrays, under srun, torchrun or a shell loop:
shards are dealt by task, jobs never talk to each other, and running one again writes only what is
missing. Next: verify_pairs.py, train.py.
"""

from pipeline import cli
from pipeline.recipes.recipe import pairs

if __name__ == "__main__":
    cli.check_arguments(pairs)


import os
import sys
import time

from data.manifest import read_record, record_path, tidy
from data.writer import open_pairs, write_shards
from pipeline.jobs.pair_settings import pair_settings
from pipeline.jobs.processes import local_device, local_main
from pipeline.jobs.share import share
from pipeline.recipes.settings_make import PairsConfig


def main(config: PairsConfig) -> None:
    """Write this task's share of the shards that are missing."""
    task, tasks = share(config.task_index, config.num_tasks, os.environ)
    settings = pair_settings(config)
    teacher, manifest = open_pairs(settings, local_device())
    folder = config.output_dir
    shards = range(config.num_pairs // config.pairs_per_shard)
    mine = [i for i in shards[task::tasks] if read_record(folder, i) is None]
    if not mine:
        tidy(folder)
        print(f"{left(config)}; nothing to do for task {task} of {tasks}")
        return

    began = time.perf_counter()
    total = len(mine) * config.pairs_per_shard
    shown = local_main() or tasks == 1
    bar = cli.progress_bar(total, f"pairs {folder.name}", "pair", shown=shown)
    with cli.Signals() as signals, bar:

        def progress(count: int) -> None:
            bar.update(count)
            if signals.received:  # the shard in hand is dropped, as if it had never been begun
                bar.close()
                signals.exit(signals.received, left(config))

        write_shards(folder, mine, teacher, manifest, progress)
    tidy(folder)
    rate = total / (time.perf_counter() - began)
    print(f"wrote {len(mine)} shards, {rate:.0f} pairs/s; {left(config)}", file=sys.stderr)


def left(config: PairsConfig) -> str:
    """Say how far the whole data set is."""
    shards = range(config.num_pairs // config.pairs_per_shard)
    done = sum(record_path(config.output_dir, i).exists() for i in shards)
    rest = f", {len(shards) - done} are left" if done < len(shards) else ""
    return f"{done} of {len(shards)} shards are written to {config.output_dir}{rest}"


if __name__ == "__main__":
    cli.run(main, pairs)
