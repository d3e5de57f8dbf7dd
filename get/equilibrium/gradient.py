"""How a fixed-point solve is differentiated: always as the caller says.

`Unrolled` differentiates all iterations, `Phantom` a few after the solve, `Implicit` solves the
linear system of the implicit function theorem. Training and evaluation mode make no difference.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from get.equilibrium.broyden import Broyden
from get.equilibrium.iterate import Result, Solver, iterate
from get.equilibrium.outcome import Outcome
from get.equilibrium.vectors import wide

Function = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True)
class Unrolled:
    """Backpropagate through every evaluation of f, as GET is trained (arXiv:2401.08639).

    Attributes:
        checkpoint: Store only the state of each iteration and recompute f in the backward pass:
            the same gradients with one more evaluation per iteration and far less memory.
        reverse: Store the last two states only and walk back from them, for the solver
            `Reversible`: as many evaluations, and memory that does not grow with the iterations.
    """

    checkpoint: bool = False
    reverse: bool = False

    def __post_init__(self) -> None:
        """Refuse two ways of saving memory at once."""
        if self.checkpoint and self.reverse:
            raise ValueError("expected checkpoint=True or reverse=True, got both; choose one")


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """Backpropagate through a few damped steps after the solve (arXiv:2111.05177).

    For a linear map of slope J the gradient is a truncated Neumann series,
    damping * sum over i < steps of (1 - damping + damping J)^i, so its error decays with `steps`.

    Attributes:
        steps: Steps from the detached solution; 1 with damping 1 is Jacobian-free backpropagation.
        damping: Step length in (0, 1].
        checkpoint: As in `Unrolled`.
    """

    steps: int = 5
    damping: float = 0.5
    checkpoint: bool = False

    def __post_init__(self) -> None:
        """Refuse settings that cannot mean anything."""
        if self.steps < 1 or not 0 < self.damping <= 1:
            raise ValueError(f"expected steps >= 1 and damping in (0, 1], got {self}")


@dataclass(frozen=True, kw_only=True)
class Implicit:
    """Solve v = J^T v + g, g = dloss/dz, at the solution (implicit function theorem).

    See arXiv:1909.01377. Memory does not grow with the iterations of the forward solve. The
    residual is |J^T v + g - v| / |g|, so the scale of the loss does not matter. A sample whose
    system is not solved gets the v of lowest residual, at worst g, and `Solution.adjoint` says so.

    Attributes:
        solver: Solver of the linear system. Plain iteration fails where an eigenvalue of J is 1 or
            more in size, which other solvers of the forward pass do not exclude; Broyden does not.
        max_steps: Most vector-Jacobian products.
        tol: Residual at which a sample's system counts as solved.
    """

    solver: Solver = field(default_factory=Broyden)
    max_steps: int = 40
    tol: float = 1e-6

    def __post_init__(self) -> None:
        """Refuse settings that cannot mean anything."""
        if self.max_steps < 1 or not self.tol >= 0:
            raise ValueError(f"expected max_steps >= 1 and tol >= 0, got {self}")


Gradient = Unrolled | Phantom | Implicit


@dataclass
class Adjoint:
    """The result of the backward solve of `Implicit`; None until a backward pass has run."""

    result: Result | None = None

    @property
    def failed(self) -> Float[Tensor, ""] | None:
        """Share of the samples whose system the last backward pass did not solve."""
        if self.result is None:
            return None
        return (self.result.outcome != int(Outcome.CONVERGED)).float().mean()


def phantom(f: Function, z: Tensor, inputs: tuple[Tensor, ...], mode: Phantom) -> Tensor:
    """Return z after the steps of `mode`, through which the gradient flows."""
    z = z.detach()
    for _ in range(mode.steps):
        fz = recomputed(f, z, *inputs) if mode.checkpoint else f(z, *inputs)
        z = fz if mode.damping == 1 else z + mode.damping * (fz - z)
    return z


def implicit(
    f: Function, z: Tensor, inputs: tuple[Tensor, ...], mode: Implicit, adjoint: Adjoint
) -> Tensor:
    """Return f(z), whose backward pass solves the linear system."""
    start = z.detach().requires_grad_()
    image = f(start, *inputs)
    return _Implicit.apply(image, start, mode, adjoint) if image.requires_grad else image


def recomputed(f: Callable[..., Any], *inputs: Any) -> Any:
    """Return f(*inputs), which is computed again in the backward pass; calls may be nested."""
    if not torch.is_grad_enabled():
        return f(*inputs)
    return checkpoint(f, *inputs, use_reentrant=False, preserve_rng_state=False)


class _Implicit(torch.autograd.Function):
    """The identity on f(z), whose backward pass turns g into v with v = J^T v + g.

    Every solve applies its own instance, so two solves in one graph share nothing, and the
    vector-Jacobian products do not pass through it again.
    """

    @staticmethod
    def forward(ctx: Any, image: Tensor, start: Tensor, mode: Implicit, adjoint: Adjoint) -> Tensor:
        ctx.image, ctx.start, ctx.mode, ctx.adjoint = image, start, mode, adjoint
        return image.view_as(image)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        (g,) = grad_outputs
        if torch.is_grad_enabled():  # create_graph=True: v would be treated as a constant
            raise RuntimeError(
                "expected an Implicit gradient to be differentiated once, got create_graph=True; "
                "use Unrolled for second derivatives"
            )

        def transposed(v: Tensor) -> Tensor:
            (product,) = torch.autograd.grad(
                ctx.image,
                ctx.start,
                v,
                retain_graph=True,
                materialize_grads=True,
                allow_unused=True,
            )
            return product + g

        ctx.adjoint.result = iterate(
            transposed,
            g,
            (),
            solver=ctx.mode.solver,
            max_steps=ctx.mode.max_steps,
            tol=ctx.mode.tol,
            select="best",
            unit=torch.linalg.vector_norm(g, dim=1, dtype=wide(g.dtype)),
        )
        return ctx.adjoint.result.z, None, None, None
