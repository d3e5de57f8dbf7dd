"""Our solvers and gradients beside torchdeq's: same map, same solver, same evaluations, one run.

Time is the best of many calls of the two in turn, memory the most bytes of tensors alive at once
(get/cost.py). Both run all their evaluations with stopping switched on and a tolerance that is out
of reach. torchdeq counts differently: the evaluations that were really made are reported.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.files import write_json
from get.cost import LiveBytes
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
from pipeline.jobs.provenance import provenance
from pipeline.recipes.settings_make import positive

NEVER = 1e-12  # a tolerance that float32 does not reach
SOLVERS = {
    "picard": (Picard(), "fixed_point_iter", 0),
    "anderson": (Anderson(), "anderson", 0),
    "broyden": (Broyden(), "broyden", -1),  # torchdeq's makes one evaluation more than asked for
}


@dataclass(frozen=True, kw_only=True)
class SolversConfig:
    """Compare our solvers and gradients with torchdeq's on the same maps.

    Attributes:
        output_dir: Where solvers.json goes.
        batch_size: Samples a solve.
        evaluations: Evaluations of the map a solve, forward and backward.
        repeats: Calls of each, in turn, of which the best time counts.
    """

    output_dir: Path
    batch_size: int = 64
    evaluations: int = 20
    repeats: int = 20

    def __post_init__(self) -> None:
        """Refuse numbers below 1."""
        positive(batch_size=self.batch_size, repeats=self.repeats)
        if self.evaluations < 4:
            raise InputError(f"expected evaluations of at least 4, got {self.evaluations}")


@dataclass(frozen=True)
class Problem:
    """A map with everything it needs; `calls` counts its evaluations."""

    f: Callable[..., Tensor]
    z0: Tensor
    inputs: tuple[Tensor, ...]
    calls: list[int]

    def __call__(self, z: Tensor, *inputs: Tensor) -> Tensor:
        """Evaluate the map."""
        self.calls[0] += 1
        return self.f(z, *inputs)


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
        "dense": Problem(dense, torch.zeros(batch, width), (x,), [0]),
        "GET": Problem(model.equilibrium_map, z0, tuple(inputs), [0]),
    }


def main(config: SolversConfig) -> None:
    """Measure every solver forward, and every gradient forward and backward."""
    try:
        from torchdeq import get_deq
    except ImportError as error:
        raise InputError("expected torchdeq beside us, found none; pip install torchdeq") from error
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

                us = partial(solve, problem, ours, mode or Phantom(), n)
                both = {"ours": us, "torchdeq": partial(solve_by_torchdeq, problem, deq)}
                row = {"problem": name, "solver": solver, "gradient": gradient}
                rows.append(row | compare(both, problem, mode is not None, config.repeats))
                print(describe(rows[-1]))
    saving = compaction(config)
    print(
        f"compaction on a batch of mixed difficulty: {saving['evaluations']:.2f} of the "
        f"evaluations, {saving['seconds']:.2f} of the time"
    )
    result = {
        "batch_size": config.batch_size,
        "evaluations": n,
        "repeats": config.repeats,
        "rows": rows,
        "compaction": saving,
        **provenance(),
    }
    write_json(config.output_dir / "solvers.json", result)
    print(f"solvers {config.output_dir / 'solvers.json'}")


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
    """Return what is left of evaluations and time once converged samples leave the batch.

    Sample i contracts at a rate of its own, from 0.1 to 0.97: easy and hard ones in one batch.
    """
    dense = problems(config.batch_size)["dense"]
    rate = torch.linspace(0.1, 0.97, config.batch_size)[:, None]

    def f(z: Tensor, x: Tensor, rate: Tensor) -> Tensor:
        return rate * dense.f(z, x)

    seconds: dict[bool, float] = {True: float("inf"), False: float("inf")}
    spent = 0.0
    for _ in range(config.repeats):
        for compact in seconds:
            began = time.perf_counter()
            solution = fixed_point(
                f, dense.z0, inputs=(*dense.inputs, rate), max_steps=200, tol=1e-5, compact=compact
            )
            seconds[compact] = min(seconds[compact], time.perf_counter() - began)
            spent = float(solution.evaluations.float().mean() / solution.evaluations.max())
    return {"evaluations": spent, "seconds": seconds[True] / seconds[False]}


def compare(
    both: dict[str, Callable[[], Tensor]], problem: Problem, backward: bool, repeats: int
) -> dict[str, Any]:
    """Return evaluations, best seconds, peak bytes and last residual of the two, and ratios."""
    found: dict[str, dict[str, Any]] = {}
    for name, call in both.items():
        problem.calls[0] = 0
        with LiveBytes() as memory:
            z = step(call, backward)
        found[name] = {
            "evaluations": problem.calls[0],
            "peak_bytes": memory.peak,
            "forward_seconds": [],
            "backward_seconds": [],
        }
        with torch.no_grad():
            difference = problem.f(z, *problem.inputs) - z
            found[name]["residual"] = float(difference.norm() / z.norm())
    for _ in range(repeats):
        for name, call in both.items():
            step(call, backward, found[name])
    for figures in found.values():
        for key in ("forward_seconds", "backward_seconds"):
            figures[key] = min(figures[key], default=0.0)
    us, them = found["ours"], found["torchdeq"]
    keys = ["forward_seconds", "peak_bytes", *(["backward_seconds"] if backward else [])]
    return {**found, "ratio": {key: us[key] / them[key] for key in keys}}


def step(
    call: Callable[[], Tensor], backward: bool, figures: dict[str, Any] | None = None
) -> Tensor:
    """Solve, and differentiate the sum of squares if asked for; note the seconds."""
    with torch.set_grad_enabled(backward):
        began = time.perf_counter()
        z = call()
        between = time.perf_counter()
        if backward:
            z.square().sum().backward()
        ended = time.perf_counter()
    if figures is not None:
        figures["forward_seconds"].append(between - began)
        figures["backward_seconds"].append(ended - between)
    return z.detach()


def describe(row: dict[str, Any]) -> str:
    """Return one line on what was measured."""
    ratios = ", ".join(f"{key.split('_')[0]} {value:.2f}" for key, value in row["ratio"].items())
    spent = f"{row['ours']['evaluations']} and {row['torchdeq']['evaluations']} evaluations"
    what = f"{row['problem']:6}{row['solver']:9}{row['gradient']:9}"
    return f"{what} ours / torchdeq: {ratios} ({spent})"


def markdown(result: dict[str, Any]) -> str:
    """Return the table of ratios, ours over torchdeq's."""
    lines = [["map", "solver", "gradient", "forward", "backward", "peak bytes"], ["---"] * 6]
    for row in result["rows"]:
        keys = ("forward_seconds", "backward_seconds", "peak_bytes")
        ratios = [f"{row['ratio'][key]:.2f}" if key in row["ratio"] else "-" for key in keys]
        lines.append([row["problem"], row["solver"], row["gradient"], *ratios])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
