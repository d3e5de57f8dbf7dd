"""Smallest eigenvalues of equilibrium kernels: positive for which points, zero for which."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from get.analysis import Activation, WideNetwork, degenerate_pairs
from pipeline.analyses.settings import NngpConfig

SET = 16  # points of a random set


def spectra(config: NngpConfig, activation: Activation, done: Callable[[], Any]) -> dict[str, Any]:
    """Return smallest eigenvalues of random sets on a sphere, and of two points that are alike."""
    network = WideNetwork(activation=activation, weight_std=config.weight_std)
    generator = torch.Generator().manual_seed(config.seed)
    found = []
    for _ in range(config.sets):
        x = _unit(torch.randn(SET, config.input_size, generator=generator, dtype=torch.float64))
        assert not degenerate_pairs(x, activation)
        found.append(smallest(network, x))
    x = _unit(torch.randn(1, config.input_size, generator=generator, dtype=torch.float64))
    pairs = {"x, -x": -x, "x, 2x": 2 * x}
    done()
    return {
        "activation": activation.name,
        "sets": config.sets,
        "points": SET,
        "lowest": min(found),
        "median": float(torch.tensor(found).median()),
        "pairs": {
            name: {
                "smallest_eigenvalue": smallest(network, both := torch.cat([x, y])),
                "degenerate": [why for _, _, why in degenerate_pairs(both, activation)],
            }
            for name, y in pairs.items()
        },
    }


def smallest(network: WideNetwork, x: Tensor) -> float:
    """Return the smallest eigenvalue of the equilibrium kernel."""
    return float(torch.linalg.eigvalsh(network.kernel(x))[0])


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True) * x.shape[1] ** 0.5
