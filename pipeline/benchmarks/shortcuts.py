"""Ways of making a solve cheaper, and what each of them costs: for `delta.py` and `photograph.py`.

Fewer iterations, stopping by the residual, removing what has stopped from the batch (compaction),
skipping small changes (`DeltaMemory`), and the last two together.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from get.cost import Macs, in_turns, median_ratio
from get.equilibrium import DeltaMemory, Unit, fixed_point
from get.models.get import Problem
from pipeline.recipes.settings_make import within

SHOWN = 10  # operations of a profile


class Solvable(Protocol):
    """A model that iterates a map to a state, of which it makes images or colours."""

    def problem(self, noise: Tensor, labels: Tensor | None = None, /) -> Problem:
        """Return start and inputs of the map."""
        ...

    @property
    def equilibrium_map(self) -> Callable[..., Tensor]:
        """The map f(z, *inputs, apply=...)."""
        ...

    def image_of(self, z: Tensor, /) -> Tensor:
        """Return what a state shows."""
        ...


@dataclass(frozen=True)
class Made:
    """What a solve makes, and what it took."""

    images: Tensor
    evaluations: Tensor
    delta: DeltaMemory | None


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One way to solve.

    Attributes:
        method: Its name in tables.
        iterations: Most evaluations of the map.
        tol: Relative residual at which a sample stops; 0 never stops early.
        compact: Samples that have stopped leave the batch.
        threshold: Largest change ignored.
        unit: What is skipped together; None skips nothing.
    """

    method: str
    iterations: int
    tol: float = 0.0
    compact: bool = False
    threshold: float = 0.0
    unit: Unit | None = None

    def memory(self) -> DeltaMemory | None:
        """Return a new memory for such solves; None if nothing is skipped."""
        return None if self.unit is None else DeltaMemory(self.threshold, self.unit)

    def make(
        self,
        model: Solvable,
        noise: Tensor,
        labels: Tensor | None,
        delta: DeltaMemory | None = None,
    ) -> Made:
        """Solve, without gradients, with a memory that was used before or a new one."""
        delta = delta or self.memory()
        problem = model.problem(noise, labels)
        solution = fixed_point(
            partial(model.equilibrium_map, apply=delta),
            problem.z0,
            inputs=problem.inputs,
            max_steps=self.iterations,
            tol=self.tol,
            select="last",
            compact=self.compact,
            carry=delta,
        )
        return Made(model.image_of(solution.z), solution.evaluations, delta)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The settings that are compared.

    Attributes:
        iterations: Iterations of the dense solve, and most of any other.
        fewer: Smaller numbers of iterations.
        tolerances: Relative residuals at which a sample stops; without compaction, every other one.
        thresholds: Largest changes ignored; of samples, every other one.
        units: What is skipped together.
        mixed: Tolerances and thresholds of solves in which samples leave the batch and elements or
            tokens are skipped.
        shorter: Iterations and thresholds of shorter solves in which elements or tokens are.
    """

    iterations: int = 12
    fewer: tuple[int, ...] = (3, 4, 5, 6, 7, 8, 10)
    tolerances: tuple[float, ...] = (0.15, 0.12, 0.11, 0.1, 0.05, 0.03, 0.01)
    thresholds: tuple[float, ...] = (0.05, 0.07, 0.1, 0.15, 0.2, 0.3)
    units: tuple[Unit, ...] = ("element", "token", "sample")
    mixed: tuple[tuple[float, float], ...] = ((0.1, 0.15),)
    shorter: tuple[tuple[int, float], ...] = ((6, 0.15), (8, 0.2))

    def __post_init__(self) -> None:
        """Refuse numbers that cannot mean anything."""
        within(2, iterations=self.iterations, **{"fewer iterations": min(self.fewer, default=2)})
        for value in (*self.tolerances, *self.thresholds, *chain(*self.mixed)):
            within(0, 100, **{"tolerances and thresholds": value})

    def cells(self) -> list[Cell]:
        """Return every way to compare, the dense solve first."""
        n = self.iterations
        return [
            Cell(method="dense", iterations=n),
            *(Cell(method="fewer iterations", iterations=k) for k in self.fewer if k < n),
            *(Cell(method="stopping", iterations=n, tol=tol) for tol in self.tolerances[1::2]),
            *(
                Cell(method="compaction", iterations=n, tol=tol, compact=True)
                for tol in self.tolerances
            ),
            *(
                Cell(method=f"delta, {unit}", iterations=n, threshold=threshold, unit=unit)
                for unit in self.units
                for threshold in self.thresholds[:: 2 if unit == "sample" else 1]
            ),
            *(
                Cell(
                    method=f"delta, {unit}, and fewer iterations",
                    iterations=iterations,
                    threshold=threshold,
                    unit=unit,
                )
                for unit in self.units
                if unit != "sample"
                for iterations, threshold in self.shorter
            ),
            *(
                Cell(
                    method=f"delta, {unit}, and compaction",
                    iterations=n,
                    tol=tol,
                    compact=True,
                    threshold=threshold,
                    unit=unit,
                )
                for unit in self.units
                if unit != "sample"
                for tol, threshold in self.mixed
            ),
        ]


def make_all(
    model: Solvable, cell: Cell, noise: Tensor, labels: Tensor | None, batch_size: int
) -> tuple[Tensor, float, float]:
    """Return all images, and multiply-accumulates and evaluations for one of them."""
    parts, macs, evaluations = [], 0, 0
    for at in range(0, len(noise), batch_size):
        rows = slice(at, at + batch_size)
        with Macs() as work:
            made = cell.make(model, noise[rows], None if labels is None else labels[rows])
        macs += work.total - (made.delta.surplus_macs if made.delta else 0)
        evaluations += int(made.evaluations.sum())
        parts.append(made.images)
    return torch.cat(parts), macs / len(noise), evaluations / len(noise)


def work_outside(model: Solvable, noise: Tensor, labels: Tensor | None) -> float:
    """Return the multiply-accumulates of an image outside the iteration."""
    with Macs() as work:
        model.image_of(model.problem(noise, labels).z0)
    return work.total / len(noise)


def take_times(
    model: Solvable,
    cells: Sequence[Cell],
    rows: Sequence[dict[str, Any]],
    noise: Tensor,
    labels: Tensor | None,
    turns: int,
) -> None:
    """Enter the seconds for an image in this batch, and by how much the first cell's are longer."""
    calls = {i: partial(cell.make, model, noise, labels) for i, cell in enumerate(cells)}
    seconds = in_turns(calls, turns)
    for i, row in enumerate(rows):
        row["seconds"] = min(seconds[i].wall) / len(noise)
        row["speedup"] = median_ratio(seconds[0].wall, seconds[i].wall)
        row["cpu_speedup"] = median_ratio(seconds[0].cpu, seconds[i].cpu)


