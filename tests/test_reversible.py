"""The reversible gradient: that of the unrolled iteration, in memory that does not grow."""

import pytest
import torch
from torch import Tensor, nn

from get.cost import LiveBytes
from get.equilibrium import Reversible, Unrolled, fixed_point

from .problems import seeded


def gradients(layer: nn.Linear, x: Tensor, steps: int, damping: float, reverse: bool) -> list:
    """Return the solution and the gradients of its sum of squares."""
    layer.zero_grad()
    x = x.clone().requires_grad_()
    solution = fixed_point(
        lambda z, x: torch.tanh(layer(z) + x),
        torch.zeros_like(x),
        inputs=(x,),
        solver=Reversible(damping=damping),
        gradient=Unrolled(reverse=reverse),
        max_steps=steps,
        select="last",
    )
    solution.z.square().sum().backward()
    return [solution.z.detach(), x.grad, layer.weight.grad, layer.bias.grad]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("damping", [0.5, 0.8])
@pytest.mark.parametrize("steps", [1, 2, 7, 20])
def test_gradients_equal_those_of_the_unrolled_iteration(dtype, tolerance, damping, steps):
    layer = nn.Linear(8, 8).to(dtype)
    x = torch.randn(5, 8, generator=seeded(1)).to(dtype)
    unrolled, reverse = (
        gradients(layer, x, steps, damping, reverse=reverse) for reverse in (False, True)
    )
    for theirs, ours in zip(unrolled, reverse, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_memory_does_not_grow_with_the_iterations():
    layer, x = nn.Linear(64, 64), torch.randn(256, 64, generator=seeded(1))
    peaks = []
    for steps in (4, 32):
        with LiveBytes() as memory:
            gradients(layer, x, steps, 0.5, reverse=True)
        peaks.append(memory.peak)
    per_step, state = (peaks[1] - peaks[0]) / 28, x.nbytes
    assert per_step < 0.2 * state  # a few numbers per sample: residuals and their like
