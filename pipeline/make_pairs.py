"""Let a teacher write noise/image pairs in shards that any webdataset reader can read.

Any number of these jobs may run at once: a task of an array, of srun or of torchrun has its own
shards, other jobs share all of them. Each claims a shard before it makes it, so none is made twice;
a job that runs again writes only what is missing. Next: pairs_status.py, verify_pairs.py, train.py.
"""

from pipeline import cli
from pipeline.recipes.recipe import pairs

if __name__ == "__main__":
    cli.check_arguments(pairs)

import os
import sys
import time

from data.claims import Claims, missing_shards, read_claims, tidy
from data.manifest import ShardRecord, finished_shard, list_shards
from data.writer import open_pairs, write_shards
from pipeline.jobs.processes import local_device, local_main
from pipeline.jobs.share import share
from pipeline.recipes.settings_make import PairsConfig

SHOWN = 8  # shards that a message names


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
    size = config.pairs_per_shard
    name = f"pairs {folder.name}"
    bar = cli.progress_bar(len(mine) * size, name, "pair", shown=local_main())
    written: list[ShardRecord] = []
    made = 0
    with cli.Signals() as signals, bar, Claims(folder, len(shards)) as claims:

        def progress(count: int) -> None:
            nonlocal made
            made += count
            bar.update(made + len(claims.others) * size - bar.n)  # what other jobs do counts too
            if signals.received:  # the unfinished shard is deleted
                bar.close()
                signals.exit(signals.received, status(config))

        rest = mine
        while new := write_shards(folder, claims.missing(rest), teacher, manifest, progress):
            written += new
            rest = sorted(claims.others)  # look again: a job may have died since
    tidy(folder)
    rate = sum(record.count for record in written) / (time.perf_counter() - began)
    print(
        f"wrote {len(written)} shards, {rate:.0f} pairs/s; {status(config)}{at_work(claims)}",
        file=sys.stderr,
    )


def at_work(claims: Claims) -> str:
    """Say which of this job's shards other jobs still work on."""
    others = [c for c in read_claims(claims.folder) if c.shard in claims.others]
    left = [c for c in others if finished_shard(claims.folder, c.shard) is None]
    shown = ", ".join(f"{c.shard} ({c.owner.name})" for c in left[:SHOWN])
    more = f" and {len(left) - SHOWN} more" if len(left) > SHOWN else ""
    return f"; other jobs are at work on shards {shown}{more}" if left else ""


def status(config: PairsConfig) -> str:
    """Say how many shards of the data set exist, whichever task wrote them."""
    shards = range(config.num_pairs // config.pairs_per_shard)
    done = sum(shard in shards for shard in list_shards(config.output_dir))
    rest = f", {len(shards) - done} are left" if done < len(shards) else ""
    return f"{done} of {len(shards)} shards are written to {config.output_dir}{rest}"


if __name__ == "__main__":
    cli.run(main, pairs)
