"""Strips of pictures: from one image to another, and how an image comes about."""

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from get.images import grid, to_uint8
from get.pipeline_get import GETPipeline
from pipeline.jobs.named_images import Draws, made


def strip(images: Float[Tensor, "images channels height width"]) -> Image.Image:
    """Lay images out side by side, small ones enlarged."""
    return grid(to_uint8(images), len(images), scale=max(1, 64 // images.shape[-1]))


def between(
    pipeline: GETPipeline, two: Draws, count: int, iterations: int | None, tol: float
) -> Float[Tensor, "count channels height width"]:
    """Return images on the way from the first of two draws to the second.

    Noise moves along the great circle, so that it stays unit normal; the label is the first's.
    """
    share = torch.linspace(0, 1, count)
    labels = None if two.labels is None else two.labels[:1].expand(count)
    z0 = None if two.z0 is None else slerp(two.z0.cpu(), share)
    return made(pipeline, Draws(slerp(two.noise, share), labels, z0), iterations, tol)


def slerp(two: Float[Tensor, "2 ..."], share: Float[Tensor, " count"]) -> Float[Tensor, "..."]:
    """Interpolate on the great circle through two vectors (Shoemake, SIGGRAPH 1985)."""
    a, b = two[0].flatten().double(), two[1].flatten().double()
    angle = torch.arccos((a @ b / (a.norm() * b.norm())).clamp(-1, 1))
    if angle.sin() < 1e-6:  # the same direction, or the opposite one, to which no way is shortest
        weights = torch.stack([1 - share, share])
    else:
        weights = torch.stack([((1 - share) * angle).sin(), (share * angle).sin()]) / angle.sin()
    path = weights.T.to(a) @ torch.stack([a, b])
    return path.to(two.dtype).view(-1, *two.shape[1:])


@torch.no_grad()
def iterates(
    pipeline: GETPipeline, one: Draws, iterations: int | None
) -> Float[Tensor, "iterates channels height width"]:
    """Return the images of all iterates of a single draw, by a model that iterates."""
    model, (noise, labels, z0) = pipeline.model, one
    path = model.trajectory(
        noise.to(model.device),
        None if labels is None else labels.to(model.device),
        iterations=iterations,
        z0=z0,
    )
    return torch.cat([pipeline.to_images(image) for image in path.images]).float().cpu()
