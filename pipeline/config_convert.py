"""The settings of the conversions of pipeline/convert.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from data.manifest import ImageFormat
from pipeline.recipes.settings_make import positive


@dataclass(frozen=True, kw_only=True)
class EdmConversion:
    """Turn a checkpoint of NVlabs EDM into a teacher's folder; nothing in it is executed.

    Attributes:
        file: The checkpoint, a pickle.
        output_dir: The new folder.
    """

    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    output_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]


@dataclass(frozen=True, kw_only=True)
class PairsConversion:
    """Turn pairs of locuslab/get (latent/*.pkl and image/*.pkl) into a data set of ours.

    Attributes:
        folder: The old data set.
        output_dir: The new folder.
        pairs_per_shard: Pairs a tar file; what does not fill one at the end is left out.
        image_format: "npy" (float16, unquantised), "npy32" or "png" (8 bit).
        pack: Pairs a member of the tar; stacks of hundreds are written and read much faster.
    """

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OLD_DIR")]
    output_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    pairs_per_shard: int = 1024
    image_format: ImageFormat = "npy"
    pack: int = 1

    def __post_init__(self) -> None:
        """Refuse numbers below 1."""
        positive(pairs_per_shard=self.pairs_per_shard, pack=self.pack)


@dataclass(frozen=True, kw_only=True)
class CheckpointConversion:
    """Turn a checkpoint of locuslab/get into a folder that GETPipeline loads.

    Attributes:
        file: The checkpoint, written by torch.save; nothing in it is executed.
        output_dir: The new folder.
        weights: Which weights make images: the averaged ones or the raw ones.
        heads: Attention heads of a model without a published name, which no tensor tells.
    """

    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    output_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    weights: Literal["ema", "model"] = "ema"
    heads: int | None = None

    def __post_init__(self) -> None:
        """Refuse numbers below 1."""
        if self.heads is not None:
            positive(heads=self.heads)
