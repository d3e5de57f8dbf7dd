"""Memory of one training step against the iterations, for every way of differentiating a GET.

Bytes of tensors, counted exactly (get/cost.py): those kept for the backward pass, and the most
alive at once, including what a checkpoint recomputes. Weights and gradient buffers are left out.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from get.equilibrium import (
    Anderson,
    Broyden,
    Gradient,
    Implicit,
    Phantom,
    Picard,
    Reversible,
    Unrolled,
)
from get.errors import InputError
from get.losses import IterateLoss
from get.models import GET, Equilibrium, build
from pipeline import cli
from pipeline.benchmarks.one_step import Counts, count_step, random_pairs
from pipeline.benchmarks.results import BenchmarkConfig, save
from pipeline.jobs.plots import new_plot
from pipeline.jobs.tables import markdown as markdown_table
from pipeline.recipes.settings_train import TrainConfig

Mode = tuple[bool, Gradient | None]
"""Whether blocks are recomputed, and the gradient of the solution (None: loss on every iterate)."""


def modes(iterations: int) -> dict[str, Mode]:
    """Return every way of differentiating; an implicit one makes this many backward iterations."""
    solve = {"max_steps": iterations, "tol": 0.0}
    return {
        "unrolled": (False, None),
        "checkpointed": (True, None),
        "phantom": (False, Phantom(steps=5, damping=0.5)),
        "phantom, checkpointed": (True, Phantom(steps=5, damping=0.5, checkpoint=True)),
        "implicit": (False, Implicit(solver=Picard(), **solve)),
        "implicit, Anderson": (False, Implicit(solver=Anderson(), **solve)),
        "implicit, Broyden": (False, Implicit(solver=Broyden(), **solve)),
        "reversible": (False, Unrolled(reverse=True)),
    }


@dataclass(frozen=True, kw_only=True)
class MemoryConfig(BenchmarkConfig):
    """Measure the memory of a training step for every way of differentiating a GET.

    Attributes:
        size: A published size of GET.
        image_size: Side of the images.
        batch_size: Samples per step.
        iterations: Numbers of iterations, of the forward and of the implicit backward solve.
    """

    size: str = "GET-S/2"
    image_size: int = 32
    batch_size: int = 2
    iterations: tuple[int, ...] = (1, 6, 12, 24, 48)


def main(config: MemoryConfig) -> None:
    """Measure every mode at every number of iterations; write a JSON file and a plot."""
    model = build(config.size, image_size=config.image_size)
    if not isinstance(model, GET):
        raise InputError(f"expected a size of GET, got {config.size}; a ViT does not iterate")
    names = list(modes(1))
    found: dict[str, dict[int, dict[str, int]]] = {name: {} for name in names}
    with cli.progress_bar(len(names) * sum(config.iterations), "memory", "iteration") as bar:
        for name in names:
            for count in config.iterations:
                counts = step_memory(model, config, count, modes(count)[name])
                found[name][count] = {"kept": counts.kept, "peak": counts.peak}
                bar.update(count)
    most = max(config.iterations)
    unrolled = found["unrolled"][most]["peak"]
    tokens, width = model.state_shape
    figures = {
        "size": config.size,
        "image_size": config.image_size,
        "batch_size": config.batch_size,
        "state_bytes": config.batch_size * tokens * width * 4,
        "equilibrium_parameter_bytes": sum(
            p.numel() * 4 for p in model.equilibrium_blocks.parameters()
        ),
        "bytes": found,
        "peak_saved_at_most_iterations": {
            name: 1 - found[name][most]["peak"] / unrolled for name in names
        },
    }
    result = save(config, "memory", figures)
    plot(config.output_dir / "memory.png", result)
    print(markdown(result))


def step_memory(model: GET, config: MemoryConfig, count: int, mode: Mode) -> Counts:
    """Count one training step.

    Unrolled modes have a loss on every iterate, as GET is trained; the others on the solution.
    """
    model.gradient_checkpointing, gradient = mode
    equilibrium = None
    if gradient is not None:
        solver = gradient.solver if isinstance(gradient, Implicit) else Picard()
        if isinstance(gradient, Unrolled):
            solver = Reversible()
        equilibrium = Equilibrium(gradient=gradient, solver=solver, max_steps=count, tol=0.0)
    iterations = 0 if equilibrium else count
    objective = IterateLoss(model, iterations=iterations, equilibrium=equilibrium)
    settings = TrainConfig(output_dir=config.output_dir, pairs="")
    return count_step(objective, settings, random_pairs(model, config.batch_size))


def markdown(result: dict[str, Any]) -> str:
    """Return the table: MiB kept, MiB at the peak, and the part of the peak that is saved."""
    counts = list(result["bytes"]["unrolled"])
    rows = [["gradient", *(f"{k} iterations" for k in counts), f"peak saved at {counts[-1]}"]]
    for name, row in result["bytes"].items():
        cells = [f"{row[k]['kept'] / 2**20:.0f} / {row[k]['peak'] / 2**20:.0f}" for k in counts]
        saved = result["peak_saved_at_most_iterations"][name]
        rows.append([name, *cells, f"{saved:.1%}" if name != "unrolled" else "-"])
    return markdown_table(rows)


def plot(path: Path, result: dict[str, Any]) -> None:
    """Draw the peaks against the iterations."""
    with new_plot(path, (6, 4)) as (_, (axis,)):
        for name, row in result["bytes"].items():
            peaks = [v["peak"] / 2**20 for v in row.values()]
            axis.plot([int(k) for k in row], peaks, "o-", label=name, ms=3)
        side = result["image_size"]
        axis.set(
            xlabel="iterations",
            ylabel="peak MiB of one training step",
            title=f"{result['size']}, batch {result['batch_size']}, {side}x{side}",
            yscale="log",
        )
        axis.legend(fontsize=8)
