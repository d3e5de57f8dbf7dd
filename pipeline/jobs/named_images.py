"""What the images of sample.py are made from: noise, label and start of every name."""

import re
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from get.equilibrium import DeltaMemory
from get.errors import InputError
from get.models import Student
from get.noise import draw
from get.pipeline_get import GETPipeline
from get.sampling import generate, random_start

MOST = 10_000_000  # seeds of a range, so that a typing error does not fill the memory


class Name(NamedTuple):
    """An image: sample `index` of `seed`, in the file of this `number`."""

    seed: int
    index: int
    number: int


class Draws(NamedTuple):
    """All that is random about some images.

    Attributes:
        noise: Unit normal, on the CPU.
        labels: Class indices; None for an unconditional model.
        z0: Random starts; None for a model that draws none.
    """

    noise: Float[Tensor, "batch channels side side"]
    labels: Int[Tensor, " batch"] | None
    z0: Float[Tensor, "batch ..."] | None


def named(seed: int, count: int, seeds: Sequence[int] | None) -> list[Name]:
    """Return samples 0 to `count` of a seed, or sample 0 of every one of several seeds."""
    if seeds is None:
        return [Name(seed, i, i) for i in range(count)]
    return [Name(s, 0, s) for s in seeds]


def parse_seeds(text: str) -> tuple[int, ...]:
    """Return the numbers that a text like "0-63,100" names, each once, in order.

    Raises:
        InputError: If it is no such text.
    """
    seeds: dict[int, None] = {}
    for part in text.split(","):
        if not (match := re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)):
            raise InputError(f"expected seeds like 0-63,100, got {text!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < min(2**64, first + MOST):
            raise InputError(
                f"expected seeds in ascending ranges of at most {MOST:,} below 2^64, got {part!r}"
            )
        seeds.update(dict.fromkeys(range(first, last + 1)))
    return tuple(seeds)


def drawn(model: Student, names: Sequence[Name], classes: Sequence[int] | None) -> Draws:
    """Draw what some images are made from.

    Args:
        model: The model that will make them.
        names: At least one.
        classes: An image's label is the one at its number, and again from the start; None draws.
    """
    parts, starts = [], []
    for seed, group in groupby(names, lambda name: name.seed):
        indices = [name.index for name in group]
        parts.append(draw(seed, indices, model.image_shape, model.num_classes))
        starts.append(random_start(model, seed, indices))
    labels = [part[1] for part in parts if part[1] is not None]
    z0 = [start for start in starts if start is not None]
    if classes:
        labels = [torch.tensor([classes[name.number % len(classes)] for name in names])]
    return Draws(
        torch.cat([noise for noise, _ in parts]),
        torch.cat(labels) if labels else None,
        torch.cat(z0) if z0 else None,
    )


@torch.no_grad()
def made(
    pipeline: GETPipeline,
    draws: Draws,
    iterations: int | None,
    tol: float,
    delta: DeltaMemory | None = None,
) -> Float[Tensor, "batch channels height width"]:
    """Return the images of some draws, in [-1, 1] but not clipped, decoded, on the CPU."""
    noise, labels, z0 = draws
    images = generate(
        *(pipeline.model, noise, labels),
        seed=0,  # all is drawn
        indices=range(len(noise)),
        z0=z0,
        iterations=iterations,
        tol=tol,
        delta=delta,
        batch_size=len(noise),
    )
    return pipeline.to_images(images).cpu()
