"""Our solvers and gradients compared with torchdeq's: same map, same solver, same evaluations.

The two take turns in one run; ratios of time are medians over all turns, memory is the most bytes
of tensors alive at once (get/cost.py). Both spend all their evaluations: stopping is switched on,
with a tolerance out of reach. torchdeq counts differently: the evaluations actually made are
reported.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from get.cost import LiveBytes, in_turns, median_ratio
from get.equilibrium import (
    Anderson,
    Broyden,
    Gradient,
    Implicit,
    Phantom,
    Picard,
    Solver,
    fixed_point,
)
from get.errors import InputError
from get.models import GET
from pipeline.benchmarks.results import BenchmarkConfig, save
from pipeline.jobs.tables import markdown as markdown_table

NEVER = 1e-12  # a tolerance that float32 does not reach
SOLVERS = {
    "picard": (Picard(), "fixed_point_iter", 0),
    "anderson": (Anderson(), "anderson", 0),
    "broyden": (Broyden(), "broyden", -1),  # torchdeq's makes one evaluation more than asked for
}


@dataclass(frozen=True, kw_only=True)
class SolversConfig(BenchmarkConfig):
    """Compare our solvers and gradients with torchdeq's on the same maps.

    Attributes:
        batch_size: Samples per solve.
        evaluations: Evaluations of the map per solve, forward and backward.
        repeats: Turns, of one solve each.
    """

    batch_size: int = 64
    evaluations: int = 20
    repeats: int = 20

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        super().__post_init__()
        if self.evaluations < 4:
            raise InputError(f"expected evaluations of at least 4, got {self.evaluations}")


@dataclass
class Problem:
    """A map with everything it needs; `calls` counts its evaluations."""

    f: Callable[..., Tensor]
    z0: Tensor
    inputs: tuple[Tensor, ...]
    calls: int = 0

    def __call__(self, z: Tensor, *inputs: Tensor) -> Tensor:
        """Evaluate the map."""
        self.calls += 1
        return self.f(z, *inputs)

    def residual(self, z: Tensor) -> float:
        """Return |f(z) - z| / |z| of a whole batch."""
        return float((self.f(z, *self.inputs) - z).norm() / z.norm())


def problems(batch: int) -> dict[str, Problem]:
    """Return a cheap map, where the solver's own work shows, and a GET's."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    width = 1024
    weight = torch.nn.Parameter(normal(width, width) * 0.8 / width**0.5)
    x = normal(batch, width)

    def dense(z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(z @ weight + x)

    torch.manual_seed(0)
    model = GET(image_size=8, channels=1, width=64, depth=1, heads=2, equilibrium_mlp_ratio=4.0)
    with torch.no_grad():
        z0, inputs = model.problem(normal(batch, 1, 8, 8))
    return {
        "dense": Problem(dense, torch.zeros(batch, width), (x,)),
        "GET": Problem(model.equilibrium_map, z0, inputs),
    }


def main(config: SolversConfig) -> None:
    """Measure every solver forward, and every gradient forward and backward."""
    try:
        from torchdeq import get_deq
    except ImportError as error:
        raise InputError("expected the package torchdeq, got none; pip install torchdeq") from error
    n = config.evaluations
    rows = []
    for name, problem in problems(config.batch_size).items():
        for solver, (ours, theirs, offset) in SOLVERS.items():
            settings = {"f_solver": theirs, "f_max_iter": n + offset, "f_tol": NEVER}
            settings |= {"b_solver": theirs, "b_max_iter": n + offset, "b_tol": NEVER}
            settings |= {"f_stop_mode": "rel", "b_stop_mode": "rel"}
            gradients: dict[str, tuple[Gradient | None, dict[str, Any]]] = {
                "none": (None, {}),
                "phantom": (Phantom(steps=5, damping=0.5), {"grad": 5, "tau": 0.5}),
                "implicit": (Implicit(solver=ours, max_steps=n, tol=NEVER), {"ift": True}),
            }
            for gradient, (mode, flags) in gradients.items():
                deq = get_deq(core="sliced", **settings, **flags).train()
                calls = {
                    "ours": partial(solve, problem, ours, mode or Phantom(), n),
                    "torchdeq": partial(solve_by_torchdeq, problem, deq),
                }
                row = {"problem": name, "solver": solver, "gradient": gradient}
                figures = compare(calls, problem, mode is not None, config.repeats)
                rows.append(row | figures)
                ratios = [f"{key} {ratio:.2f}" for key, ratio in figures["ratio"].items()]
                print(*row.values(), "ours / torchdeq:", *ratios)
    saving = compaction(config)
    print(
        f"compaction on a batch of mixed difficulty: {saving['evaluations']:.2f} of the "
        f"evaluations, {saving['seconds']:.2f} of the time"
    )
    figures = {
        "batch_size": config.batch_size,
        "evaluations": n,
        "repeats": config.repeats,
        "rows": rows,
        "compaction": saving,
    }
    save(config, "solvers", figures)


def solve(problem: Problem, solver: Solver, gradient: Gradient, evaluations: int) -> Tensor:
    """Return the state that our `fixed_point` finds."""
    return fixed_point(
        problem,
        problem.z0,
        inputs=problem.inputs,
        solver=solver,
        gradient=gradient,
        max_steps=evaluations,
        tol=NEVER,
    ).z


def solve_by_torchdeq(problem: Problem, deq: Any) -> Tensor:
    """Return the state that torchdeq finds; it applies its gradient without gradients too."""
    states, _ = deq(lambda z: problem(z, *problem.inputs), problem.z0)
    return states[-1]


@torch.no_grad()
def compaction(config: SolversConfig) -> dict[str, float]:
    """Return the part of evaluations and time that is left if converged samples leave the batch.

    Each sample contracts at its own rate, from 0.1 to 0.97: easy and hard ones in one batch.
    """
    dense = problems(config.batch_size)["dense"]
    rate = torch.linspace(0.1, 0.97, config.batch_size)[:, None]

    def f(z: Tensor, x: Tensor, rate: Tensor) -> Tensor:
        return rate * dense.f(z, x)

    run = partial(fixed_point, f, dense.z0, inputs=(*dense.inputs, rate), max_steps=200, tol=1e-5)
    calls = {"compact": partial(run, compact=True), "whole": run}
    seconds, evaluations = in_turns(calls, config.repeats), run().evaluations
    return {
        "evaluations": float(evaluations.float().mean() / evaluations.max()),
        "seconds": median_ratio(seconds["compact"].wall, seconds["whole"].wall),
    }


def compare(
    calls: dict[str, Callable[[], Tensor]], problem: Problem, backward: bool, repeats: int
) -> dict[str, Any]:
    """Return evaluations, seconds, peak bytes and residual of the two, and their ratios.

    Forward is the solve, backward the gradient of the sum of squares of the state it found.
    """
    states: dict[str, Tensor] = {}

    def solve(name: str) -> None:
        with torch.set_grad_enabled(backward):
            states[name] = calls[name]()

    def differentiate(name: str) -> None:
        states[name].square().sum().backward()

    parts = {"forward": solve, "backward": differentiate} if backward else {"forward": solve}
    found: dict[str, dict[str, Any]] = {}
    for name in calls:
        problem.calls = 0
        with LiveBytes() as memory:
            for part in parts.values():
                part(name)
        found[name] = {"evaluations": problem.calls, "peak_bytes": memory.peak}
        with torch.no_grad():
            found[name]["residual"] = problem.residual(states[name])
    timed = {(name, part): partial(f, name) for name in calls for part, f in parts.items()}
    seconds = in_turns(timed, repeats)
    ratio = {"peak_bytes": found["ours"]["peak_bytes"] / found["torchdeq"]["peak_bytes"]}
    for part in parts:
        ours, theirs = (seconds[name, part].wall for name in ("ours", "torchdeq"))
        ratio[f"{part}_seconds"] = median_ratio(ours, theirs)
        found["ours"][f"{part}_seconds"] = min(ours)
        found["torchdeq"][f"{part}_seconds"] = min(theirs)
    return {**found, "ratio": ratio}


def markdown(result: dict[str, Any]) -> str:
    """Return the table of ratios, ours over torchdeq's."""
    rows = [["map", "solver", "gradient", "forward", "backward", "peak bytes"]]
    for row in result["rows"]:
        keys = ("forward_seconds", "backward_seconds", "peak_bytes")
        ratios = [f"{row['ratio'][key]:.2f}" if key in row["ratio"] else "-" for key in keys]
        rows.append([row["problem"], row["solver"], row["gradient"], *ratios])
    return markdown_table(rows)
