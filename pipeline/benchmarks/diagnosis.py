"""A GET as an equilibrium: how its samples get to their fixed points, and how fast."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from get.equilibrium import (
    Anderson,
    Broyden,
    Outcome,
    Picard,
    Solution,
    fixed_point,
    spectral_radius,
)
from get.models import GET
from get.noise import draw
from get.sampling import random_start
from pipeline.recipes.settings_measure import DiagnoseConfig

SOLVERS = {"picard": Picard(), "anderson": Anderson(), "broyden": Broyden()}
RADII = 16  # samples whose spectral radius is estimated


def diagnose(model: GET, config: DiagnoseConfig) -> dict[str, Any]:
    """Iterate fresh noise to its fixed points; return the figures, ready for JSON."""
    indices = range(config.num_images)
    noise, labels = draw(config.seed, indices, model.image_shape, model.num_classes)
    z0 = random_start(model, config.seed, indices)
    with torch.no_grad():
        problem = model.problem(
            noise.to(model.device), None if labels is None else labels.to(model.device), z0
        )
        solve = partial(
            fixed_point,
            model.equilibrium_map,
            problem.z0,
            inputs=problem.inputs,
            max_steps=config.iterations,
        )
        # Plain iteration, followed to the end; then every solver, stopped at the tolerance.
        path = solve(select="last", keep_iterates=True)
        convergence = {
            name: convergence_of(solve(solver=solver, tol=config.tol))
            for name, solver in SOLVERS.items()
        }
    radius = spectral_radius(
        model.equilibrium_map,
        path.iterates[-1][:RADII],
        inputs=tuple(x[:RADII] for x in problem.inputs),
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


def convergence_of(solution: Solution) -> dict[str, Any]:
    """Return how a solve ended: samples per outcome, spread of the evaluations."""
    outcomes = solution.outcome.tolist()
    return {
        "outcomes": {o.name.lower(): outcomes.count(int(o)) for o in Outcome},
        "evaluations": quantiles(solution.evaluations.float()),
    }


def quantiles(values: Tensor) -> dict[str, float]:
    """Return lowest, median and highest value over the samples."""
    return {
        "lowest": float(values.min()),
        "median": float(values.median()),
        "highest": float(values.max()),
    }
