"""Look at a trained GET as an equilibrium: does its map have one, how fast, for every sample?

Writes diagnosis.json and diagnosis.png: relative residual and |z| against the iteration, spectral
radius of the Jacobian at the solution, and how the evaluations to convergence spread over samples.
The FID against iterations is in evaluate.py.
"""

from pipeline import cli
from pipeline.recipes.recipe import diagnoses

if __name__ == "__main__":
    cli.check_arguments(diagnoses)


from typing import Any

import matplotlib as mpl
import torch
from torch import Tensor

from data.files import new_file, write_json
from get.equilibrium import Anderson, Broyden, Outcome, Picard, fixed_point, spectral_radius
from get.errors import InputError
from get.models import GET
from get.noise import draw
from get.sampling import random_start
from pipeline.jobs.processes import local_device
from pipeline.jobs.provenance import provenance
from pipeline.jobs.students import load_student, weights_hash
from pipeline.recipes.settings_measure import DiagnoseConfig

SOLVERS = {"picard": Picard(), "anderson": Anderson(), "broyden": Broyden()}


def main(config: DiagnoseConfig) -> None:
    """Diagnose a GET on fresh noise."""
    model = load_student(config.model, local_device())
    if not isinstance(model, GET):
        raise InputError(f"expected a GET in {config.model}, got a ViT; it iterates nothing")
    diagnosis = diagnose(model, config)
    whole = {"model": weights_hash(config.model), **diagnosis, **provenance()}
    write_json(config.output_dir / "diagnosis.json", whole)
    plot(config, diagnosis)
    last, rho = diagnosis["residual"][-1]["median"], diagnosis["spectral_radius"]["median"]
    convergence = diagnosis["convergence"]
    spent = ", ".join(f"{n} {c['evaluations']['median']:.0f}" for n, c in convergence.items())
    print(f"residual at iteration {config.iterations}: {last:.2e}; spectral radius {rho:.3f}")
    print(f"evaluations to a residual of {config.tol:g}: {spent}")
    print(
        f"diagnosis {config.output_dir / 'diagnosis.json'}, {config.output_dir / 'diagnosis.png'}"
    )


def diagnose(model: GET, config: DiagnoseConfig) -> dict[str, Any]:
    """Follow samples to their fixed points; return how they get there."""
    indices = range(config.num_images)
    shape = (model.channels, model.image_size, model.image_size)
    noise, labels = draw(config.seed, indices, shape, model.num_classes)
    z0 = random_start(model, config.seed, indices)
    with torch.no_grad():
        problem = model.problem(
            noise.to(model.device), None if labels is None else labels.to(model.device), z0
        )
        solve = {"inputs": problem.inputs, "max_steps": config.iterations}
        path = fixed_point(
            model.equilibrium_map, problem.z0, select="last", keep_iterates=True, **solve
        )
        convergence = {
            name: convergence_of(
                fixed_point(
                    model.equilibrium_map, problem.z0, solver=solver, tol=config.tol, **solve
                )
            )
            for name, solver in SOLVERS.items()
        }
    few = slice(0, min(config.num_images, 16))
    radius = spectral_radius(
        model.equilibrium_map,
        path.iterates[-1][few],
        inputs=tuple(x[few] for x in problem.inputs),
        generator=torch.Generator().manual_seed(config.seed),
    )
    sizes = torch.stack([z.flatten(1).norm(dim=1) for z in path.iterates])
    return {
        "map": model.map,
        "trained_iterations": model.iterations,
        "num_images": config.num_images,
        "seed": config.seed,
        "tol": config.tol,
        "residual": [quantiles(row) for row in path.trace],
        "size": [quantiles(row) for row in sizes],
        "spectral_radius": quantiles(radius),
        "convergence": convergence,
    }


def convergence_of(solution: Any) -> dict[str, Any]:
    """Return how a solve ended: samples per outcome, spread of the evaluations."""
    outcomes = solution.outcome.tolist()
    return {
        "outcomes": {o.name.lower(): outcomes.count(int(o)) for o in Outcome},
        "evaluations": quantiles(solution.evaluations.float()),
    }


def quantiles(values: Tensor) -> dict[str, float]:
    """Return lowest, median and highest of a row of samples."""
    return {
        "lowest": float(values.min()),
        "median": float(values.median()),
        "highest": float(values.max()),
    }


def plot(config: DiagnoseConfig, diagnosis: dict[str, Any]) -> None:
    """Draw residual and |z| against the iteration, the spread over samples shaded."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for axis, key, name in zip(
        axes, ("residual", "size"), ("relative residual", "|z|"), strict=True
    ):
        rows = diagnosis[key]
        steps = range(1, len(rows) + 1)
        axis.plot(steps, [row["median"] for row in rows], label="median")
        low, high = ([row[k] for row in rows] for k in ("lowest", "highest"))
        axis.fill_between(steps, low, high, alpha=0.3, label="all samples")
        axis.axvline(diagnosis["trained_iterations"], ls=":", c="grey", label="as trained")
        axis.set(xlabel="iteration", ylabel=name, title=f"{config.model.name}: {name}")
    axes[0].set_yscale("log")
    axes[0].axhline(config.tol, ls="--", c="black", lw=0.8, label="tolerance")
    axes[0].legend()
    with new_file(config.output_dir / "diagnosis.png") as path:
        figure.savefig(path, dpi=120, format="png")
    plt.close(figure)


if __name__ == "__main__":
    cli.run(main, diagnoses, default="digits")
