"""Fixed points z = f(z, *inputs): the public interface of this package.

The arguments are independent of each other: the problem (`f`, `z0`, `inputs`), the solver, how the
solve is differentiated (`gradient.py`), and when to stop. Failure is not an exception:
`Solution.outcome` reports it for every sample. The loop itself is in `iterate.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from get.equilibrium.carry import Carry
from get.equilibrium.gradient import (
    Adjoint,
    Gradient,
    Implicit,
    Phantom,
    Unrolled,
    implicit,
    phantom,
    recomputed,
)
from get.equilibrium.iterate import Select, Solver, iterate
from get.equilibrium.picard import Picard
from get.equilibrium.reversible import Reversible, Rewind

State = Tensor | tuple[Tensor, ...]
"""A state: one tensor with the batch first, or a tuple of such."""


@dataclass(frozen=True)
class Solution:
    """What `fixed_point` returns.

    Attributes:
        z: The state, of the same kind as `z0`. If gradients are enabled, `Phantom` applies `steps`
            damped steps and `Implicit` one step of f to the solver's state.
        residual: Relative residual |f(z) - z| / |f(z)| of the solver's state; under select="last"
            and "lowest_residual" that of the state one application before it.
        evaluations: Number of evaluations of f each sample used in the solve.
        outcome: `Outcome` of each sample as an integer.
        iterates: z_1 .. z_T in order with `keep_iterates`, else empty.
        trace: Relative residuals, a row per measurement; nan where a sample had left the batch.
        adjoint: The backward solve of `Implicit`, after a backward pass.
    """

    z: Any
    residual: Float[Tensor, " batch"]
    evaluations: Int[Tensor, " batch"]
    outcome: Int[Tensor, " batch"]
    iterates: tuple[Any, ...]
    trace: Float[Tensor, "measurements batch"]
    adjoint: Adjoint = field(default_factory=Adjoint)


def fixed_point(
    f: Callable[..., Any],
    z0: State,
    *,
    inputs: tuple[Tensor, ...] = (),
    solver: Solver = Picard(),  # noqa: B008  frozen
    gradient: Gradient = Unrolled(),  # noqa: B008  frozen
    max_steps: int,
    tol: float = 0.0,
    atol: float = 0.0,
    check_every: int = 1,
    select: Select = "best",
    keep_iterates: bool = False,
    compact: bool = False,
    carry: Carry | None = None,
) -> Solution:
    """Search for a fixed point of f, for every sample on its own.

    Args:
        f: The map, called as `f(z, *inputs)`; it treats the samples of a batch independently and
            returns a state like z, in new memory. Gradients reach `inputs` and whatever f closes
            over.
        z0: Where to start (a warm start is just another z0); batch first.
        inputs: Per-sample tensors passed to every call of f, such as injections.
        solver: `Picard`, `Anderson`, `Broyden` or `Reversible`.
        gradient: `Unrolled`, `Phantom` or `Implicit`; has no effect under `torch.no_grad`.
        max_steps: Most evaluations of f.
        tol: A sample stops once |f(z) - z| <= atol + tol |f(z)| and its steps have become shorter
            (`outcome.py`); with neither tolerance none stops early.
        atol: The absolute part, which a fixed point at zero needs.
        check_every: Residuals are measured, and samples stop, in every so many steps and in the
            last one. On a GPU each such check waits for the device.
        select: Which state is returned for each sample. "best": the one that has converged, else
            the one of lowest |f(z) - z| among those measured. "last": the one after the last step,
            whose residual is not known. "lowest_residual": the one after that of lowest
            |f(z) - z| (locuslab/get).
        keep_iterates: Also return every z_k.
        compact: Samples that have stopped leave the batch: same result, less work. Every
            batch-sized tensor that f uses must then be in `inputs`.
        carry: What f remembers between its calls in order to take shortcuts, such as the
            `DeltaMemory` that it uses; for solves without gradient. The first and the last
            evaluation are made in full, and so is one of every sample that seems to have converged:
            only a full evaluation can show that. "best" and "lowest_residual" choose among states
            evaluated in full.

    Raises:
        ValueError: If an argument is out of range or of another kind, two exclude each other, f
            returns another kind of state than it was given, or f changes the state it was given,
            as it does where it returns one buffer again and again.
    """
    _check(max_steps, tol, atol, check_every, select)
    if compact and keep_iterates:
        raise ValueError("expected compact=True or keep_iterates=True, got both; choose one")
    if carry is not None and torch.is_grad_enabled():
        raise ValueError(
            "expected no gradients with a carry, got some; solve under torch.no_grad()"
        )
    unrolled = isinstance(gradient, Unrolled)
    shapes = _Shapes.of(z0)
    _check_inputs(inputs, shapes.batch if compact else None)

    def flat_f(z: Tensor, *inputs: Tensor) -> Tensor:
        before = _version(z)
        fz = shapes.flatten_image(f(shapes.restore(z), *inputs), z)
        if _version(z) != before:
            raise ValueError(
                "expected f to leave z as it was, got a z changed in place; return a new tensor, "
                "not z itself or one buffer for all calls"
            )
        return fz

    mapped = flat_f
    if isinstance(gradient, Unrolled) and gradient.checkpoint:

        def mapped(z: Tensor, *inputs: Tensor) -> Tensor:
            return recomputed(flat_f, z, *inputs)

    if isinstance(gradient, Unrolled) and gradient.reverse:
        if not isinstance(solver, Reversible) or tol or atol:
            raise ValueError(
                "expected solver=Reversible() and no tolerances for Unrolled(reverse=True), got "
                f"{solver}, tol {tol} and atol {atol}; every sample takes max_steps steps"
            )
        if torch.is_grad_enabled():
            mapped = solver = Rewind(flat_f, solver)

    with torch.set_grad_enabled(unrolled and torch.is_grad_enabled()):
        result = iterate(
            mapped,
            shapes.flatten(z0),
            inputs,
            solver=solver,
            max_steps=max_steps,
            tol=tol,
            atol=atol,
            check_every=check_every,
            select=select,
            keep_iterates=keep_iterates,
            compact=compact,
            carry=carry,
        )
    z, adjoint = result.z, Adjoint()
    if torch.is_grad_enabled():
        if isinstance(gradient, Phantom):
            z = phantom(flat_f, z, inputs, gradient)
        elif isinstance(gradient, Implicit):
            z = implicit(flat_f, z, inputs, gradient, adjoint)
    return Solution(
        shapes.restore(z),
        result.residual,
        result.evaluations,
        result.outcome,
        tuple(shapes.restore(z) for z in result.iterates),
        result.trace,
        adjoint,
    )


def _check(max_steps: int, tol: float, atol: float, check_every: int, select: str) -> None:
    """Refuse stopping rules that cannot mean anything."""
    whole = isinstance(max_steps, int) and isinstance(check_every, int)
    if not whole or min(max_steps, check_every) < 1 or not (tol >= 0 and atol >= 0):
        raise ValueError(
            "expected max_steps >= 1 and check_every >= 1, both whole, tol >= 0 and atol >= 0, got "
            f"max_steps {max_steps}, check_every {check_every}, tol {tol} and atol {atol}"
        )
    if select not in get_args(Select):
        raise ValueError(f"expected select to be one of {get_args(Select)}, got {select!r}")


def _check_inputs(inputs: Any, batch: int | None) -> None:
    """Refuse anything but a tuple of tensors, of this batch size if it is given."""
    kinds = [type(x).__name__ for x in inputs] if isinstance(inputs, tuple) else []
    if not isinstance(inputs, tuple) or not all(isinstance(x, Tensor) for x in inputs):
        raise ValueError(
            f"expected inputs as a tuple of tensors, got {kinds or type(inputs).__name__}; write "
            "inputs=(x,), and let f close over what is no tensor"
        )
    found = [tuple(x.shape) for x in inputs]
    if batch is not None and any(shape[:1] != (batch,) for shape in found):
        raise ValueError(
            f"expected inputs of batch size {batch} with compact=True, got shapes {found}; let f "
            "close over what is the same for all samples"
        )


def _version(z: Tensor) -> int:
    """Return how often z was changed in place, where torch counts it."""
    return 0 if torch.compiler.is_compiling() or z.is_inference() else z._version


@dataclass(frozen=True)
class _Shapes:
    """How a state of one or several tensors is laid out in a flat one (batch, dimension)."""

    single: bool
    batch: int
    shapes: tuple[torch.Size, ...]  # of one sample

    @classmethod
    def of(cls, z: State) -> "_Shapes":
        if not isinstance(z, Tensor) and type(z) is not tuple:
            kind = type(z).__name__
            raise ValueError(f"expected z0 to be a tensor or a plain tuple of tensors, got {kind}")
        parts = (z,) if isinstance(z, Tensor) else z
        if not parts or any(p.dim() < 2 or p.shape[0] != parts[0].shape[0] for p in parts):
            found = [tuple(p.shape) for p in parts]
            raise ValueError(f"expected z0 of shape (batch, ...), one batch size, got {found}")
        if len({(p.dtype, p.device) for p in parts}) > 1 or not parts[0].is_floating_point():
            found = [(p.dtype, str(p.device)) for p in parts]
            raise ValueError(f"expected z0 of one floating dtype and one device, got {found}")
        shapes = tuple(p.shape[1:] for p in parts)
        return cls(isinstance(z, Tensor), parts[0].shape[0], shapes)

    def flatten(self, z: State) -> Tensor:
        if isinstance(z, Tensor):
            return z.flatten(1)
        return torch.cat([part.flatten(1) for part in z], dim=1)

    def restore(self, flat: Tensor) -> Any:
        if self.single:
            return flat.unflatten(1, self.shapes[0])
        parts = flat.split([prod(shape) for shape in self.shapes], dim=1)
        return tuple(p.unflatten(1, s) for p, s in zip(parts, self.shapes, strict=True))

    def flatten_image(self, fz: State, z: Tensor) -> Tensor:
        """Flatten what f returned, after checking that it has the form of the state z."""
        parts = (fz,) if isinstance(fz, Tensor) else fz
        expected = [(z.shape[0], *shape) for shape in self.shapes]
        found = [tuple(p.shape) for p in parts] if isinstance(parts, tuple) else type(fz).__name__
        if isinstance(fz, Tensor) != self.single or found != expected:
            raise ValueError(
                f"expected f to return shapes {expected} as it was given, got {found}; with "
                "compact=True every batch-sized tensor f uses must be in inputs"
            )
        for part in parts:
            if (part.dtype, part.device) != (z.dtype, z.device):
                raise ValueError(
                    f"expected f to return {z.dtype} on {z.device} as it was given, "
                    f"got {part.dtype} on {part.device}"
                )
        return self.flatten(fz)
