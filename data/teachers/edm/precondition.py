"""EDM preconditioning: from a raw network F to a denoiser D (arXiv:2206.00364, table 1)."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

Predict = Callable[[Tensor, Tensor], Tensor]
"""(network input, time of every sample) -> raw output, both in the network's convention."""


def precondition(
    predict: Predict,
    x: Float[Tensor, "batch channels height width"],
    sigma: Float[Tensor, "*levels"],
    sigma_data: float,
) -> Float[Tensor, "batch channels height width"]:
    """Return D(x, sigma) = c_skip x + c_out F(c_in x, ln(sigma) / 4).

    Args:
        predict: The raw network F.
        x: Noisy images.
        sigma: Noise level, one for all (0-d) or one a sample.
        sigma_data: Standard deviation of the data in [-1, 1].
    """
    sigma = sigma.expand(len(x))
    s = sigma.view(-1, 1, 1, 1)
    norm = (s**2 + sigma_data**2).sqrt()
    out = predict(x / norm, sigma.log() / 4)
    return (sigma_data / norm) ** 2 * x + s * sigma_data / norm * out


def edm_denoise(
    unet: nn.Module,
    x: Float[Tensor, "batch channels height width"],
    sigma: Float[Tensor, "*levels"],
    labels: Int[Tensor, " batch"] | None,
    sigma_data: float,
) -> Float[Tensor, "batch channels height width"]:
    """Denoise by a raw network called as diffusers' `UNet2DModel`, in its own dtype."""
    dtype = next(unet.parameters()).dtype

    def predict(x: Tensor, time: Tensor) -> Tensor:
        return unet(x, time, class_labels=labels).sample

    return precondition(predict, x.to(dtype), sigma.to(dtype), sigma_data)


def edm_loss(
    unet: nn.Module,
    images: Float[Tensor, "batch channels height width"],
    labels: Int[Tensor, " batch"] | None,
    sigma_data: float,
    generator: torch.Generator,
    p_mean: float = -1.2,
    p_std: float = 1.2,
) -> Float[Tensor, ""]:
    """Return EDM's training loss: ln(sigma) ~ N(p_mean, p_std^2), weighted by 1 / c_out^2."""
    device = images.device
    draw = torch.randn(len(images), generator=generator, device=generator.device)
    sigma = (p_mean + p_std * draw).exp().to(device)
    noise = torch.randn(images.shape, generator=generator, device=generator.device).to(device)
    s = sigma.view(-1, 1, 1, 1)
    denoised = edm_denoise(unet, images + s * noise, sigma, labels, sigma_data)
    weight = (s**2 + sigma_data**2) / (s * sigma_data) ** 2
    return (weight * (denoised - images) ** 2).mean()
