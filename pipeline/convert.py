"""Convert other people's files to ours: `python -m pipeline.convert NAME SOURCE OUT`.

    edm             a pickle of NVlabs EDM to a teacher's folder (data/teachers/edm/checkpoint.py)
    get_pairs       pairs of locuslab/get to a data set of ours (data/locuslab_pairs.py)
    get_checkpoint  a checkpoint of locuslab/get to a pipeline that train.py can continue from
                    (pipeline/jobs/locuslab.py)

OUT must not exist; it appears once it is complete. Nothing in SOURCE is executed.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from safetensors.torch import save_file

from data import locuslab_pairs
from data.files import check_local, new_folder, write_json
from data.manifest import ImageFormat
from data.teachers.edm.checkpoint import load, save
from get.errors import InputError
from get.pipeline_get import GETPipeline
from pipeline import cli
from pipeline.jobs.locuslab import Checkpoint, read_checkpoint
from pipeline.jobs.state import save_moments
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


@dataclass(frozen=True, kw_only=True)
class CheckpointConversion:
    """Turn a checkpoint of locuslab/get into a folder that GETPipeline loads.

    Attributes:
        file: The checkpoint, written by torch.save; nothing in it is executed.
        output_dir: The new folder.
        weights: Which weights make images: the averaged ones or the raw ones.
        heads: Attention heads of a model without a published name, which no tensor shows.
    """

    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    output_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    weights: Literal["ema", "model"] = "ema"
    heads: int | None = None

    def __post_init__(self) -> None:
        """Refuse numbers below 1."""
        if self.heads is not None:
            positive(heads=self.heads)


Conversion = EdmConversion | PairsConversion | CheckpointConversion
CONVERSIONS: dict[str, Conversion] = {
    "edm": EdmConversion(file=tyro.MISSING, output_dir=tyro.MISSING),
    "get_pairs": PairsConversion(folder=tyro.MISSING, output_dir=tyro.MISSING),
    "get_checkpoint": CheckpointConversion(file=tyro.MISSING, output_dir=tyro.MISSING),
}


def main(config: Conversion) -> None:
    """Convert what the settings name.

    Raises:
        InputError: If the source is not what it should be or OUT exists.
    """
    check_local(config.output_dir)
    if config.output_dir.exists():
        raise InputError(
            f"expected nothing at {config.output_dir}, got a file or folder; choose another place"
        )
    match config:
        case EdmConversion():
            convert_edm(config)
        case PairsConversion():
            convert_pairs(config)
        case CheckpointConversion():
            convert_checkpoint(config)


def convert_edm(config: EdmConversion) -> None:
    """Write the `edm.json` and `model.safetensors` of a pickle."""
    checkpoint, *_ = load(config.file)
    with new_folder(config.output_dir) as folder:
        save(checkpoint, folder)
    print(f"{config.output_dir}: {len(checkpoint.state)} tensors of a {checkpoint.wrapper}")


def convert_pairs(config: PairsConversion) -> None:
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


def convert_checkpoint(config: CheckpointConversion) -> None:
    """Write a checkpoint as a pipeline, and in `state/` what a training needs to continue.

    `python -m pipeline.train NAME --init_from OUT` does that.

    Raises:
        InputError: If the file is no such checkpoint or its parts contradict each other.
    """
    checkpoint = read_checkpoint(config.file, config.heads)
    model = checkpoint.models[config.weights]
    with new_folder(config.output_dir) as folder:
        GETPipeline(model).save_pretrained(folder)
        write_json(folder / "source.json", source_of(config, checkpoint))
        (state := folder / "state").mkdir()
        for name, weights in checkpoint.models.items():
            save_file(weights.state_dict(), state / f"{name}.safetensors")
        if checkpoint.moments:
            save_moments(state / "optimizer.safetensors", checkpoint.moments)
    print(
        f"{config.output_dir}: {checkpoint.args.get('model')}, {config.weights} weights, "
        f"{model.num_classes or 'no'} classes, "
        f"{'with' if checkpoint.moments else 'without'} the optimiser"
    )


def source_of(config: CheckpointConversion, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return where a pipeline comes from."""
    with config.file.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "format": "locuslab/get",
        "file": config.file.name,
        "sha256": sha256,
        "weights": config.weights,
        "args": checkpoint.args,
    }


if __name__ == "__main__":
    cli.run(main, lambda recipes: CONVERSIONS)
