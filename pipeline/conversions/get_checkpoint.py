"""A checkpoint of locuslab/get to a pipeline that train.py can continue from."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from safetensors.torch import save_file

from data.files import new_folder, write_json
from get.pipeline_get import GETPipeline
from pipeline.jobs.locuslab import Checkpoint, read_checkpoint
from pipeline.jobs.state import save_moments
from pipeline.recipes.settings_make import positive


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


def main(config: CheckpointConversion) -> None:
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
