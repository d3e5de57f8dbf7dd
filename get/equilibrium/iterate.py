"""The one loop of every solve, forward and backward, on flat states (batch, dimension).

It owns stopping, the count of evaluations, the iterate that is returned and the removal of
converged samples; a solver (`picard.py`, `anderson.py`, `broyden.py`) only makes the next state.
`solve.py` is the public face, `gradient.py` differentiates.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Flat: TypeAlias = Float[Tensor, "batch dimension"]
Select: TypeAlias = Literal["best", "last", "lowest_residual"]
SolverState: TypeAlias = tuple[Tensor, ...]


class Outcome(IntEnum):
    """How the iteration of one sample ended."""

    CONVERGED = 0  # the relative residual fell to `tol`
    MAX_STEPS = 1  # `max_steps` evaluations were spent first; raise it or loosen `tol`
    NON_FINITE = 2  # inf or nan came up; damp the solver or look at the model
    DRIFT = 3  # the residual is below `tol` only because |z| grows: this is no fixed point


@runtime_checkable  # the tests check annotations
class Solver(Protocol):
    """How the next state is made from a state and its image; holds settings only."""

    def init(self, z: Flat, max_steps: int) -> SolverState:
        """Return the state before the first of at most `max_steps` steps, batch first."""
        ...

    def step(self, k: int, z: Flat, fz: Flat, state: SolverState) -> tuple[Flat, SolverState]:
        """Return the next z and the next state; k counts the steps from 0."""
        ...


@dataclass
class Rows:
    """What is known of the samples still in the batch, a row each.

    Attributes:
        index: Places in the whole batch.
        z: Current states.
        chosen: The states that would be returned now.
        score: What `chosen` was chosen by; the lowest wins.
        residual: Relative residual of the last state evaluated, or of `chosen` under "best".
        evaluations: Evaluations of f so far.
        outcome: `Outcome`; MAX_STEPS while a sample is still going.
    """

    index: Int[Tensor, " rows"]
    z: Flat
    chosen: Flat
    score: Float[Tensor, " rows"]
    residual: Float[Tensor, " rows"]
    evaluations: Int[Tensor, " rows"]
    outcome: Int[Tensor, " rows"]

    def take(self, keep: Bool[Tensor, " rows"]) -> "Rows":
        """Return the rows where `keep` is true."""
        return Rows(*(getattr(self, field.name)[keep] for field in fields(self)))


@dataclass(frozen=True)
class Result:
    """What the loop found, in the order of the batch; `solve.Solution` explains the fields."""

    z: Flat
    residual: Float[Tensor, " batch"]
    evaluations: Int[Tensor, " batch"]
    outcome: Int[Tensor, " batch"]
    iterates: tuple[Flat, ...]
    trace: Float[Tensor, "steps batch"]


def iterate(
    f: Callable[..., Tensor],
    z0: Flat,
    inputs: tuple[Tensor, ...],
    *,
    solver: Solver,
    max_steps: int,
    tol: float,
    select: Select,
    keep_iterates: bool = False,
    compact: bool = False,
) -> Result:
    """Run the loop; arguments as in `solve.fixed_point`, states flat."""
    batch, device = len(z0), z0.device
    infinite = torch.full((batch,), torch.inf, device=device, dtype=z0.dtype)
    rows = Rows(
        index=torch.arange(batch, device=device),
        z=z0,
        chosen=z0,
        score=infinite,
        residual=infinite,
        evaluations=torch.zeros(batch, dtype=torch.int64, device=device),
        outcome=torch.full((batch,), int(Outcome.MAX_STEPS), device=device),
    )
    state = solver.init(z0, max_steps)
    gone: list[Rows] = []
    everyone = torch.ones(batch, dtype=torch.bool, device=device)
    iterates: list[Tensor] = []
    lengths: list[Tensor] = []  # |f(z) - z| at every step, nan where a sample has left
    sizes: list[Tensor] = []  # |z| at every step
    trace: list[Tensor] = []

    def whole(values: Tensor) -> Tensor:
        return (
            values
            if not gone
            else torch.full_like(infinite, torch.nan).index_copy(0, rows.index, values)
        )

    for step in range(1, max_steps + 1):
        fz = f(rows.z, *inputs)
        # Without a tolerance nobody stops.
        active = rows.outcome == Outcome.MAX_STEPS if tol > 0 else everyone
        with torch.no_grad():
            length = (fz - rows.z).norm(dim=1)
            relative = length / fz.norm(dim=1).clamp_min(torch.finfo(fz.dtype).tiny)
            trace.append(whole(relative))
            finite = torch.isfinite(relative)
            rows.evaluations = rows.evaluations + active
            below = active & (relative <= tol)
            ended = [(below, Outcome.CONVERGED), (active & ~finite, Outcome.NON_FINITE)]
            if tol > 0:
                lengths.append(whole(length))
                sizes.append(whole(rows.z.norm(dim=1)))
                drift = below & _drifts(lengths, sizes, step)[rows.index]
                ended.append((drift, Outcome.DRIFT))
            for where, outcome in ended:
                rows.outcome = torch.where(where, int(outcome), rows.outcome)
        proposal, state = solver.step(step - 1, rows.z, fz, state)
        measured = rows.z
        # A sample that has stopped keeps its state, whatever its batch mates still do.
        rows.z = torch.where(active[:, None], proposal, rows.z) if tol > 0 else proposal
        if select == "last":
            rows.chosen, rows.residual = rows.z, torch.where(active, relative, rows.residual)
        else:
            # "best": the measured state; "lowest_residual": its image, as locuslab/get returns.
            score = relative if select == "best" else length
            better = active & finite & (score < rows.score)
            candidate = measured if select == "best" else rows.z
            rows.chosen = torch.where(better[:, None], candidate, rows.chosen)
            rows.score = torch.where(better, score, rows.score)
            rows.residual = torch.where(better, relative, rows.residual)
        if keep_iterates:
            iterates.append(rows.z)
        if tol > 0:
            going = rows.outcome == Outcome.MAX_STEPS
            if not going.any():
                break
            if compact and not going.all():
                gone.append(rows.take(~going))
                rows = rows.take(going)
                state = tuple(x[going] for x in state)
                inputs = tuple(x[going] for x in inputs)

    parts = [*gone, rows]
    order = torch.cat([part.index for part in parts]).argsort()

    def column(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])[order]

    return Result(
        column("chosen"),
        column("residual"),
        column("evaluations"),
        column("outcome"),
        tuple(iterates),
        torch.stack(trace),
    )


def _drifts(lengths: list[Tensor], sizes: list[Tensor], step: int) -> Bool[Tensor, " batch"]:
    """Say which samples drift: z grows, and its steps do not fall faster than 1 / step.

    Steps that fall like 1 / step or slower have an infinite sum, so z has no limit: halving them
    takes a doubled step number. A relative residual alone falls like 1 / step even then.
    """
    now, half = step - 1, (step - 1) // 2
    if step < 4:
        return torch.zeros_like(lengths[0], dtype=torch.bool)
    return (lengths[now] > lengths[half] / 2) & (sizes[now] > 1.2 * sizes[half])


def put(buffer: Tensor, index: int, value: Tensor, dim: int = 1) -> Tensor:
    """Return the buffer with `value` at `index` of a dimension, for the memory of a solver.

    Written in place where nothing is differentiated, into a copy where something is.
    """
    if torch.is_grad_enabled():
        place = torch.tensor([index], device=buffer.device)
        return buffer.index_copy(dim, place, value.unsqueeze(dim))
    buffer.select(dim, index).copy_(value)
    return buffer


def dots(
    stack: Float[Tensor, "batch vectors dimension"], x: Flat
) -> Float[Tensor, "batch vectors"]:
    """Return the inner products of x with every vector of the stack."""
    return (x[:, None] @ stack.mT)[:, 0]  # on CPUs many times faster than stack @ x


def combine(weights: Float[Tensor, "batch n"], stack: Float[Tensor, "batch n dimension"]) -> Flat:
    """Return the weighted sum of the vectors of the stack."""
    return (weights[:, None] @ stack)[:, 0]
