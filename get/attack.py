"""Attacks on a smoothed classifier: what tries to break the certificates of `robustness.py`."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from get.errors import InputError

PACE = 2.5  # the steps together are so many radii long


def attack(
    model: nn.Module,
    image: Float[Tensor, "channels side side"],
    label: int,
    *,
    radius: float,
    sigma: float,
    generator: torch.Generator,
    steps: int = 20,
    restarts: int = 4,
    copies: int = 32,
) -> Float[Tensor, "restarts channels side side"]:
    """Look for shifts of an image that make its smoothed classifier give up a class.

    Projected gradient ascent on the cross-entropy of the smoothed probabilities, whose gradient
    is estimated from fresh noisy copies in every step (SmoothAdv, arXiv:1906.04584).

    Args:
        model: The base classifier, from images to logits.
        image: The image, in [-1, 1].
        label: The class.
        radius: Longest shift, in the L2 norm.
        sigma: Standard deviation of the noise.
        generator: Draws starts and noise.
        steps: Gradient steps.
        restarts: Shifts that start at random and are improved independently.
        copies: Noisy copies a step and restart.

    Returns:
        The shifts, one a restart, each no longer than the radius.
    """
    if min(radius, sigma) < 0 or min(steps, restarts, copies) < 1:
        raise InputError(
            "expected radius and sigma of 0 or more, steps, restarts and copies above 0, got "
            f"{radius}, {sigma}, {steps}, {restarts} and {copies}"
        )

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, *image.shape, generator=generator).to(image.device)

    shift = normal(restarts)
    shift = shift * radius / _length(shift)
    for _ in range(steps):
        shift.requires_grad_()
        noisy = image + shift[:, None] + sigma * normal(restarts, copies)
        probabilities = model(noisy.flatten(0, 1)).softmax(1).unflatten(0, (restarts, copies))
        loss = -probabilities.mean(1)[:, label].clamp_min(1e-12).log().sum()
        (gradient,) = torch.autograd.grad(loss, shift)
        with torch.no_grad():
            moved = shift + PACE * radius / steps * gradient / _length(gradient)
            shift = moved * (radius / _length(moved)).clamp_max(1)
    return shift.detach()


@torch.no_grad()
def share_of_votes(
    model: nn.Module,
    image: Float[Tensor, "channels side side"],
    label: int,
    *,
    sigma: float,
    generator: torch.Generator,
    copies: int = 1000,
) -> float:
    """Return the share of noisy copies of an image to which the base classifier gives a class."""
    noise = torch.randn(copies, *image.shape, generator=generator).to(image.device)
    return float((model(image + sigma * noise).argmax(1) == label).float().mean())


def _length(x: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(x.flatten(1), dim=1).clamp_min(1e-12)
    return norm.view(-1, *[1] * (x.dim() - 1))
