"""Make images with a distilled model: PNGs and a grid.

Image i of a seed is the same for any batch size and number of processes (to one 8-bit level).
Under torchrun every process makes its share; running it again makes only what is missing.
"""

from pipeline import cli
from pipeline.recipes.recipe import samples

if __name__ == "__main__":
    cli.check_arguments(samples, default="digits")


import os
from pathlib import Path

import torch
from PIL import Image

from data.files import new_file, read_json, write_json
from get.equilibrium import DeltaMemory
from get.errors import InputError
from get.images import from_pil, grid, to_pil, to_uint8
from get.noise import draw
from get.sampling import generate
from pipeline.jobs.processes import local_device, local_main
from pipeline.jobs.students import load_pipeline, weights_hash
from pipeline.recipes.settings_make import SampleConfig

GRID = 100  # images of the grid at most


def main(config: SampleConfig) -> None:
    """Write the images that are missing."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    pipeline = load_pipeline(config.model, local_device())
    model = pipeline.model
    if model.channels not in (1, 3) and pipeline.vae is None:
        raise InputError(f"expected a model of 1 or 3 channels for PNGs, got {model.channels}")
    classes = config.class_labels
    if classes and model.num_classes is None:
        raise InputError(f"expected no class_labels, got {classes}; the model is unconditional")
    if any(not 0 <= k < (model.num_classes or 0) for k in classes or ()):
        raise InputError(f"expected class_labels below {model.num_classes}, got {classes}")

    settings = {
        "model": weights_hash(config.model),
        "seed": config.seed,
        "class_labels": classes,
        "iterations": config.iterations,
        **({"tol": config.tol} if config.tol else {}),
    }
    delta = None
    if config.delta_threshold:
        delta = DeltaMemory(config.delta_threshold)
        settings["delta_threshold"] = config.delta_threshold
    open_folder(config.output_dir, settings)
    missing = [
        i for i in range(rank, config.num_images, world) if not image_path(config, i).exists()
    ]
    bar = cli.progress_bar(len(missing), "sample", "image", shown=local_main())
    with cli.Signals() as signals, bar:
        for at in range(0, len(missing), config.batch_size):
            indices = missing[at : at + config.batch_size]
            noise, labels = draw(config.seed, indices, model.image_shape, model.num_classes)
            if classes:
                labels = torch.tensor([classes[i % len(classes)] for i in indices])
            images = generate(
                model,
                noise,
                labels,
                seed=config.seed,
                indices=indices,
                iterations=config.iterations,
                tol=config.tol,
                delta=delta,
            )
            with torch.no_grad():
                images = pipeline.to_images(images).cpu()
            for index, image in zip(indices, to_uint8(images), strict=True):
                with new_file(image_path(config, index)) as path:
                    to_pil(image).save(path, format="png")
            bar.update(len(indices))
            if signals.received:
                bar.close()
                signals.exit(signals.received, f"{at + len(indices)} of {len(missing)} images made")
    if not missing:
        print(f"{config.num_images} images in {config.output_dir} are made; nothing to do")
    if all(image_path(config, i).exists() for i in range(config.num_images)):
        print(f"images {config.output_dir}, grid {write_grid(config)}")


def image_path(config: SampleConfig, index: int) -> Path:
    """Return where image `index` lies."""
    return config.output_dir / f"{index:09d}.png"


def open_folder(folder: Path, settings: dict) -> None:
    """Note what the images of a folder are made with, or check that it is this.

    Raises:
        InputError: If the folder holds images of another model, seed or setting.
    """
    path = folder / "sample.json"
    wanted = {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}
    if not path.exists():
        write_json(path, wanted)
    elif (found := read_json(path)) != wanted:
        different = [
            f"{k} was {found.get(k)!r}, is {v!r}" for k, v in wanted.items() if found.get(k) != v
        ]
        raise InputError(
            f"expected the settings of the images in {folder}, got: {'; '.join(different)}; "
            "choose another output_dir or delete that one"
        )


def write_grid(config: SampleConfig) -> Path:
    """Lay the first images out as one picture."""
    images = []
    for index in range(min(config.num_images, GRID)):
        with Image.open(image_path(config, index)) as picture:
            images.append(from_pil(picture))
    columns = max(1, min(10, round(len(images) ** 0.5)))
    with new_file(config.output_dir / "grid.png") as path:
        sheet = grid(torch.stack(images), columns, scale=max(1, 64 // images[0].shape[-1]))
        sheet.save(path, format="png")
    return config.output_dir / "grid.png"


if __name__ == "__main__":
    cli.run(main, samples, default="digits")
