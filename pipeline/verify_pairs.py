"""Check a data set of pairs: `python -m pipeline.verify_pairs PAIRS [--deep --teacher TEACHER]`.

Every shard is compared with its record, the manifest, and the noise and labels of its seed; with
`--deep` the teacher makes some of the pairs again, with `--quality` in steps half as long: how far
are the pairs from the solution of their ODE? (fid.py measures their FID.) Like make_pairs.py, any
number of jobs share the work. The exit code is 0 if everything is right and 1 if something is not.
"""

from pipeline import cli
from pipeline.recipes.settings_pairs import VerifyConfig

if __name__ == "__main__":
    cli.end_with_code(lambda: cli.parse_flags(VerifyConfig))

import os
from dataclasses import replace
from functools import partial
from itertools import islice, pairwise
from statistics import fmean

import numpy as np

from data.folder import Folder, Store
from data.manifest import Manifest, count_shards, list_shards, read_manifest, record_name
from data.store import open_store
from data.teachers.open import open_teacher
from data.teachers.settings import Execution, Sampler
from data.teachers.teacher import Teacher
from data.verify import compare_with_teacher, distance_to_finer, find_damage
from get.errors import InputError
from pipeline.jobs.pool import in_processes
from pipeline.jobs.processes import local_device
from pipeline.jobs.share import share

SHOWN = 20  # damaged shards that messages name


def main(config: VerifyConfig) -> None:
    """Check every shard, then some pairs."""
    task, tasks = share(config.task_index, config.num_tasks, os.environ)
    store = open_store(config.pairs)
    manifest = read_manifest(store)
    local = isinstance(store, Folder)
    finished = list_shards(store.path) if local else list(range(count_shards(store)))
    if not finished:
        raise InputError(f"expected shards in {store}, got none; run make_pairs.py")
    deep = config.deep or config.quality
    teacher = open_theirs(config, store, manifest) if deep else None
    problems: dict[str, str] = {}
    for before, shard in pairwise([-1, *finished]):
        if shard > before + 1:
            problems[names_of(before + 1, shard - 1)] = "no record"
    mine = finished[task::tasks]
    find = partial(find_damage, store, manifest=manifest)
    found = in_processes(find, mine, config.jobs, "choose fewer --jobs")
    with cli.progress_bar(len(mine), "verify", "shard") as bar:
        for shard, problem in zip(mine, found, strict=True):
            if problem is not None:
                problems[record_name(shard)] = problem
            bar.update()
    whole = sum(record_name(shard) not in problems for shard in mine)
    total = f"{len(mine)}" if tasks > 1 else f"{finished[-1] + 1}"
    print(f"{whole} of {total} shards are whole: {whole * manifest.pairs_per_shard:,} pairs")
    for name, problem in islice(problems.items(), SHOWN):
        print(f"{name.replace('.json', '.tar')}: {problem}")
    if problems:
        broken = ", ".join(islice(problems, SHOWN))
        more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        command = "make_pairs.py" if manifest.derived is None else "curate_pairs.py"
        raise cli.Failed(
            f"expected whole shards in {store}, got others; delete {broken}{more} there and run "
            f"the same command of {command} again"
        )
    if teacher is not None:
        batches = -(-manifest.pairs_per_shard // manifest.teacher_batch_size)
        size = config.batches, 2
        chosen = np.random.default_rng(0).integers((len(finished), batches), size=size).tolist()
        if config.deep:
            compare(config, store, manifest, teacher, chosen)
        if config.quality:
            judge(config, store, manifest, chosen)


def names_of(first: int, last: int) -> str:
    """Name the records of a range of shards."""
    return record_name(first) if first == last else f"{record_name(first)} to {record_name(last)}"


def open_theirs(config: VerifyConfig, store: Store, manifest: Manifest) -> Teacher:
    """Open the teacher that made the pairs; InputError if another one is named."""
    if config.teacher is None:
        raise InputError(
            "expected --teacher with --deep or --quality, got none; name the one of these pairs"
        )
    sampler, execution = Sampler(**manifest.sampler), Execution(**manifest.execution)
    teacher = open_teacher(config.teacher, sampler, local_device(), execution)
    if teacher.fingerprint != manifest.teacher:
        raise InputError(
            f"expected the teacher that made {store}, got {config.teacher}, another one"
        )
    return teacher


def judge(config: VerifyConfig, store: Store, manifest: Manifest, chosen: list[list[int]]) -> None:
    """Say how far the pairs are from those of a finer sampler."""
    coarse = Sampler(**manifest.sampler)
    finer = replace(coarse, steps=2 * coarse.steps)
    assert config.teacher is not None
    teacher = open_teacher(config.teacher, finer, local_device(), Execution(**manifest.execution))
    distances = [
        distance_to_finer(store, shard, batch, teacher, manifest) for shard, batch in chosen
    ]
    error, spread = (fmean(column) for column in zip(*distances, strict=True))
    print(
        f"{config.batches} teacher batches solved in {finer.steps} steps instead of "
        f"{coarse.steps}: images differ by {error:.4f} (root mean square), {error / spread:.1%} of "
        f"what images differ among themselves ({spread:.3f})"
    )


def compare(
    config: VerifyConfig,
    store: Store,
    manifest: Manifest,
    teacher: Teacher,
    chosen: list[list[int]],
) -> None:
    """Let the teacher make some of its batches again."""
    differences = [
        compare_with_teacher(store, shard, batch, teacher, manifest) for shard, batch in chosen
    ]
    same, levels, fractions = zip(*differences, strict=True)
    noise, largest, fraction = all(same), max(levels), max(fractions)
    print(
        f"{config.batches} teacher batches made again: noise and labels "
        f"{'the same' if noise else 'DIFFERENT'}; pixels differ by up to {largest:.3f} levels of "
        f"256, {fraction:.2%} of them by more than one"
    )
    if not noise or fraction > config.tolerance:
        raise cli.Failed(
            f"expected the pairs of {store} from {config.teacher}, got others; "
            "--tolerance is the fraction of pixels that may differ by more than one level"
        )


if __name__ == "__main__":
    cli.end_with_code(lambda: main(cli.parse_flags(VerifyConfig)))
