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
from pathlib import Path

from data.claims import Claims, missing_shards, read_claims, tidy
from data.manifest import ShardRecord, record_numbers
from data.places import open_site
from data.site import Site
from data.writer import open_pairs, write_shards
from get.errors import InputError
from pipeline.jobs.processes import local_device, local_main
from pipeline.jobs.share import share
from pipeline.recipes.settings_make import PairsConfig

SHOWN = 8  # shards that a message names


def main(config: PairsConfig) -> None:
    """Write those missing shards that belong to this task."""
    task, tasks = share(config.task_index, config.num_tasks, os.environ)
    site = open_site(config.output_dir)
    if tasks == 1 and config.task_index is None and not site.exclusive:
        raise InputError(
            f"expected --task_index and --num_tasks for pairs in {site}, got none: this store lets "
            "several jobs create the same object, so they cannot claim shards; number the jobs "
            "from 0, a single one too"
        )
    teacher, manifest = open_pairs(config, local_device())
    shards = range(config.num_pairs // config.pairs_per_shard)
    mine = list(missing_shards(site, shards[task::tasks]))
    if not mine:
        tidy(site)
        print(f"{status(config, site)}; nothing to do for task {task} of {tasks}")
        return

    began = time.perf_counter()
    size = config.pairs_per_shard
    name = f"pairs {Path(str(site)).name}"
    bar = cli.progress_bar(len(mine) * size, name, "pair", shown=local_main())
    written: list[ShardRecord] = []
    made = 0
    with cli.Signals() as signals, bar, Claims(site, len(shards)) as claims:

        def progress(count: int) -> None:
            nonlocal made
            made += count
            bar.update(made + len(claims.others) * size - bar.n)  # what other jobs do counts too
            if signals.received:  # the unfinished shard is deleted
                bar.close()
                signals.exit(signals.received, status(config, site))

        rest = mine
        while new := write_shards(site, claims.missing(rest), teacher, manifest, progress):
            written += new
            rest = sorted(claims.others)  # look again: a job may have died since
    tidy(site)
    rate = sum(record.count for record in written) / (time.perf_counter() - began)
    print(
        f"wrote {len(written)} shards, {rate:.0f} pairs/s; {status(config, site)}{at_work(claims)}",
        file=sys.stderr,
    )


def at_work(claims: Claims) -> str:
    """Say which of this job's shards other jobs still work on."""
    others = [c for c in read_claims(claims.site) if c.shard in claims.others]
    left = [c for c in others if claims.site.finished(c.shard) is None]
    shown = ", ".join(f"{c.shard} ({c.owner.name})" for c in left[:SHOWN])
    more = f" and {len(left) - SHOWN} more" if len(left) > SHOWN else ""
    return f"; other jobs are at work on shards {shown}{more}" if left else ""


def status(config: PairsConfig, site: Site) -> str:
    """Say how many shards of the data set exist, whichever task wrote them."""
    shards = range(config.num_pairs // config.pairs_per_shard)
    done = sum(shard in shards for shard in record_numbers(site.names()))
    rest = f", {len(shards) - done} are left" if done < len(shards) else ""
    return f"{done} of {len(shards)} shards are written to {site}{rest}"


if __name__ == "__main__":
    cli.run(main, pairs)
