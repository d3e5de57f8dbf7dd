"""The one loop of every solve, forward and backward, on flat states (batch, dimension).

The loop decides when a sample stops, counts evaluations, chooses the state to return, and removes
samples that have stopped. A solver (`picard.py`, `anderson.py`, `broyden.py`) only proposes the
next state. `solve.py` is the public interface, `gradient.py` differentiates.
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

    CONVERGED = 0  # the relative residual reached `tol`
    MAX_STEPS = 1  # `max_steps` evaluations were not enough: raise it or loosen `tol`
    NON_FINITE = 2  # inf or nan appeared: damp the solver or check the model
    DRIFT = 3  # the residual is below `tol` only because |z| grows: not a fixed point


@runtime_checkable  # the tests check annotations
class Solver(Protocol):
    """How the next state is computed from a state z and f(z); holds settings only."""

    def init(self, z: Flat, max_steps: int) -> SolverState:
        """Return the state before the first of at most `max_steps` steps, batch first."""
        ...

    def step(self, k: int, z: Flat, fz: Flat, state: SolverState) -> tuple[Flat, SolverState]:
        """Return the next z and the solver's next state; k counts the steps from 0."""
        ...


@dataclass
class Rows:
    """The samples still in the batch, one row per sample.

    Attributes:
        index: Position of each sample in the original batch.
        z: Current states.
        chosen: The states that would be returned now.
        score: The number by which `chosen` was chosen; the lowest wins.
        residual: Relative residual of the last state evaluated, or of `chosen` under "best".
        evaluations: Evaluations of f so far, set when a sample stops.
        outcome: `Outcome`; MAX_STEPS while a sample is still iterated.
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
    """What the loop returns, in the order of the batch; `solve.Solution` explains the fields."""

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
    stopped: Tensor | None = None  # which rows have stopped; None as long as none has
    gone: list[Rows] = []  # rows removed from the batch (compact=True)
    iterates: list[Tensor] = []
    lengths: list[Tensor] = []  # |f(z) - z| at every step, nan for removed samples
    sizes: list[Tensor] = []  # |f(z)| at every step
    trace: list[Tensor] = []  # |f(z) - z| / |f(z)| at every step

    def whole(values: Tensor) -> Tensor:
        """Spread the values of the rows over the original batch, nan for removed samples."""
        if not gone:
            return values
        return torch.full_like(infinite, torch.nan).index_copy(0, rows.index, values)

    def still(old: Tensor, new: Tensor) -> Tensor:
        """Return `new`, but `old` in rows that have stopped: other rows do not change them."""
        if stopped is None:
            return new
        return torch.where(stopped[:, None] if new.dim() > 1 else stopped, old, new)

    step = 0
    while step < max_steps:
        step += 1

        # Evaluate f and measure the relative residual of the current state.
        fz = f(rows.z, *inputs)
        with torch.no_grad():
            length, size = (fz - rows.z).norm(dim=1), fz.norm(dim=1)
            relative = length / size.clamp_min(torch.finfo(fz.dtype).tiny)
            trace.append(whole(relative))

        # Let the solver propose the next state; rows that have stopped keep theirs.
        measured = rows.z
        proposal, state = solver.step(step - 1, rows.z, fz, state)
        rows.z = still(measured, proposal)

        # Remember the state to return.
        if select == "last":
            rows.chosen, rows.residual = rows.z, still(rows.residual, relative)
        else:
            # "best": the measured state; "lowest_residual": the one after it, as in locuslab/get.
            score = relative if select == "best" else length
            better = still(torch.zeros_like(score, dtype=torch.bool), score < rows.score)
            candidate = measured if select == "best" else rows.z
            rows.chosen = torch.where(better[:, None], candidate, rows.chosen)
            rows.score = torch.where(better, score, rows.score)
            rows.residual = torch.where(better, relative, rows.residual)
        if keep_iterates:
            iterates.append(rows.z)
        if tol == 0:
            continue  # no sample stops early

        # Find the rows that stop now.
        lengths.append(whole(length))
        sizes.append(whole(size))
        below, finite = relative <= tol, torch.isfinite(relative)
        ends = below | ~finite if stopped is None else (below | ~finite) & ~stopped
        if not ends.any():
            continue

        # Record why and after how many evaluations they stopped.
        drift = below & _drifts(lengths, sizes, step)[rows.index]
        outcome = torch.where(drift, int(Outcome.DRIFT), int(Outcome.CONVERGED))
        outcome = torch.where(finite, outcome, int(Outcome.NON_FINITE))
        rows.outcome = torch.where(ends, outcome, rows.outcome)
        rows.evaluations = torch.where(ends, step, rows.evaluations)
        stopped = rows.outcome != Outcome.MAX_STEPS
        if stopped.all():
            break

        # Remove them from rows, inputs and the solver's memory: later evaluations are cheaper.
        if compact:
            gone.append(rows.take(stopped))
            rows, state = rows.take(~stopped), tuple(x[~stopped] for x in state)
            inputs, stopped = tuple(x[~stopped] for x in inputs), None

    # Without a tolerance, outcomes are read off the residuals afterwards: exactly 0 has converged.
    seen = torch.stack(trace)
    if tol == 0:
        exact, finite = (seen == 0).any(0), torch.isfinite(seen).all(0)
        rows.outcome = torch.where(exact, int(Outcome.CONVERGED), rows.outcome)
        rows.outcome = torch.where(finite, rows.outcome, int(Outcome.NON_FINITE))
    unfinished = (rows.outcome == Outcome.MAX_STEPS) | (tol == 0)
    rows.evaluations = torch.where(unfinished, step, rows.evaluations)

    # Put removed and remaining rows back into the order of the batch.
    parts = [*gone, rows]
    order = torch.cat([part.index for part in parts]).argsort()

    def column(name: str) -> Tensor:
        return (
            torch.cat([getattr(part, name) for part in parts])[order]
            if gone
            else getattr(rows, name)
        )

    return Result(
        column("chosen"),
        column("residual"),
        column("evaluations"),
        column("outcome"),
        tuple(iterates),
        seen,
    )


def _drifts(lengths: list[Tensor], sizes: list[Tensor], step: int) -> Bool[Tensor, " batch"]:
    """Return which samples drift: |z| grows, and the step lengths do not fall faster than 1 / step.

    Lengths that fall like 1 / step or slower have an infinite sum, so z has no limit. Such a length
    has not halved when the step number has doubled, which is the test. The relative residual alone
    does not show this: it falls like 1 / step because |z| grows.
    """
    now, half = step - 1, (step - 1) // 2
    if step < 4:
        return torch.zeros_like(lengths[0], dtype=torch.bool)
    return (lengths[now] > lengths[half] / 2) & (sizes[now] > 1.2 * sizes[half])


def put(buffer: Tensor, index: int, value: Tensor, dim: int = 1) -> Tensor:
    """Return a solver's buffer with `value` at `index` of a dimension.

    The buffer is changed in place without gradients, and copied with gradients.
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
    return (x[:, None] @ stack.mT)[:, 0]  # on CPUs 3 to 20 times faster than stack @ x


def combine(weights: Float[Tensor, "batch n"], stack: Float[Tensor, "batch n dimension"]) -> Flat:
    """Return the weighted sum of the vectors of the stack."""
    return (weights[:, None] @ stack)[:, 0]
