"""Width and depth to infinity, in either order: finite networks against the kernels of the limits.

Given its weights W and U, a network's output f = v . h is exactly normal with covariance
s_v^2 h . h' / width. That is averaged over networks, so v need not be drawn, and the Monte-Carlo
error falls with the width too.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from get.analysis import (
    Activation,
    WideNetwork,
    gaussian_to_uniform,
    kolmogorov_smirnov,
    mixture_kurtosis,
    normal_to_uniform,
)
from get.equilibrium import Outcome
from pipeline.analyses.settings import NngpConfig

CHUNK = 2**21  # weights at once
RESAMPLES = 4000  # of the Monte-Carlo error, for its 95 % point
CONTRAST_WIDTHS, CONTRAST_DEPTHS, CONTRAST_DRAWS = (16, 64, 256), (1, 4, 16, 64), 1000


def sphere(config: NngpConfig) -> Tensor:
    """Return the random points, in float64."""
    generator = torch.Generator().manual_seed(config.seed)
    x = torch.randn(config.points, config.input_size, generator=generator, dtype=torch.float64)
    return x / x.norm(dim=1, keepdim=True) * config.input_size**0.5


def limits(
    config: NngpConfig,
    activation: Activation,
    widths: Sequence[int],
    states: int,
    done: Callable[[], Any],
) -> dict[str, Any]:
    """Return the errors of every width and depth, against the kernels of finite and no depth."""
    network = WideNetwork(activation=activation, weight_std=config.weight_std)
    x = sphere(config)
    kernels = {depth: network.kernel(x, depth) for depth in (*config.depths, None)}
    limit = kernels[None]
    unit = float(limit.norm())
    rows = []
    for width in widths:
        draws = max(states // width, 2)
        rows.append(_of_width(config, network, x, kernels, width, draws))
        done()
    return {
        "activation": activation.name,
        "weight_std": config.weight_std,
        "contracts": network.contracts,
        "kernel_diagonal": float(limit[0, 0]),
        "smallest_eigenvalue": float(torch.linalg.eigvalsh(limit)[0]),
        "depth_errors": {_name(d): float((k - limit).norm()) / unit for d, k in kernels.items()},
        "widths": rows,
    }


def _of_width(
    config: NngpConfig,
    network: WideNetwork,
    x: Tensor,
    kernels: dict[int | None, Tensor],
    width: int,
    draws: int,
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(config.seed + width)
    products: dict[int | None, list[Tensor]] = {depth: [] for depth in kernels}
    outputs, evaluations, converged = [], [], 0
    for begin in range(0, draws, size := max(CHUNK // width**2, 1)):
        count = min(size, draws - begin)
        drawn = network.draw(x.float(), width, count, generator, keep_layers=True)
        converged += int((drawn.outcome == Outcome.CONVERGED).sum())
        evaluations.append(drawn.evaluations)
        for depth, kept in products.items():
            # What has converged changes by no more than the tolerance.
            h = drawn.hidden if depth is None else drawn.layers[min(depth, len(drawn.layers)) - 1]
            kept.append((h @ h.mT).double() / width)
        v = torch.randn(count, width, 1, generator=generator) / width**0.5
        outputs.append((drawn.hidden @ v)[:, :, 0])
    limit, each = kernels[None], torch.cat(products[None])
    kurtosis, kurtosis_error = mixture_kurtosis(each[:, 0, 0])
    f = torch.cat(outputs)[: config.normality_draws].double()
    one = kolmogorov_smirnov(normal_to_uniform(f[:, 0], float(limit[0, 0])))
    joint = kolmogorov_smirnov(gaussian_to_uniform(f, limit))
    return {
        "width": width,
        "draws": draws,
        "converged": converged,
        "evaluations": float(torch.cat(evaluations).double().mean()),
        "depths": {
            _name(depth): _errors(torch.cat(products[depth]), kernel, limit, generator)
            for depth, kernel in kernels.items()
        },
        "normality": {
            "draws": len(f),
            "excess_kurtosis": kurtosis,
            "excess_kurtosis_error": kurtosis_error,
            "one_output": {"distance": one[0], "p": one[1]},
            "all_outputs": {"distance": joint[0], "p": joint[1]},
        },
    }


def _name(depth: int | None) -> str:
    return "equilibrium" if depth is None else str(depth)


def _errors(
    each: Tensor, kernel: Tensor, limit: Tensor, generator: torch.Generator
) -> dict[str, float]:
    """Compare the mean of products h . h' / width with kernels; relative Frobenius errors.

    The band is what 95 % of such means would stay within if their expectation were the kernel.
    """
    draws, mean, unit = len(each), each.mean(0), float(limit.norm())
    flat = each.flatten(1) - mean.flatten()
    covariance = flat.T @ flat / (draws * (draws - 1))
    values, vectors = torch.linalg.eigh(covariance)
    g = torch.randn(RESAMPLES, len(values), generator=generator, dtype=each.dtype)
    noise = (g * values.clamp_min(0).sqrt() @ vectors.T).norm(dim=1)
    bias = float((mean - kernel).square().sum() - covariance.trace())
    return {
        "to_limit": float((mean - limit).norm()) / unit,
        "to_its_depth": float((mean - kernel).norm()) / unit,
        "band": float(noise.quantile(0.95)) / unit,
        "squared_bias": bias / unit**2,  # without the part of the Monte-Carlo error
    }


def contrast(config: NngpConfig, done: Callable[[], Any]) -> list[dict[str, float]]:
    """Return how far ordinary deep ReLU networks are from normal: their limits do not commute.

    At s_w^2 = 2 their kernel at one point is the same at every depth and width. With W of its own
    in every layer, |h|^2 is a product of independent factors, so that the excess kurtosis is
    3 ((1 + 5 / width)^depth - 1): zero if the width grows first, infinite if the depth does.
    """
    network = WideNetwork(weight_std=2**0.5, injected=False)
    x, rows = sphere(config)[:1].float(), []
    for width in CONTRAST_WIDTHS:
        for depth in CONTRAST_DEPTHS:
            generator = torch.Generator().manual_seed(config.seed + width + depth)
            squares = []
            for begin in range(0, CONTRAST_DRAWS, size := max(CHUNK // width**2, 1)):
                count = min(size, CONTRAST_DRAWS - begin)
                drawn = network.draw(x, width, count, generator, depth=depth, tied=False)
                squares.append(drawn.hidden.square().mean(2).flatten())
            q = torch.cat(squares)
            v = torch.randn(len(q), generator=generator) * q.sqrt()
            kernel = float(network.kernel(x.double(), depth))
            rows.append(
                {
                    "width": width,
                    "depth": depth,
                    "draws": len(q),
                    "excess_kurtosis": mixture_kurtosis(q)[0],
                    "expected": 3 * ((1 + 5 / width) ** depth - 1),
                    "p": kolmogorov_smirnov(normal_to_uniform(v, kernel))[1],
                }
            )
    done()
    return rows
