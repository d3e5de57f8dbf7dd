"""When a sample has converged: the residual, and whether the steps have become shorter.

A residual below the tolerance alone proves little. It is relative, so it falls as |z| grows, and a
map that moves on for ever, such as z + 1, has a small one wherever |z| is large.
"""

from collections.abc import Sequence
from enum import IntEnum

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from get.equilibrium.vectors import wide

FAR = 0.05  # of |f(z)|: a sample that has further to go is not at its fixed point
ROUNDING = 64  # machine epsilons of |f(z)|: shorter steps are rounding errors


class Outcome(IntEnum):
    """How the iteration of one sample ended."""

    CONVERGED = 0  # |f(z) - z| <= atol + tol |f(z)|, and the steps had become shorter
    MAX_STEPS = 1  # `max_steps` evaluations were not enough: raise it or loosen `tol`
    NON_FINITE = 2  # inf or nan appeared: damp the solver or check the model
    DRIFT = 3  # the residual is below `tol`, but z moves on: no limit within `max_steps`


def measure(
    z: Float[Tensor, "batch dimension"], fz: Float[Tensor, "batch dimension"]
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Return |f(z) - z| and |f(z)|, in float32 at least: float16 overflows."""
    dtype = wide(z.dtype)
    difference = fz.to(dtype) - z.to(dtype)
    return (
        torch.linalg.vector_norm(difference, dim=1),
        torch.linalg.vector_norm(fz, dim=1, dtype=dtype),
    )


def relative(
    length: Float[Tensor, "*shape"], size: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Return length / size; nan where the size has overflowed, which would make it 0."""
    quotient = length / size.clamp_min(torch.finfo(size.dtype).tiny)
    return torch.where(size == torch.inf, torch.nan, quotient)


def moves_on(
    lengths: Sequence[Tensor], size: Float[Tensor, " batch"], every: int, eps: float
) -> Bool[Tensor, " batch"]:
    """Return the samples whose steps do not become shorter fast enough to show a limit.

    Lengths that fall like 1 / step or slower have an infinite sum, so z has no limit. Such a length
    has not halved when the step number has doubled. Two kinds of samples are exempt: those whose
    steps are rounding errors, and those that are nearly there. At a ratio r of two lengths, those
    to come add up to length / (1 - r).

    Args:
        lengths: |f(z) - z| at every measurement so far.
        size: |f(z)| at the last one.
        every: Steps from one measurement to the next.
        eps: Machine epsilon of the state.
    """
    count = len(lengths)
    now, before = lengths[-1], lengths[(count - 1) // 2]
    if count == 1:
        to_come = torch.full_like(now, torch.inf)
    else:
        steps = (count - 1 - (count - 1) // 2) * every
        ratio = (now / before) ** (1 / steps)
        to_come = torch.where(ratio < 1, now / (1 - ratio), torch.inf)
    return (now > before / 2) & (to_come > FAR * size) & (now > ROUNDING * eps * size)
