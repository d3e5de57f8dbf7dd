"""Arithmetic on the vectors that solvers remember: differentiable or in place, float32 at least.

Norms and small linear systems need float32: a norm overflows in float16, and torch has no solvers
for half types.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Return a context without autocast."""
    autocast = device.type != "meta" and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if autocast else nullcontext()


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the type to measure and solve in: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def put(buffer: Tensor, index: int, value: Tensor, dim: int = 1) -> Tensor:
    """Return a solver's buffer with `value` at `index` of a dimension.

    The buffer is changed in place without gradients, and copied with gradients.
    """
    if torch.is_grad_enabled():
        return buffer.select_scatter(value, dim, index)
    buffer.select(dim, index).copy_(value)
    return buffer


def dots(
    stack: Float[Tensor, "batch vectors dimension"], x: Float[Tensor, "batch dimension"]
) -> Float[Tensor, "batch vectors"]:
    """Return the inner products of x with every vector of the stack."""
    return (x[:, None] @ stack.mT)[:, 0]  # on CPUs 3 to 20 times faster than stack @ x


def combine(
    weights: Float[Tensor, "batch n"], stack: Float[Tensor, "batch n dimension"]
) -> Float[Tensor, "batch dimension"]:
    """Return the weighted sum of the vectors of the stack."""
    return (weights[:, None] @ stack)[:, 0]
