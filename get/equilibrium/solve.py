"""The one loop that looks for a fixed point z = f(z, *inputs).

Four concerns are four arguments: the problem (`f`, `z0`, `inputs`), the solver (`picard.py`), how
the solve is differentiated (`gradient.py`), and when to stop (`max_steps`, `tol`). Failure is
data: `Solution.outcome` tells it sample by sample, and the caller decides.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from get.equilibrium.gradient import Unrolled
from get.equilibrium.picard import Picard

Select = Literal["last", "lowest_residual"]


class Outcome(IntEnum):
    """How the iteration of one sample ended."""

    CONVERGED = 0  # the relative residual fell to `tol`
    MAX_STEPS = 1  # `max_steps` evaluations were spent first
    NON_FINITE = 2  # an evaluation gave inf or nan, and so is the state returned


@dataclass(frozen=True)
class Solution:
    """What `fixed_point` found; every field but `iterates` has one entry a sample.

    Attributes:
        z: The state returned.
        residual: Relative residual |f(z) - z| / |f(z)| of the last state that was evaluated. The
            state returned by plain iteration is one application past it.
        evaluations: Number of evaluations of f this sample used.
        outcome: `Outcome` as an integer.
        iterates: z_1 .. z_T in order if they were asked for, else empty.
    """

    z: Tensor
    residual: Float[Tensor, " batch"]
    evaluations: Int[Tensor, " batch"]
    outcome: Int[Tensor, " batch"]
    iterates: tuple[Tensor, ...] = ()


def fixed_point(
    f: Callable[..., Tensor],
    z0: Float[Tensor, "batch ..."],
    *,
    inputs: tuple[Tensor, ...] = (),
    solver: Picard = Picard(),  # noqa: B008  frozen
    gradient: Unrolled = Unrolled(),  # noqa: B008  frozen
    max_steps: int,
    tol: float = 0.0,
    select: Select = "last",
    keep_iterates: bool = False,
) -> Solution:
    """Iterate z <- f(z, *inputs) from `z0`, each sample until it converges.

    Args:
        f: The map, called as `f(z, *inputs)`; it must treat the samples of a batch independently.
        z0: Starting state, batch first.
        inputs: Tensors handed to every call of f (injections and the like).
        solver: How the next state is made from z and f(z).
        gradient: How the solve is differentiated.
        max_steps: Evaluations of f at most, at least 1.
        tol: A sample stops once its relative residual is at or below this; 0 never stops early.
        select: "last" returns the last state of each sample; "lowest_residual" the state whose
            last step |z_k - z_{k-1}|_2 was the shortest (the rule of locuslab/get in evaluation).
        keep_iterates: Also return every z_k.

    Returns:
        The solution; its z carries the gradient that `gradient` names.

    Raises:
        ValueError: If `max_steps` is below 1.
    """
    if max_steps < 1:
        raise ValueError(f"expected max_steps of at least 1, got {max_steps}")
    batch = z0.shape[0]
    active = torch.ones(batch, dtype=torch.bool, device=z0.device)
    residual = torch.full((batch,), torch.inf, device=z0.device, dtype=z0.dtype)
    outcome = torch.full((batch,), Outcome.MAX_STEPS, device=z0.device)
    evaluations = torch.zeros(batch, dtype=torch.int64, device=z0.device)
    best, best_step = z0, torch.full_like(residual, torch.inf)
    iterates: list[Tensor] = []

    z, state = z0, solver.init(z0)
    for _ in range(max_steps):
        fz = gradient.apply(f, z, *inputs)
        proposal, state = solver.step(z, fz, state)
        with torch.no_grad():
            step = (fz - z).flatten(1).norm(dim=1)
            relative = step / fz.flatten(1).norm(dim=1).clamp_min(torch.finfo(z.dtype).tiny)
            evaluations += active
            residual = torch.where(active, relative, residual)
            outcome = torch.where(active & (relative <= tol), Outcome.CONVERGED, outcome)
            outcome = torch.where(active & ~relative.isfinite(), Outcome.NON_FINITE, outcome)
        # Samples that have stopped keep their state, whatever their batch mates still do.
        z = torch.where(_column(active, z), proposal, z) if tol > 0 else proposal
        if select == "lowest_residual":
            better = active & (step < best_step)
            best = torch.where(_column(better, z), z, best)
            best_step = torch.where(better, step, best_step)
        if keep_iterates:
            iterates.append(z)
        if tol > 0:
            active = outcome == Outcome.MAX_STEPS
            if not active.any():
                break
    chosen = best if select == "lowest_residual" else z
    return Solution(chosen, residual, evaluations, outcome, tuple(iterates))


def _column(mask: Tensor, like: Tensor) -> Tensor:
    return mask.view(-1, *[1] * (like.dim() - 1))
