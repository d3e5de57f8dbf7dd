"""Nearest neighbours in pixel space: does a generator copy its training images?"""

import torch
from jaxtyping import Float
from torch import Tensor


@torch.no_grad()
def nearest_distance(
    images: Float[Tensor, "batch channels height width"],
    others: Float[Tensor, "others channels height width"],
    batch_size: int = 512,
) -> Float[Tensor, " batch"]:
    """Return each image's distance to the nearest of `others`.

    Root mean square over pixels, so in units of the images' range whatever their size; exactly 0
    for a copy.
    """
    exact = "donot_use_mm_for_euclid_dist"  # matrix products lose the digits of small distances
    flat = others.flatten(1)
    scale = flat.shape[1] ** 0.5
    parts = images.flatten(1).split(batch_size)
    nearest = [torch.cdist(part, flat, compute_mode=exact).amin(1) for part in parts]
    return torch.cat(nearest) / scale
