"""EDM's training loss of a teacher: known values, and the noise levels it draws."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from pipeline.train_teacher import edm_loss


class Raw(nn.Module):
    """A raw network in closed form, called as a `UNet2DModel`."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.dtype_of = function, nn.Parameter(torch.zeros(1))

    def forward(
        self, x: Tensor, time: Tensor, class_labels: Tensor | None = None
    ) -> SimpleNamespace:
        return SimpleNamespace(sample=self.function(x, time))


def loss_of(function: Callable[[Tensor, Tensor], Tensor], images: Tensor) -> float:
    return float(edm_loss(Raw(function), images, None, 0.75, torch.Generator().manual_seed(0)))


def test_an_untrained_network_costs_one_on_gaussian_data_of_that_deviation() -> None:
    """With F = 0, D is the posterior mean; 1 / c_out^2 is one over the variance it leaves."""
    images = 0.75 * torch.randn(8192, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    assert loss_of(lambda x, time: torch.zeros_like(x), images) == pytest.approx(1, abs=0.02)


def test_the_network_that_knows_the_one_image_costs_nothing() -> None:
    def perfect(x: Tensor, time: Tensor) -> Tensor:
        s = (4 * time).exp().view(-1, 1, 1, 1)
        norm = (s**2 + 0.75**2).sqrt()
        return (0.3 - (0.75 / norm) ** 2 * (x * norm)) * norm / (s * 0.75)

    assert loss_of(perfect, torch.full((64, 1, 4, 4), 0.3)) == pytest.approx(0, abs=1e-6)


def test_training_noise_levels_are_log_normal() -> None:
    levels = []

    def listen(x: Tensor, time: Tensor) -> Tensor:
        levels.append(4 * time)
        return x

    loss_of(listen, torch.zeros(20_000, 1, 1, 1))
    assert float(levels[0].mean()) == pytest.approx(-1.2, abs=0.03)
    assert float(levels[0].std()) == pytest.approx(1.2, abs=0.03)