def kept_by_iteration(
    model: Solvable, cells: Sequence[Cell], noise: Tensor, labels: Tensor | None
) -> dict[str, dict[str, list[float]]]:
    """Return the part of the linear layers' work that each evaluation does, by unit."""
    kept: dict[str, dict[str, list[float]]] = {}
    for cell in cells:
        if cell.unit and not cell.compact and cell.iterations == cells[0].iterations:
            delta = cell.make(model, noise, labels).delta
            assert delta is not None
            parts = [now / dense for now, dense in zip(delta.macs, delta.dense_macs, strict=True)]
            kept.setdefault(cell.unit, {})[f"{cell.threshold:g}"] = parts
    return kept


class Clock(TorchDispatchMode):
    """Takes the time of every operation on the CPU, by its name.

    torch's profiler would tell the same, and writes lines of its own on the screen.
    """

    def __init__(self) -> None:
        """Nothing timed yet."""
        super().__init__()
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation and take its time."""
        began = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        self.seconds[func.overloadpacket.__name__] += time.perf_counter() - began
        return result


def profile(model: Solvable, cell: Cell, noise: Tensor, labels: Tensor | None) -> dict[str, float]:
    """Return the share of the operations' time that each of them takes, largest first."""
    with Clock() as clock:
        cell.make(model, noise, labels)
    total = sum(clock.seconds.values())
    largest = sorted(clock.seconds.items(), key=lambda item: -item[1])[:SHOWN]
    return {name: seconds / total for name, seconds in largest}
