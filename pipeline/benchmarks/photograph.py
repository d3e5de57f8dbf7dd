"""A network that is a picture: an equilibrium perceptron from coordinates to colours, fitted here.

This is the implicit-representation task of DeltaDEQ, on photographs that come with scikit-image.
After the fit, every way of saving work (`shortcuts.py`) solves for all pixels, and the peak
signal-to-noise ratio says what that costs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import log10, pi
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from data.real.photos import Photograph, photograph
from get.cost import in_turns, median_ratio
from get.equilibrium import Apply, DeltaMemory, Phantom, direct, fixed_point
from get.models.get import Problem
from pipeline import cli
from pipeline.benchmarks.results import BenchmarkConfig, save
from pipeline.benchmarks.savings import best_of, change, compare, plot, table
from pipeline.benchmarks.shortcuts import (
    Cell,
    Grid,
    kept_by_iteration,
    make_all,
    profile,
    take_times,
    work_outside,
)

ALLOWED = 0.2  # dB that a saving may cost
NEEDED = 0.01  # dB below the dense solve, at which fewer iterations count as its equal


@dataclass(frozen=True, kw_only=True)
class PhotographConfig(BenchmarkConfig):
    """Fit equilibrium networks to photographs; compare ways of solving for their pixels.

    Attributes:
        photographs: What is fitted; the full grid is `--photographs astronaut chelsea coffee`.
        seeds: Of initial weights and batches, a fit each.
        width: Dimension of the state.
        frequencies: Random frequencies of the coordinates' sines and cosines.
        scale: Their standard deviation, in half waves per half side of the picture.
        steps: Training steps.
        train_pixels: Pixels a step.
        train_iterations: Iterations before those that are differentiated.
        learning_rate: At the start; it falls to zero as a cosine does.
        grid: The settings of the solves.
        batch_size: Pixels at once.
        turns: Turns in which the times are taken.
        wide_factor: The best settings also solve for single pixels, one after the other, by a
            network that is so many times wider and has the same states.
        single_pixels: How many.
    """

    photographs: tuple[Photograph, ...] = ("chelsea",)
    seeds: tuple[int, ...] = (1, 2, 3)
    width: int = 128
    frequencies: int = 64
    scale: float = 4.0
    steps: int = 1200
    train_pixels: int = 2048
    train_iterations: int = 12
    learning_rate: float = 3e-3
    grid: Grid = Grid(  # noqa: RUF009  frozen
        iterations=30,
        fewer=(5, 6, 7, 8, 9, 10, 12, 16, 20),
        tolerances=(0.1, 0.05, 0.03, 0.02, 0.01, 1e-3),
        thresholds=(0.01, 0.03, 0.05, 0.07, 0.09, 0.12, 0.15),
        units=("element", "token"),
        mixed=((0.05, 0.05), (0.05, 0.1)),
        shorter=((12, 0.07), (12, 0.09), (14, 0.09)),
    )
    batch_size: int = 4096
    turns: int = 5
    wide_factor: int = 32
    single_pixels: int = 4


class Picture(nn.Module):
    """An equilibrium perceptron: z = sin(W z + U g(p) + b), colour = V z + c.

    g(p) are sines and cosines of the coordinates p in [-1, 1] at random frequencies (Fourier
    features, arXiv:2006.10739); an equilibrium with a sine is what (Implicit)^2 (Huang, Bai,
    Kolter, NeurIPS 2021) calls DEQ-Siren.
    """

    frequencies: Tensor

    def __init__(self, config: PhotographConfig, generator: torch.Generator) -> None:
        """Draw weights and frequencies."""
        super().__init__()
        count, width = config.frequencies, config.width
        drawn = config.scale * pi * torch.randn(count, 2, generator=generator)
        self.register_buffer("frequencies", drawn)
        self.inject = nn.Linear(2 * count, width)
        self.state = nn.Linear(width, width, bias=False)
        self.colour = nn.Linear(width, 3)
        with torch.no_grad():
            for layer, gain in ((self.inject, 3.0), (self.state, 0.9), (self.colour, 1.0)):
                bound = gain / layer.in_features**0.5
                for parameter in layer.parameters():
                    parameter.uniform_(-bound, bound, generator=generator)

    def problem(self, points: Float[Tensor, "pixels 2"], labels: Tensor | None = None) -> Problem:
        """Return the start, zeros, and what the coordinates inject."""
        waves = points @ self.frequencies.T
        u = self.inject(torch.cat([waves.sin(), waves.cos()], dim=1))
        return Problem(torch.zeros_like(u), (u,))

    def equilibrium_map(self, z: Tensor, u: Tensor, apply: Apply | None = None) -> Tensor:
        """Return f(z)."""
        return torch.sin((apply or direct)(self.state, z) + u)

    def image_of(self, z: Float[Tensor, "pixels width"]) -> Float[Tensor, "pixels 3"]:
        """Return colours, nominally in [-1, 1]."""
        return self.colour(z)


def widened(config: PhotographConfig, model: Picture, factor: int) -> Picture:
    """Return the network with every value of its state several times: the same colours."""
    wide = Picture(replace(config, width=factor * config.width), torch.Generator())
    again = torch.arange(config.width).repeat(factor)
    wide.frequencies.copy_(model.frequencies)
    wide.inject.weight.copy_(model.inject.weight[again])
    wide.inject.bias.copy_(model.inject.bias[again])
    wide.state.weight.copy_(model.state.weight[again][:, again] / factor)
    wide.colour.weight.copy_(model.colour.weight[:, again] / factor)
    wide.colour.bias.copy_(model.colour.bias)
    return wide.requires_grad_(False)


def one_by_one(model: Picture, cell: Cell, points: Tensor, delta: DeltaMemory | None) -> None:
    """Solve for every pixel alone."""
    for point in points.split(1):
        cell.make(model, point, None, delta)


def time_of_single(
    config: PhotographConfig, model: Picture, cells: Sequence[Cell], points: Tensor
) -> list[dict[str, Any]]:
    """Return how much faster than the first cell each one is for single pixels."""
    wide = widened(config, model, config.wide_factor)
    some = points[:: max(1, len(points) // config.single_pixels)]
    calls = {i: partial(one_by_one, wide, c, some, c.memory()) for i, c in enumerate(cells)}
    seconds = in_turns(calls, config.turns)
    return [
        {
            **asdict(cell),
            "seconds": min(seconds[i].wall) / len(some),
            "speedup": median_ratio(seconds[0].wall, seconds[i].wall),
            "cpu_speedup": median_ratio(seconds[0].cpu, seconds[i].cpu),
        }
        for i, cell in enumerate(cells)
    ]


def pixels_of(name: Photograph) -> tuple[Tensor, Tensor]:
    """Return coordinates in [-1, 1] and colours of all pixels, row by row."""
    picture = photograph(name)
    sides = [torch.linspace(-1, 1, side) for side in picture.shape[1:]]
    points = torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1)
    return points.flatten(0, 1), picture.flatten(1).T.contiguous()


def fit(config: PhotographConfig, points: Tensor, colours: Tensor, seed: int) -> Picture:
    """Train on random pixels; the gradient goes through three steps after the solve."""
    generator = torch.Generator().manual_seed(seed)
    model = Picture(config, generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    with cli.progress_bar(config.steps, f"fit, seed {seed}", "step") as progress:
        for _ in range(config.steps):
            chosen = torch.randint(len(points), (config.train_pixels,), generator=generator)
            problem = model.problem(points[chosen])
            z = fixed_point(
                model.equilibrium_map,
                problem.z0,
                inputs=problem.inputs,
                gradient=Phantom(steps=3, damping=1.0),
                max_steps=config.train_iterations,
                select="last",
            ).z
            loss = (model.image_of(z) - colours[chosen]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            progress.update(1)
    return model.requires_grad_(False)


def psnr(made: Tensor, colours: Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB."""
    return -10 * log10(float(((made.clamp(-1, 1) - colours) / 2).double().square().mean()))


