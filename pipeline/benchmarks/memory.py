"""Memory of one training step against the iterations, for every way of differentiating a GET.

Bytes of tensors, counted exactly (get/cost.py): those kept for the backward pass, and the most
alive at once in the whole step, what a checkpoint recomputes and gradients included. Weights and
their gradient buffers exist before and are left out.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch

from data.files import new_file, read_json, write_json
from get.cost import LiveBytes
from get.equilibrium import Anderson, Broyden, Implicit, Phantom, Picard
from get.errors import InputError
from get.losses import IterateLoss
from get.models import GET, Equilibrium, build
from pipeline import cli
from pipeline.jobs.provenance import provenance
from pipeline.recipes.settings_make import positive

Mode = tuple[bool, Phantom | Implicit | None]  # gradient checkpointing, how the solution is


def modes(iterations: int) -> dict[str, Mode]:
    """Return every way of differentiating, with so many iterations of the backward solve too."""
    solve = {"max_steps": iterations, "tol": 0.0}
    return {
        "unrolled": (False, None),
        "checkpointed": (True, None),
        "phantom": (False, Phantom(steps=5, damping=0.5)),
        "phantom, checkpointed": (True, Phantom(steps=5, damping=0.5, checkpoint=True)),
        "implicit": (False, Implicit(solver=Picard(), **solve)),
        "implicit, Anderson": (False, Implicit(solver=Anderson(), **solve)),
        "implicit, Broyden": (False, Implicit(solver=Broyden(), **solve)),
    }


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """Measure the memory of training against iterations, a line a way of differentiating.

    Attributes:
        output_dir: Where memory.json and memory.png go.
        size: A published size of GET.
        image_size: Side of the images.
        batch_size: Samples a step.
        iterations: Numbers of iterations, of the forward and of the implicit backward solve.
    """

    output_dir: Path
    size: str = "GET-S/2"
    image_size: int = 32
    batch_size: int = 2
    iterations: tuple[int, ...] = (1, 6, 12, 24, 48)

    def __post_init__(self) -> None:
        """Refuse numbers below 1."""
        positive(image_size=self.image_size, batch_size=self.batch_size)
        for count in self.iterations:
            positive(iterations=count)


def main(config: MemoryConfig) -> None:
    """Measure every mode at every number of iterations; write a JSON and a plot."""
    model = build(config.size, image_size=config.image_size)
    if not isinstance(model, GET):
        raise InputError(f"expected a size of GET, got {config.size}; a ViT iterates nothing")
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    names = list(modes(1))
    found: dict[str, dict[int, dict[str, int]]] = {name: {} for name in names}
    bar = cli.progress_bar(len(names) * sum(config.iterations), "memory", "iteration")
    with bar:
        for name in names:
            for count in config.iterations:
                found[name][count] = step_memory(model, config, count, modes(count)[name])
                bar.update(count)
    most = max(config.iterations)
    unrolled = found["unrolled"][most]["peak"]
    state = config.batch_size * model.tokens * model.width * 4
    result: dict[str, Any] = {
        "size": config.size,
        "image_size": config.image_size,
        "batch_size": config.batch_size,
        "state_bytes": state,
        "equilibrium_parameter_bytes": sum(
            p.numel() * 4 for p in model.equilibrium_blocks.parameters()
        ),
        "bytes": found,
        "peak_saved_at_most_iterations": {
            name: 1 - found[name][most]["peak"] / unrolled for name in names
        },
        **provenance(),
    }
    write_json(config.output_dir / "memory.json", result)
    plot(config, found)
    print(markdown(read_json(config.output_dir / "memory.json")))
    print(f"memory {config.output_dir / 'memory.json'}, {config.output_dir / 'memory.png'}")


def step_memory(model: GET, config: MemoryConfig, count: int, mode: Mode) -> dict[str, int]:
    """Return bytes kept for, and peak including, the backward pass of one training step.

    Unrolled modes have a loss on every iterate, as GET is trained; the others on the solution.
    """
    model.gradient_checkpointing, gradient = mode
    equilibrium = None
    if gradient is not None:
        solver = gradient.solver if isinstance(gradient, Implicit) else Picard()
        equilibrium = Equilibrium(gradient=gradient, solver=solver, max_steps=count, tol=0.0)
    module = IterateLoss(model, iterations=0 if equilibrium else count, equilibrium=equilibrium)
    shape = (config.batch_size, model.channels, config.image_size, config.image_size)
    generator = torch.Generator().manual_seed(0)
    noise, target = (torch.randn(shape, generator=generator) for _ in range(2))
    with LiveBytes() as memory:
        loss = module(noise, None, target).iterates.sum()
        kept = memory.now
        loss.backward()
    return {"kept": kept, "peak": memory.peak}


def markdown(result: dict[str, Any]) -> str:
    """Return the table: bytes kept, then the peak, in MiB, and what is saved."""
    counts = list(result["bytes"]["unrolled"])
    lines = [
        ["gradient", *(f"{k} iterations" for k in counts), f"peak saved at {counts[-1]}"],
        ["---"] * (len(counts) + 2),
    ]
    for name, row in result["bytes"].items():
        cells = [f"{row[k]['kept'] / 2**20:.0f} / {row[k]['peak'] / 2**20:.0f}" for k in counts]
        saved = result["peak_saved_at_most_iterations"][name]
        lines.append([name, *cells, f"{saved:.1%}" if name != "unrolled" else "-"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plot(config: MemoryConfig, found: dict[str, dict[int, dict[str, int]]]) -> None:
    """Draw the peaks against the iterations."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, row in found.items():
        axis.plot(list(row), [v["peak"] / 2**20 for v in row.values()], "o-", label=name, ms=3)
    axis.set(
        xlabel="iterations",
        ylabel="peak MiB of one training step",
        title=f"{config.size}, batch {config.batch_size}, {config.image_size}x{config.image_size}",
        yscale="log",
    )
    axis.legend(fontsize=8)
    with new_file(config.output_dir / "memory.png") as path:
        figure.savefig(path, dpi=120, format="png")
    plt.close(figure)
