"""Check a data set of pairs: `python -m pipeline.verify_pairs DIR [--deep --teacher TEACHER]`.

Numbers, names, sizes and hashes of every shard are checked; with `--deep` the teacher makes some
of the pairs again. The exit code is 0 if everything is right and 1 if something is not.
"""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import tyro

from data.manifest import Manifest, read_manifest, record_path, tar_path
from data.teachers.open import open_teacher
from data.teachers.settings import Execution, Sampler
from data.verify import compare_with_teacher, find_damage
from get.errors import InputError
from pipeline import cli
from pipeline.jobs.processes import local_device
from pipeline.recipes.settings_make import positive

SHOWN = 20  # damaged shards that messages name


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Check that a data set of pairs is undamaged, and that its teacher made it.

    Attributes:
        folder: The data set.
        deep: Let the teacher make some of its batches again.
        teacher: The teacher, for `deep`.
        batches: Number of teacher batches made again.
        tolerance: Fraction of the pixels that may differ by more than one 8-bit level, because
            other hardware and versions round differently.
    """

    folder: tyro.conf.Positional[Path]
    deep: bool = False
    teacher: str | None = None
    batches: int = 4
    tolerance: float = 0.001

    def __post_init__(self) -> None:
        """Refuse numbers below 1."""
        positive(batches=self.batches)


def main(config: VerifyConfig) -> None:
    """Check every shard, then some pairs."""
    manifest = read_manifest(config.folder)
    finished = [int(path.stem[6:]) for path in config.folder.glob("pairs-*.json")]
    if not finished:
        raise InputError(f"expected shards in {config.folder}, got none; run make_pairs.py")
    shards = range(max(finished) + 1)
    problems: dict[int, str] = {}
    with cli.progress_bar(len(shards), "verify", "shard") as bar:
        for shard in shards:
            if (problem := find_damage(config.folder, shard, manifest)) is not None:
                problems[shard] = problem
            bar.update()
    whole = len(shards) - len(problems)
    print(f"{whole} of {len(shards)} shards are whole: {whole * manifest.pairs_per_shard:,} pairs")
    for shard, problem in islice(problems.items(), SHOWN):
        print(f"{tar_path(config.folder, shard).name}: {problem}")
    if problems:
        broken = [record_path(config.folder, shard).name for shard in islice(problems, SHOWN)]
        more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise cli.Failed(
            f"expected whole shards in {config.folder}, got {len(problems)} that are not; delete "
            f"{', '.join(broken)}{more} there and run make_pairs.py again"
        )
    if config.deep:
        compare(config, manifest, len(shards))


def compare(config: VerifyConfig, manifest: Manifest, shards: int) -> None:
    """Let the teacher make some of its batches again."""
    if config.teacher is None:
        raise InputError("expected --teacher with --deep, got none; name the one of these pairs")
    sampler, execution = Sampler(**manifest.sampler), Execution(**manifest.execution)
    teacher = open_teacher(config.teacher, sampler, local_device(), execution)
    if teacher.fingerprint != manifest.teacher:
        raise InputError(
            f"expected the teacher that made {config.folder}, got {config.teacher}, another one"
        )
    batches = -(-manifest.pairs_per_shard // manifest.teacher_batch_size)
    chosen = np.random.default_rng(0).integers((shards, batches), size=(config.batches, 2))
    differences = [
        compare_with_teacher(config.folder, shard, batch, teacher, manifest)
        for shard, batch in chosen.tolist()
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
            f"expected the pairs of {config.folder} from {config.teacher}, got others; "
            "--tolerance is the fraction of pixels that may differ by more than one level"
        )


if __name__ == "__main__":
    cli.end_with_code(lambda: main(cli.parse_flags(VerifyConfig)))