def main(config: PhotographConfig) -> None:
    """Fit and measure; write photograph.json and photograph.png."""
    cells = config.grid.cells()
    rows: list[dict[str, Any]] = [
        {**asdict(cell), "macs": [], "evaluations": [], "psnr": {}} for cell in cells
    ]
    fitted: list[tuple[Picture, Tensor]] = []
    for name in config.photographs:
        points, colours = pixels_of(name)
        for seed in config.seeds:
            model = fit(config, points, colours, seed)
            fitted.append((model, points[: config.batch_size]))
            with torch.no_grad():
                for cell, row in zip(cells, rows, strict=True):
                    made, macs, evaluations = make_all(model, cell, points, None, config.batch_size)
                    row["macs"].append(macs)
                    row["evaluations"].append(evaluations)
                    row["psnr"].setdefault(name, []).append(psnr(made, colours))
    model, some = fitted[-1]
    with torch.no_grad():
        take_times(model, cells, rows, some, None, config.turns)
        compare(rows, work_outside(model, some, None))
        for row in rows:
            row["change"] = {
                name: [then - now for now, then in zip(found, rows[0]["psnr"][name], strict=True)]
                for name, found in row["psnr"].items()
            }
        best = best_of(rows, ALLOWED)
        for row in best.values():
            row["profile"] = profile(model, cells[row["row"]], some, None)
        kept = kept_by_iteration(model, cells, some, None)
        chosen = [cells[0], *(cells[row["row"]] for row in best.values())]
        single = time_of_single(config, model, chosen, some)
    enough = [r for r in rows if r["method"] == "fewer iterations" and change(r) <= NEEDED]
    figures = {
        **{key: value for key, value in asdict(config).items() if key != "output_dir"},
        "threads": torch.get_num_threads(),
        "rows": rows,
        "best": best,
        "kept": kept,
        "single": single,
        "iterations_needed": min((r["iterations"] for r in enough), default=config.grid.iterations),
    }
    found = save(config, "photograph", figures)
    plot(config.output_dir / "photograph.png", found, "PSNR, dB below the dense solve", ALLOWED)
    print(markdown(found))


def markdown(result: Mapping[str, Any]) -> str:
    """Return the table of what each method saves where 0.2 dB are lost at most."""
    return table(result["best"], "dB lost", "{:.2f}")
