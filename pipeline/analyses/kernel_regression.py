"""Exact Gaussian-process regression on real images: equilibrium kernels, kernels of finite depth.

Classes are one-hot targets less their mean. Noise and scale are those of greatest marginal
likelihood on the training images; the held-out images are looked at once.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from data.real import Labelled, real_images
from get.analysis import RELU, Activation, Regression, WideNetwork, degenerate_pairs
from get.errors import InputError
from pipeline.analyses.settings import NngpConfig
from pipeline.analyses.trained import trained

DEPTHS = (1, 2, 3, 10)
ORDINARY_DEPTHS = (1, 3, 10, 30)
LARGE = 1.2  # s_w beyond the bound of a contraction, where ReLU's kernel still has a limit
WIDTHS = (64, 256, 1024, 2048)  # of finite equilibrium networks with a trained readout


def regressions(
    config: NngpConfig, activations: Sequence[Activation], done: Callable[[], Any]
) -> dict[str, Any]:
    """Return how well every kernel predicts the classes of held-out images."""
    training, held_out = (real_images(config.real_images, s) for s in ("training", "held_out"))
    if int(training.labels.max()) == 0:
        raise InputError(
            f"expected at least two classes in {config.real_images}, got one; sort the pictures "
            "into a sub-folder a class"
        )
    x, problem = vectors(training, held_out), Problem(training, held_out)
    rows = []
    for activation in activations:
        for std in sorted({config.weight_std, LARGE}):
            network = WideNetwork(activation=activation, weight_std=std)
            kernels = ((depth, network.kernel(x, depth)) for depth in (None, *DEPTHS))
            rows += problem.compared(network, kernels)
    # Ordinary networks are compared with the equilibrium of large weights.
    ordinary = WideNetwork(activation=RELU, weight_std=2**0.5, injected=False)
    network = WideNetwork(activation=RELU, weight_std=LARGE)
    kernels = ((depth, ordinary.kernel(x, depth)) for depth in ORDINARY_DEPTHS)
    rows += problem.compared(ordinary, chain([(None, network.kernel(x))], kernels))[1:]
    done()
    wide = WideNetwork(activation=activations[0], weight_std=config.weight_std)
    return {
        "real_images": config.real_images,
        "training": len(training.labels),
        "held_out": len(held_out.labels),
        "degenerate_pairs": {a.name: len(degenerate_pairs(x, a)) for a in activations},
        "rows": rows,
        "finite_widths": finite(config, wide, x, problem),
        "trained": trained(config, training, held_out, done),
    }


def vectors(training: Labelled, held_out: Labelled) -> Tensor:
    """Return all images as vectors of length sqrt(pixels), black at zero, in float64."""
    x = torch.cat([training.images, held_out.images]).flatten(1).double() / 2 + 0.5
    return x / x.norm(dim=1, keepdim=True).clamp_min(1e-12) * x.shape[1] ** 0.5


class Problem:
    """Training images with one-hot targets, and held-out images."""

    def __init__(self, training: Labelled, held_out: Labelled) -> None:
        """Centre the targets by their mean over the training images."""
        classes = int(training.labels.max()) + 1
        targets = F.one_hot(training.labels, classes).double()
        self.centre = targets.mean(0)
        self.targets, self.count = targets - self.centre, len(training.labels)
        self.labels = held_out.labels
        self.expected = F.one_hot(held_out.labels, classes).double() - self.centre

    def solved(self, kernel: Tensor) -> tuple[Regression, Tensor, Tensor]:
        """Return the regression, and mean and log density at the held-out images."""
        seen, new = slice(self.count), slice(self.count, None)
        regression = Regression(kernel[seen, seen], self.targets)
        posterior = regression(kernel[new, seen], kernel.diagonal()[new])
        return regression, posterior.mean, posterior.log_density(self.expected)

    def compared(
        self, network: WideNetwork, kernels: Iterable[tuple[int | None, Tensor]]
    ) -> list[dict[str, Any]]:
        """Return a row for every depth and kernel, beside the first kernel, an equilibrium's."""
        rows, first = [], None
        for depth, kernel in kernels:
            figures, density = self.figures(kernel)
            first = density if first is None else first
            gain = first - density
            rows.append(
                {
                    "activation": network.activation.name,
                    "weight_std": network.weight_std,
                    "injected": network.injected,
                    "depth": depth,
                    "equilibrium_gain": float(gain.mean()),
                    "equilibrium_gain_error": float(gain.std()) / len(gain) ** 0.5,
                    **figures,
                }
            )
        return rows

    def figures(self, kernel: Tensor) -> tuple[dict[str, float], Tensor]:
        """Return how well a kernel of all images predicts, and the log density of each image."""
        regression, mean, density = self.solved(kernel)
        right = (mean + self.centre).argmax(1) == self.labels
        return {
            "accuracy": float(right.double().mean()),
            "squared_error": float((mean - self.expected).square().sum(1).mean()),
            "log_density": float(density.mean()),
            "log_likelihood": regression.log_likelihood / self.count,
            "noise_ratio": regression.ratio,
            "scale": regression.scale,
            "smallest_eigenvalue": regression.smallest_eigenvalue,
            "kernel_diagonal": float(kernel[0, 0]),
        }, density


def finite(
    config: NngpConfig, network: WideNetwork, x: Tensor, problem: Problem
) -> list[dict[str, float]]:
    """Return how close one random equilibrium network with a trained readout is to the process."""
    _, exact, _ = problem.solved(network.kernel(x))
    rows = []
    for width in WIDTHS:
        generator = torch.Generator().manual_seed(config.seed + width)
        drawn = network.draw(x.float(), width, 1, generator)
        h = drawn.hidden[0].double()
        kernel = h @ h.T / width
        _, mean, _ = problem.solved(kernel)
        rows.append(
            {
                "width": width,
                "evaluations": int(drawn.evaluations),
                "accuracy": problem.figures(kernel)[0]["accuracy"],
                "difference": float((mean - exact).norm() / exact.norm()),
            }
        )
    return rows
