"""Image of index i under a seed, from a GET or a ViT alike."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from get.errors import InputError
from get.models import GET, ViT
from get.noise import draw_start


@torch.no_grad()
def generate(
    model: GET | ViT,
    noise: Float[Tensor, "batch channels side side"],
    labels: Int[Tensor, " batch"] | None,
    *,
    seed: int,
    indices: Sequence[int],
    iterations: int | None = None,
) -> Float[Tensor, "batch channels side side"]:
    """Make images of given noise; what else is random comes from (seed, index) too.

    Args:
        model: The distilled model.
        noise: Unit normal noise.
        labels: Class indices; None exactly if the model is unconditional.
        seed: Names, with `indices`, the random start of a GET whose `z0` is "normal".
        indices: One a sample.
        iterations: Iterations of a GET; None takes the model's default.

    Returns:
        Images on the CPU, nominally in [-1, 1].

    Raises:
        InputError: If the arguments do not fit the model.
    """
    noise = noise.to(model.device)
    labels = None if labels is None else labels.to(model.device)
    if not isinstance(model, GET):
        if iterations is not None:
            raise InputError("expected no iterations, got some; a ViT has none")
        return model(noise, labels).float().cpu()
    z0 = random_start(model, seed, indices)
    return model(noise, labels, iterations=iterations, z0=z0).float().cpu()


def random_start(
    model: GET, seed: int, indices: Sequence[int]
) -> Float[Tensor, "batch tokens width"] | None:
    """Return the start of the iteration of samples (seed, index); None if it is not random."""
    if model.z0 != "normal":
        return None
    return draw_start(seed, indices, (model.tokens, model.width)).to(model.device)
