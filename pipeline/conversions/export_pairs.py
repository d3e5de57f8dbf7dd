"""A data set to the layout of NVlabs FastGen or locuslab/get."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from data import other_layouts
from data.files import new_folder
from data.manifest import count_shards, read_manifest
from data.reader import read_shard
from pipeline import cli


@dataclass(frozen=True, kw_only=True)
class PairsExport:
    """Turn a data set of pairs into the layout of another project.

    Attributes:
        pairs: The data set.
        output_dir: The new folder.
        layout: fastgen (tars with latent.pth, noise.pth and txt_emb.pth, the class as one-hot row)
            or locuslab (latent/*.pkl and image/*.pkl).
    """

    pairs: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="PAIRS")]
    output_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    layout: Literal["fastgen", "locuslab"] = "fastgen"


def main(config: PairsExport) -> None:
    """Write a data set in the layout of another project, a shard in memory at a time."""
    manifest, shards = read_manifest(config.pairs), count_shards(config.pairs)
    write = other_layouts.LAYOUTS[config.layout]
    with (
        new_folder(config.output_dir) as folder,
        cli.progress_bar(shards, "export_pairs", "shard") as bar,
    ):
        for shard in range(shards):
            write(folder, shard, read_shard(config.pairs, shard, manifest), manifest)
            bar.update()
    print(f"{config.output_dir}: {shards * manifest.pairs_per_shard:,} pairs for {config.layout}")
