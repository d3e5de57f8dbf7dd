"""Let a teacher write noise/image pairs in shards that any webdataset reader can read.

Any number of these jobs may run at once, as a Slurm array, under srun or torchrun, or in a shell
loop. Every task has its own shards, jobs do not communicate, and a job that runs again writes only
the missing shards. Next: verify_pairs.py, train.py.
"""

from pipeline import cli
from pipeline.recipes.recipe import pairs

if __name__ == "__main__":
    cli.check_arguments(pairs)

import os
import sys
import time

from data.claims import missing_shards, tidy
from data.manifest import list_shards
from data.writer import open_pairs, write_shards
from pipeline.jobs.processes import local_device, local_main
from pipeline.jobs.share import share
from pipeline.recipes.settings_make import PairsConfig


def main(config: PairsConfig) -> None:
    """Write those missing shards that belong to this task."""
    task, tasks = share(config.task_index, config.num_tasks, os.environ)
    teacher, manifest = open_pairs(config, local_device())
    folder = config.output_dir
    shards = range(config.num_pairs // config.pairs_per_shard)
    mine = list(missing_shards(folder, shards[task::tasks]))
    if not mine:
        tidy(folder)
        print(f"{status(config)}; nothing to do for task {task} of {tasks}")
        return

    began = time.perf_counter()
    total = len(mine) * config.pairs_per_shard
    shown = local_main() or tasks == 1
    bar = cli.progress_bar(total, f"pairs {folder.name}", "pair", shown=shown)
    with cli.Signals() as signals, bar:

        def progress(count: int) -> None:
            bar.update(count)
            if signals.received:  # the unfinished shard is deleted
                bar.close()
                signals.exit(signals.received, status(config))

        # Others may have written some of them since.
        written = write_shards(folder, missing_shards(folder, mine), teacher, manifest, progress)
    tidy(folder)
    rate = sum(record.count for record in written) / (time.perf_counter() - began)
    print(f"wrote {len(written)} shards, {rate:.0f} pairs/s; {status(config)}", file=sys.stderr)


def status(config: PairsConfig) -> str:
    """Say how many shards of the data set exist, whichever task wrote them."""
    shards = range(config.num_pairs // config.pairs_per_shard)
    done = sum(shard in shards for shard in list_shards(config.output_dir))
    rest = f", {len(shards) - done} are left" if done < len(shards) else ""
    return f"{done} of {len(shards)} shards are written to {config.output_dir}{rest}"


if __name__ == "__main__":
    cli.run(main, pairs)
