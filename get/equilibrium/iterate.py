"""The one loop of every solve, forward and backward, on flat states (batch, dimension).

The loop decides when a sample stops, counts evaluations, chooses the state to return, and removes
samples that have stopped. A solver (`picard.py`, `anderson.py`, `broyden.py`, `reversible.py`) only
proposes the next state, and `outcome.py` says what has converged. `solve.py` is the public
interface, `gradient.py` differentiates.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from get.equilibrium.carry import Carry
from get.equilibrium.outcome import Outcome, measure, moves_on, relative
from get.equilibrium.vectors import full_precision, wide

Flat: TypeAlias = Float[Tensor, "batch dimension"]
Select: TypeAlias = Literal["best", "last", "lowest_residual"]
SolverState: TypeAlias = tuple[Tensor, ...]

# Integers: the compiler takes a comparison of a tensor with an IntEnum for a Python bool.
CONVERGED, MAX_STEPS = int(Outcome.CONVERGED), int(Outcome.MAX_STEPS)
NON_FINITE, DRIFT = int(Outcome.NON_FINITE), int(Outcome.DRIFT)


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
        length: |f(z) - z| of the last state measured, or of the one by which `chosen` was chosen.
        size: The number that length is divided by, at the same state.
        evaluations: Evaluations of f so far, set when a sample stops.
        outcome: `Outcome`; MAX_STEPS while a sample is still iterated.
    """

    index: Int[Tensor, " rows"]
    z: Flat
    chosen: Flat
    length: Float[Tensor, " rows"]
    size: Float[Tensor, " rows"]
    evaluations: Int[Tensor, " rows"]
    outcome: Int[Tensor, " rows"]

    def take(self, rows: Int[Tensor, " some"]) -> "Rows":
        """Return these rows."""
        return Rows(*(getattr(self, field.name).index_select(0, rows) for field in fields(self)))


@dataclass(frozen=True)
class Result:
    """What the loop returns, in the order of the batch; `solve.Solution` explains the fields."""

    z: Flat
    residual: Float[Tensor, " batch"]
    evaluations: Int[Tensor, " batch"]
    outcome: Int[Tensor, " batch"]
    iterates: tuple[Flat, ...]
    trace: Float[Tensor, "measurements batch"]


