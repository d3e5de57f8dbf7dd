"""Convert files of other projects to ours and back: `python -m pipeline.convert NAME SOURCE OUT`.

    edm             a pickle of NVlabs EDM to a teacher's folder (data/teachers/edm/checkpoint.py)
    get_pairs       pairs of locuslab/get to a data set of ours (data/locuslab_pairs.py)
    get_checkpoint  a checkpoint of locuslab/get to a pipeline that train.py can continue from
                    (pipeline/jobs/locuslab.py)

and ours to other people's:

    export          a student to a folder that needs diffusers only, torch.export, ONNX
                    (pipeline/jobs/export.py)
    export_pairs    a data set to the layout of NVlabs FastGen or locuslab/get
                    (data/other_layouts.py)

OUT must not exist; it appears once it is complete. Nothing in SOURCE is executed.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from safetensors.torch import save_file

from data import locuslab_pairs, other_layouts
from data.files import check_local, new_folder, write_json
from data.manifest import ImageFormat, count_shards, read_manifest
from data.reader import read_shard
from data.teachers.edm.checkpoint import load, save
from get.errors import InputError
from get.pipeline_get import GETPipeline
from pipeline import cli
from pipeline.jobs.export import Form, export, publish, write_form
from pipeline.jobs.locuslab import Checkpoint, read_checkpoint
from pipeline.jobs.model_card import model_card
from pipeline.jobs.state import save_moments
from pipeline.jobs.students import load_pipeline
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


@dataclass(frozen=True, kw_only=True)
class ExportConversion:
    """Turn a student into a folder that loads where this package is not installed.

    `DiffusionPipeline.from_pretrained(OUT, trust_remote_code=True)` loads it.

    Attributes:
        model: A run, one of its checkpoints, or any folder with `model_index.json`.
        output_dir: The new folder.
        also: Other forms: torch (torch.export, model.pt2), onnx (model.onnx).
        iterations: Iterations of a GET in the other forms; None takes the model's own.
        evaluation: What evaluate.py measured of it (a JSON), for the card.
        license: Licence of the weights in the hub's words, for the card.
        push_to_hub: "owner/name" of a repository of the hub that gets the folder.
        private: Create that repository for its owner alone.
    """

    model: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MODEL")]
    output_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    also: tuple[Form, ...] = ()
    iterations: int | None = None
    evaluation: Path | None = None
    license: str | None = None
    push_to_hub: str | None = None
    private: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers below 1."""
        if self.iterations is not None:
            positive(iterations=self.iterations)


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


Conversion = EdmConversion | PairsConversion | CheckpointConversion | ExportConversion | PairsExport
CONVERSIONS: dict[str, Conversion] = {
    "edm": EdmConversion(file=tyro.MISSING, output_dir=tyro.MISSING),
    "get_pairs": PairsConversion(folder=tyro.MISSING, output_dir=tyro.MISSING),
    "get_checkpoint": CheckpointConversion(file=tyro.MISSING, output_dir=tyro.MISSING),
    "export": ExportConversion(model=tyro.MISSING, output_dir=tyro.MISSING),
    "export_pairs": PairsExport(pairs=tyro.MISSING, output_dir=tyro.MISSING),
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
        case ExportConversion():
            export_model(config)
        case PairsExport():
            export_pairs(config)


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


def export_model(config: ExportConversion) -> None:
    """Write a student as a folder of diffusers, and in the other forms."""
    pipeline = load_pipeline(config.model, torch.device("cpu"))
    title = config.push_to_hub or config.output_dir.name
    card = model_card(config.model, pipeline, title, config.license, config.evaluation)
    with new_folder(config.output_dir) as folder:
        export(pipeline, folder, card)
        for form in config.also:
            difference = write_form(pipeline, folder, form, config.iterations)
            print(f"{form}: its images differ by {difference:.1e} at most from the model's")
    print(f"{config.output_dir}: DiffusionPipeline.from_pretrained loads it")
    if config.push_to_hub is not None:
        publish(config.output_dir, config.push_to_hub, private=config.private)
        print(f"published as {config.push_to_hub}")


def export_pairs(config: PairsExport) -> None:
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
