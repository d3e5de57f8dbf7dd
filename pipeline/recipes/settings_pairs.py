"""The settings of what is done with data sets of pairs that exist: curate_pairs, verify_pairs.

Apart from these commands, which answer `--help` before they import torch.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from get.errors import InputError
from pipeline.recipes.recipe import Recipes
from pipeline.recipes.settings_make import positive, within


@dataclass(frozen=True, kw_only=True)
class Writing:
    """Where a derived data set goes, and its layout.

    Attributes:
        output_dir: The folder of the new data set, or its address in an object store.
        pairs_per_shard: Pairs per tar file; None is as before. Pairs at the end that do not fill
            one are left out.
        pack: Pairs per member of a tar; None is as before.
    """

    output_dir: str
    pairs_per_shard: int | None = None
    pack: int | None = None

    def __post_init__(self) -> None:
        """Refuse numbers below 1."""
        positive(pairs_per_shard=self.pairs_per_shard, pack=self.pack)


@dataclass(frozen=True, kw_only=True)
class Subset(Writing):
    """Keep some pairs of a data set: those that fulfil every condition.

    Attributes:
        pairs: The data set.
        shards: Shards to keep, such as 0-99,200; None is all.
        indices: A text file of pairs to keep, numbers and ranges such as 0-99,200 in any order,
            counted in this data set.
        classes: Labels to keep; none is all.
        drop_curved: Share of the pairs that are left to drop: those with the largest |x - z|,
            which are the hardest to learn.
    """

    pairs: tyro.conf.Positional[str]
    shards: str | None = None
    indices: Path | None = None
    classes: tuple[int, ...] = ()
    drop_curved: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a share of everything."""
        super().__post_init__()
        if not 0 <= self.drop_curved < 1:
            raise InputError(f"expected drop_curved in [0, 1), got {self.drop_curved}")


@dataclass(frozen=True, kw_only=True)
class Merge(Writing):
    """Join data sets of one teacher and one shape, of other seeds or without a pair in common.

    Attributes:
        pairs: The data sets, in this order.
    """

    pairs: tyro.conf.Positional[tuple[str, ...]]

    def __post_init__(self) -> None:
        """Refuse to join nothing."""
        super().__post_init__()
        if self.pairs == ():
            raise InputError("expected data sets to merge, got none; name them after merge")


@dataclass(frozen=True, kw_only=True)
class Reshard(Writing):
    """Cut the same pairs into other shards, or stack them otherwise.

    Attributes:
        pairs: The data set.
    """

    pairs: tyro.conf.Positional[str]


@dataclass(frozen=True, kw_only=True)
class Preview:
    """Write a contact sheet and figures of a data set.

    Attributes:
        pairs: The data set.
        output_dir: The folder of preview.png and preview.json.
        num_pairs: Pairs to look at, in whole shards, evenly spread.
    """

    pairs: tyro.conf.Positional[str]
    output_dir: Path
    num_pairs: int = 8192

    def __post_init__(self) -> None:
        """Refuse numbers below 1."""
        positive(num_pairs=self.num_pairs)


@dataclass(frozen=True, kw_only=True)
class Push:
    """Publish a data set on the hub: tars first, then manifest, records and a card in one commit.

    Attributes:
        pairs: The folder of the data set.
        repo_id: USER/NAME; it is created if there is none.
        private: Whether a new one is private.
    """

    pairs: tyro.conf.Positional[Path]
    repo_id: tyro.conf.Positional[str]
    private: bool = False


Curation = Subset | Merge | Reshard | Preview | Push


def curations(recipes: Recipes) -> dict[str, Curation]:
    """Return the settings of curate_pairs.py by what it does; recipes do not matter."""
    return {
        "subset": Subset(pairs=tyro.MISSING, output_dir=tyro.MISSING),
        "merge": Merge(pairs=tyro.MISSING, output_dir=tyro.MISSING),
        "reshard": Reshard(pairs=tyro.MISSING, output_dir=tyro.MISSING),
        "preview": Preview(pairs=tyro.MISSING, output_dir=tyro.MISSING),
        "push": Push(pairs=tyro.MISSING, repo_id=tyro.MISSING),
    }


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Check that a data set of pairs is undamaged, and that its teacher made it.

    Attributes:
        pairs: The data set: a folder, an http(s) or fsspec address, or `pipe:COMMAND {}`.
        deep: Let the teacher make some of its batches again.
        quality: Let the teacher solve some of its batches in twice as many steps.
        teacher: The teacher, for `deep` and `quality`.
        batches: Number of teacher batches made again.
        tolerance: Fraction of the pixels that may differ by more than one 8-bit level, because
            other hardware and versions round differently.
        task_index: Which share of the shards this job checks; None asks Slurm or torchrun.
        num_tasks: Shares in all; None asks Slurm or torchrun.
        jobs: Processes of this machine that check at the same time.
    """

    pairs: tyro.conf.Positional[str]
    deep: bool = False
    quality: bool = False
    teacher: str | None = None
    batches: int = 4
    tolerance: float = 0.001
    task_index: int | None = None
    num_tasks: int | None = None
    jobs: int = 1

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        positive(batches=self.batches, jobs=self.jobs)
        within(0, 1, tolerance=self.tolerance)