def iterate(
    f: Callable[..., Tensor],
    z0: Flat,
    inputs: tuple[Tensor, ...],
    *,
    solver: Solver,
    max_steps: int,
    tol: float,
    select: Select,
    atol: float = 0.0,
    check_every: int = 1,
    unit: Float[Tensor, " batch"] | None = None,
    keep_iterates: bool = False,
    compact: bool = False,
    carry: Carry | None = None,
) -> Result:
    """Run the loop; arguments as in `solve.fixed_point`, states flat.

    What a map with a `carry` says is believed only of samples that were evaluated in full. These
    are all in the first and in the last step, and those that seemed to have converged before.

    `unit` takes the place of |f(z)| as the unit of the residual. It does not change with z, so a
    residual below `tol` is believed at once, and so is one that is a rounding error of z.
    """
    batch, device = z0.shape[0], z0.device  # len() would fix the batch of torch.export
    dtype, eps = wide(z0.dtype), torch.finfo(z0.dtype).eps
    infinite = torch.full((batch,), torch.inf, device=device, dtype=dtype)
    rows = Rows(
        index=torch.arange(batch, device=device),
        z=z0,
        chosen=z0,
        length=infinite,
        size=torch.ones_like(infinite),
        evaluations=torch.zeros(batch, dtype=torch.int64, device=device),
        outcome=torch.full((batch,), MAX_STEPS, device=device),
    )
    state = solver.init(z0, max_steps)
    early = tol > 0 or atol > 0  # samples may stop early
    stopped: Tensor | None = None  # which rows have stopped; None as long as none has
    gone: list[Rows] = []  # rows removed from the batch (compact=True)
    iterates: list[Tensor] = []
    lengths: list[Tensor] = []  # |f(z) - z| at every measurement, nan for removed samples
    sizes: list[Tensor] = []  # |f(z)| or `unit`

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

    seemed: Tensor | None = None  # which rows have converged, unless a shortcut made it seem so
    full: Tensor | bool = True  # which rows are evaluated in full
    if carry is not None:
        carry.start()

    step = 0
    while step < max_steps:
        step += 1
        if carry is not None:
            full = step in (1, max_steps)
            if seemed is not None and not full and step % check_every == 0:
                full, seemed = seemed, None
            carry.next(full)

        # Evaluate f; let the solver propose the next state; rows that have stopped keep theirs.
        z, fz = rows.z, f(rows.z, *inputs)
        with full_precision(device):
            proposal, state = solver.step(step - 1, z, fz, state)
        rows.z = still(z, proposal)
        if keep_iterates:
            iterates.append(rows.z)
        if select == "last":
            rows.chosen = rows.z
        if step % check_every and step < max_steps:
            continue

        # Measure the residual of z, and remember the state to return.
        with torch.no_grad():
            length, size = measure(z, fz)
            slack: float | Tensor = atol
            if unit is not None:
                slack, size = 16 * torch.finfo(dtype).eps * size, unit[rows.index]
            lengths.append(whole(length))
            sizes.append(whole(size))
        if select == "last":
            rows.length, rows.size = still(rows.length, length), still(rows.size, size)
        else:
            # "best": the measured state; "lowest_residual": the one after it, as in locuslab/get.
            better = (length < rows.length) & full
            if stopped is not None:
                better = better & ~stopped
            candidate = z if select == "best" else rows.z
            rows.chosen = torch.where(better[:, None], candidate, rows.chosen)
            rows.length = torch.where(better, length, rows.length)
            rows.size = torch.where(better, size, rows.size)
        if not early:
            continue

        # Find the rows that stop now: not finite, or below the tolerance and not moving on. In the
        # last step those that move on are labelled too.
        goes_on = (length > tol * size + slack) & (length < torch.inf)
        if stopped is not None:
            goes_on = goes_on | stopped
        if goes_on.all():
            continue
        ends, finite = ~goes_on, torch.isfinite(length + size)
        moving = torch.zeros_like(ends)
        if unit is None and (step < max_steps or len(lengths) > 1):
            moving = moves_on(lengths, sizes[-1], check_every, eps)[rows.index] & (length > atol)
        converged = ends & finite & ~moving
        if carry is not None:
            seemed = converged & ~torch.as_tensor(full, device=device)
            converged, ends = converged & ~seemed, ends & ~seemed
            if len(lengths) > 1:  # the residual of a shortcut says little: keep the one before
                lengths[-1] = whole(torch.where(seemed, lengths[-2][rows.index], length))
        if step < max_steps:
            ends = ends & (converged | ~finite)

        # Record why and after how many evaluations they stopped.
        failure = torch.where(finite, DRIFT, NON_FINITE)
        rows.outcome = torch.where(ends, torch.where(converged, CONVERGED, failure), rows.outcome)
        rows.evaluations = torch.where(ends, step, rows.evaluations)
        if select == "best":  # what has converged is returned, whatever was measured before
            rows.chosen = torch.where(converged[:, None], z, rows.chosen)
            rows.length = torch.where(converged, length, rows.length)
            rows.size = torch.where(converged, size, rows.size)
        stopped = rows.outcome != MAX_STEPS
        count = int(stopped.sum())
        if count == len(stopped):
            break
        if count == 0:
            stopped = None

        # Remove them from rows, inputs and the solver's memory: later evaluations are cheaper.
        elif compact:
            order = stopped.int().argsort(stable=True)
            stay, leave = order[:-count], order[-count:]
            gone.append(rows.take(leave))
            rows, state = rows.take(stay), tuple(x.index_select(0, stay) for x in state)
            inputs, stopped = tuple(x.index_select(0, stay) for x in inputs), None
            if carry is not None:
                carry.take(stay)
                seemed = None if seemed is None else seemed.index_select(0, stay)

    # Without a tolerance, outcomes are read off the lengths afterwards: exactly 0 has converged.
    seen, units = torch.stack(lengths), torch.stack(sizes)
    if not early:
        known = seen if carry is None else seen[-1:]  # full evaluations
        finite, exact = torch.isfinite(seen + units).all(0), (known == 0).any(0)
        rows.outcome = torch.where(exact, CONVERGED, rows.outcome)
        rows.outcome = torch.where(finite, rows.outcome, NON_FINITE)
    unfinished = rows.evaluations == 0
    rows.evaluations = torch.where(unfinished, step, rows.evaluations)

    # Put removed and remaining rows back into the order of the batch.
    parts = [*gone, rows]
    order = torch.cat([part.index for part in parts]).argsort()

    def column(name: str) -> Tensor:
        if not gone:
            return getattr(rows, name)
        return torch.cat([getattr(part, name) for part in parts]).index_select(0, order)

    return Result(
        column("chosen"),
        relative(column("length"), column("size")),
        column("evaluations"),
        column("outcome"),
        tuple(iterates),
        relative(seen, units),
    )
