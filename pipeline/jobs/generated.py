"""A student's images as a source: image i of a seed, made when it is asked for."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from data.real.sources import Decoder, ImageSource, Part
from get.images import from_uint8, to_uint8
from get.noise import draw
from get.pipeline_get import GETPipeline
from get.sampling import generate
from pipeline.jobs.students import load_pipeline, weights_hash

loaded = lru_cache(1)(load_pipeline)  # a sweep may be over more models than fit in memory


@dataclass(frozen=True, eq=False)
class Generated(ImageSource):
    """Images of a student, as 8-bit pictures hold them; latents are decoded.

    Attributes:
        folder: The student.
        device: Where it runs.
        seed: Names, with their index, the images.
        iterations: Iterations; None takes the model's own or has none.
        tol: Relative residual at which an image stops iterating.
    """

    folder: Path
    device: torch.device
    seed: int
    iterations: int | None
    tol: float

    def read(self, start: int, stop: int) -> Part:
        """Make some of them."""
        pipeline, indices = loaded(self.folder, self.device), range(start, stop)
        model = pipeline.model
        noise, labels = draw(self.seed, indices, model.image_shape, model.num_classes)
        made = generate(
            model,
            noise,
            labels,
            seed=self.seed,
            indices=indices,
            iterations=self.iterations,
            tol=self.tol,
            batch_size=stop - start,
        )
        with torch.no_grad():
            images = pipeline.to_images(made).cpu()
        return from_uint8(to_uint8(images)), labels


def is_student(folder: str) -> bool:
    """Say whether a folder holds a model of train.py, or one of its checkpoints."""
    return (Path(folder) / "model_index.json").is_file()


def generated(
    folder: str,
    device: torch.device,
    count: int,
    seeds: tuple[int, ...],
    iterations: tuple[int, ...],
    tols: tuple[float, ...],
) -> Iterator[Generated]:
    """Yield a student's images for every number of iterations, tolerance and seed.

    One that does not iterate has neither.

    Raises:
        InputError: If it cannot be loaded.
    """
    path = Path(folder)
    pipeline = loaded(path, device)
    model, weights = pipeline.model, weights_hash(path)
    if pipeline.vae is not None:
        weights += weights_hash(path, "vae")
    dial: list[tuple[int | None, float]] = [(None, 0.0)]
    if model.iterations is not None:
        dial = [(k, t) for k in iterations or (model.iterations,) for t in tols]
    shape = _decoded(pipeline, torch.zeros(1, *model.image_shape)).shape[1:]
    for k, tol in dial:
        for seed in seeds:
            key = f"{weights} {seed} {k} {tol}"
            fingerprint = sha256(key.encode()).hexdigest()
            yield Generated(
                *(from_here(path), fingerprint, (shape[0], shape[1], shape[2]), count),
                *(path, device, seed, k, tol),
            )


def from_here(path: Path) -> str:
    """Return how a place is named in a file that others read: from here, if it lies below."""
    whole, here = path.absolute(), Path.cwd()
    return str(whole.relative_to(here) if whole.is_relative_to(here) else path)


def decoder(folder: str, device: torch.device) -> Decoder | None:
    """Return the VAE of a student of latents; None if it makes images."""
    path = Path(folder)
    if loaded(path, device).vae is None:
        return None
    return Decoder(
        lambda latents: _decoded(loaded(path, device), latents), weights_hash(path, "vae")
    )


@torch.no_grad()
def _decoded(pipeline: GETPipeline, made: Tensor) -> Tensor:
    return pipeline.to_images(made).cpu()
