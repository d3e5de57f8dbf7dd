"""Make images with a distilled model: PNGs and a grid, other files, and strips.

Image i of a seed is the same for any batch size and number of processes (to one 8-bit level).
Under torchrun every process makes its share; running it again makes only what is missing.
"""

from pipeline import cli
from pipeline.recipes.recipe import samples

if __name__ == "__main__":
    cli.check_arguments(samples, default="digits")


import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from data.files import new_file, read_json, write_json
from get.equilibrium import DeltaMemory
from get.errors import InputError
from get.images import from_pil, grid, to_pil, to_uint8
from get.pipeline_get import GETPipeline
from pipeline.jobs.image_files import PACKED, image_path
from pipeline.jobs.named_images import Name, drawn, made, named, parse_seeds
from pipeline.jobs.processes import local_device, local_main
from pipeline.jobs.strips import between, iterates, strip
from pipeline.jobs.students import load_pipeline, weights_hash
from pipeline.recipes.settings_make import SampleConfig

GRID = 100  # images of the grid at most
STEPS = 10  # images from one to another


def main(config: SampleConfig) -> None:
    """Write the images that are missing."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    pipeline = load_pipeline(config.model, local_device())
    check(config, pipeline)
    seeds = None if config.seeds is None else parse_seeds(config.seeds)
    names = named(config.seed, config.num_images, seeds)
    folder = config.output_dir
    open_folder(folder, settings_of(config))
    missing = [n for n in names[rank::world] if not image_path(folder, n.number).exists()]
    if config.compile:
        pipeline.model.compile(mode="reduce-overhead" if config.cuda_graphs else None)
    write_images(config, pipeline, missing)
    if not missing:
        print(f"{len(names)} images in {folder} are made; nothing to do")
    if rank == 0:
        write_strips(config, pipeline)
    if all(image_path(folder, n.number).exists() for n in names):
        labels = all_labels(config, pipeline, names) if config.also else None
        for form in config.also:
            print(f"{form} {PACKED[form](folder, [n.number for n in names], labels)}")
        print(f"images {folder}, grid {write_grid(folder, names)}")


def check(config: SampleConfig, pipeline: GETPipeline) -> None:
    """Refuse what the model cannot do."""
    model, classes = pipeline.model, config.class_labels
    if model.channels not in (1, 3) and pipeline.vae is None:
        raise InputError(f"expected a model of 1 or 3 channels for PNGs, got {model.channels}")
    if classes and model.num_classes is None:
        raise InputError(f"expected no class_labels, got {classes}; the model is unconditional")
    if any(not 0 <= k < (model.num_classes or 0) for k in classes or ()):
        raise InputError(f"expected class_labels below {model.num_classes}, got {classes}")
    if config.strip is not None and model.iterations is None:
        raise InputError(
            f"expected a model that iterates for a strip, got a {type(model).__name__}; "
            "leave strip out"
        )


def write_images(config: SampleConfig, pipeline: GETPipeline, names: list[Name]) -> None:
    """Make images and write them; files are written while the next batch is made."""
    delta = DeltaMemory(config.delta_threshold) if config.delta_threshold else None
    bar = cli.progress_bar(len(names), "sample", "image", shown=local_main())
    with cli.Signals() as signals, bar, ThreadPoolExecutor(1) as files:
        written = files.submit(lambda: None)
        for at in range(0, len(names), config.batch_size):
            batch = names[at : at + config.batch_size]
            more = config.batch_size - len(batch) if config.compile and at else 0
            draws = drawn(pipeline.model, batch + batch[:1] * more, config.class_labels)
            images = made(pipeline, draws, config.iterations, config.tol, delta)[: len(batch)]
            written.result()
            written = files.submit(write_pngs, config.output_dir, batch, images)
            bar.update(len(batch))
            if signals.received:
                written.result()
                bar.close()
                signals.exit(signals.received, f"{at + len(batch)} of {len(names)} images made")
        written.result()


def write_pngs(folder: Path, names: list[Name], images: Tensor) -> None:
    """Write a PNG an image."""
    for name, image in zip(names, to_uint8(images), strict=True):
        with new_file(image_path(folder, name.number)) as path:
            to_pil(image).save(path, format="png")


def write_strips(config: SampleConfig, pipeline: GETPipeline) -> None:
    """Write the pictures that the settings `strip` and `interpolate` ask for."""
    by_seed = config.seeds is not None
    wanted = {
        "strip": () if config.strip is None else (config.strip,),
        "interpolation": config.interpolate or (),
    }
    for kind, numbers in wanted.items():
        if not numbers:
            continue
        names = [Name(n, 0, n) if by_seed else Name(config.seed, n, n) for n in numbers]
        draws = drawn(pipeline.model, names, config.class_labels)
        if kind == "strip":
            images = iterates(pipeline, draws, config.iterations)
        else:
            images = between(pipeline, draws, STEPS, config.iterations, config.tol)
        target = config.output_dir / "-".join([kind, *map(str, numbers)])
        with new_file(target.with_suffix(".png")) as path:
            strip(images).save(path, format="png")
        print(f"{kind} {target.with_suffix('.png')}")


def all_labels(config: SampleConfig, pipeline: GETPipeline, names: list[Name]) -> list[int] | None:
    """Return the labels of all images; None for an unconditional model."""
    if pipeline.model.num_classes is None:
        return None
    found = []
    for at in range(0, len(names), 1000):
        labels = drawn(pipeline.model, names[at : at + 1000], config.class_labels).labels
        found += [] if labels is None else labels.tolist()
    return found


def settings_of(config: SampleConfig) -> dict[str, object]:
    """Return what images are made with, for `sample.json`."""
    classes = config.class_labels
    return {
        "model": weights_hash(config.model),
        "seed": config.seed if config.seeds is None else "the number of the image",
        "class_labels": list(classes) if classes else None,
        "iterations": config.iterations,
        **({"tol": config.tol} if config.tol else {}),
        **({"delta_threshold": config.delta_threshold} if config.delta_threshold else {}),
    }


def open_folder(folder: Path, settings: dict[str, object]) -> None:
    """Note what the images of a folder are made with, or check that it is this.

    Raises:
        InputError: If the folder is one of something else, or holds images of another model, seed
            or setting.
    """
    path = folder / "sample.json"
    if not path.exists():
        for other in ("run.json", "model_index.json", "manifest.json"):
            if (folder / other).exists():
                raise InputError(
                    f"expected a folder for images alone, got {folder} with {other}; "
                    f"choose {folder / 'images'}"
                )
        write_json(path, settings)
    elif (found := read_json(path)) != settings:
        different = [
            f"{k} was {found.get(k)!r}, is {v!r}" for k, v in settings.items() if found.get(k) != v
        ]
        raise InputError(
            f"expected the settings of the images in {folder}, got: {'; '.join(different)}; "
            "choose another output_dir or delete that one"
        )


def write_grid(folder: Path, names: list[Name]) -> Path:
    """Lay the first images out as one picture."""
    images = []
    for name in names[:GRID]:
        with Image.open(image_path(folder, name.number)) as picture:
            images.append(from_pil(picture))
    columns = max(1, min(10, round(len(images) ** 0.5)))
    with new_file(folder / "grid.png") as path:
        sheet = grid(torch.stack(images), columns, scale=max(1, 64 // images[0].shape[-1]))
        sheet.save(path, format="png")
    return folder / "grid.png"


if __name__ == "__main__":
    cli.run(main, samples, default="digits")
