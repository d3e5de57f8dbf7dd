"""Pairs of locuslab/get to a data set of ours."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from data import locuslab_pairs
from data.files import new_folder
from data.manifest import ImageFormat
from get.errors import InputError
from pipeline import cli
from pipeline.recipes.settings_make import positive


@dataclass(frozen=True, kw_only=True)
class PairsConversion:
    """Turn pairs of locuslab/get (latent/*.pkl and image/*.pkl) into a data set of ours.

    Attributes:
        folder: The old data set.
        output_dir: The new folder.
        pairs_per_shard: Pairs per tar file; those at the end that do not fill one are left out.
        image_format: "npy" (float16, unquantised), "npy32" or "png" (8 bit).
        pack: Pairs per member of the tar; stacks of hundreds are written and read much faster.
    """

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OLD_DIR")]
    output_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    pairs_per_shard: int = 1024
    image_format: ImageFormat = "npy"
    pack: int = 1

    def __post_init__(self) -> None:
        """Refuse numbers below 1."""
        positive(pairs_per_shard=self.pairs_per_shard, pack=self.pack)


def main(config: PairsConversion) -> None:
    """Write the pairs of an old data set in complete shards.

    Raises:
        InputError: If the old data set is damaged, or too small for a shard.
    """
    files = locuslab_pairs.find_files(config.folder)
    with (
        new_folder(config.output_dir) as folder,
        cli.progress_bar(len(files), "get_pairs", "file") as bar,
    ):
        shards, rest = locuslab_pairs.convert(
            files,
            folder,
            image_format=config.image_format,
            pairs_per_shard=config.pairs_per_shard,
            pack=config.pack,
            progress=bar.update,
        )
        if not shards:
            raise InputError(
                f"expected at least {config.pairs_per_shard} pairs in {config.folder}, got {rest}; "
                "choose a smaller pairs_per_shard"
            )
    remark = f"; {rest} more do not fill a shard and are left out" if rest else ""
    total = shards * config.pairs_per_shard
    print(f"{config.output_dir}: {total:,} pairs in {shards} shards of {len(files)} files{remark}")
