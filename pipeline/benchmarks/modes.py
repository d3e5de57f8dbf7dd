"""Every way of training a GET: FID and residual against the iterations, seconds per step.

Reads what evaluate.py measured of a recipe's students, iterates each to its fixed point, and times
their training steps alternately in this process.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch

from data.files import read_json
from data.reader import read_shard
from get.cost import in_turns
from get.errors import InputError
from get.models import GET
from pipeline.benchmarks.diagnosis import diagnose
from pipeline.benchmarks.results import BenchmarkConfig, save
from pipeline.jobs.plots import new_plot
from pipeline.jobs.students import load_student
from pipeline.jobs.tables import markdown as markdown_table
from pipeline.recipes import RECIPES
from pipeline.recipes.architectures import GETModel
from pipeline.recipes.recipe import RUNS
from pipeline.recipes.settings_measure import DiagnoseConfig
from pipeline.recipes.settings_train import TrainConfig
from pipeline.training.step import TrainingStep

SHOWN = (1, 3, 6, 12, 24)  # iterations in the table


@dataclass(frozen=True, kw_only=True)
class ModesConfig(BenchmarkConfig):
    """Compare every way of training a GET: FID and residual against iterations, time per step.

    Attributes:
        recipe: The recipe whose students are compared; they are trained and evaluated before.
        runs: Where the students' run folders are.
        pairs: Folder of the pairs they were trained on.
        evaluation: Folder of what evaluate.py wrote about them.
        unit: The student whose step is the unit of time.
        repeats: Steps of each student, of which the fastest counts.
    """

    recipe: str = "equilibria"
    runs: Path = RUNS
    pairs: Path = RUNS / "pairs" / "digits"
    evaluation: Path = RUNS / "equilibria" / "evaluation"
    unit: str = "equilibria-unrolled"
    repeats: int = 10


def main(config: ModesConfig) -> None:
    """Measure every student of the recipe; write a JSON file and a plot."""
    students = RECIPES[config.recipe].students
    models: dict[str, GET] = {}
    for name in students:
        model = load_student(config.runs / name, torch.device("cpu"))
        if not isinstance(model, GET):
            kind = type(model).__name__
            raise InputError(f"expected GETs in recipe {config.recipe}, got a {kind}: {name}")
        models[name] = model
    seconds = step_seconds(config, students, models)
    rows: dict[str, dict[str, Any]] = {}
    for name, model in models.items():
        measured = read_json(config.evaluation / f"{name}.json")["by_iterations"]
        settings = DiagnoseConfig(model=config.runs / name, output_dir=config.output_dir)
        diagnosis = diagnose(model, settings)
        rows[name] = {
            "training": describe(students[name]),
            "seconds_per_step": seconds[name],
            "fid": {k: v["training"]["fid"] for k, v in measured.items()},
            "l1_to_teacher": {k: v["l1_to_teacher"] for k, v in measured.items()},
            "residual": [row["median"] for row in diagnosis["residual"]],
            "spectral_radius": diagnosis["spectral_radius"]["median"],
            "convergence": diagnosis["convergence"],
        }
    figures = {
        "recipe": config.recipe,
        "train_steps": students[config.unit].max_train_steps,
        "global_batch_size": students[config.unit].global_batch_size,
        "unit": config.unit,
        "students": rows,
    }
    result = save(config, "modes", figures)
    plot(config.output_dir / "modes.png", result)
    print(markdown(result))


def step_seconds(
    config: ModesConfig, students: Mapping[str, TrainConfig], models: Mapping[str, GET]
) -> dict[str, float]:
    """Return the seconds of the fastest training step of every student, trained further.

    With a Jacobian penalty the step is one in which it is applied.
    """
    size = students[config.unit].global_batch_size
    batch = read_shard(config.pairs, 0).take(slice(size)).as_floats()
    steps = {}
    for name, model in models.items():
        settings, student = students[name], copy.deepcopy(model).train()
        if settings.gradient_checkpointing:
            student.enable_gradient_checkpointing()
        step = TrainingStep(replace(settings, jacobian_probability=1.0), student)
        steps[name] = partial(step, batch, 0)
    return {name: min(took.wall) for name, took in in_turns(steps, config.repeats).items()}


def describe(settings: TrainConfig) -> str:
    """Say in words how a student is trained."""
    assert isinstance(settings.model, GETModel)
    words = [] if settings.model.map == "anchored" else ["plain map"]
    if settings.gradient == "unrolled":
        words.append("unrolled")
        words += ["checkpointed"] if settings.gradient_checkpointing else []
    else:
        alone = " alone" if settings.unrolled_iterations == 0 else " after unrolled iterates"
        words.append(f"{settings.gradient} at the converged state{alone}")
    if settings.jacobian_weight:
        part = f"{settings.jacobian_probability:.0%} of steps"
        words.append(f"Jacobian penalty {settings.jacobian_weight:g} in {part}")
    return ", ".join(words)


def markdown(result: dict[str, Any]) -> str:
    """Return the table of all students."""
    unit = result["students"][result["unit"]]["seconds_per_step"]
    header = [
        "training",
        "time per step",
        *(f"FID at {k}" for k in SHOWN),
        "residual at 24",
        "spectral radius",
        "evaluations to 1e-3: Picard, Anderson, Broyden",
    ]
    rows = [
        [
            row["training"],
            f"{row['seconds_per_step'] / unit:.2f}x",
            *(f"{row['fid'][str(k)]:.1f}" for k in SHOWN),
            f"{row['residual'][23]:.1e}",
            f"{row['spectral_radius']:.2f}",
            ", ".join(map(evaluations, row["convergence"].values())),
        ]
        for row in result["students"].values()
    ]
    return markdown_table([header, *rows])


def evaluations(convergence: dict[str, Any]) -> str:
    """Return the median evaluations, and whether most samples did not converge."""
    outcomes = convergence["outcomes"]
    most = outcomes["converged"] * 2 > sum(outcomes.values())
    return f"{convergence['evaluations']['median']:.0f}{'' if most else ' (not)'}"


def plot(path: Path, result: dict[str, Any]) -> None:
    """Draw FID and residual against the iterations."""
    colours = mpl.colormaps["tab20"]
    with new_plot(path, (11, 6), columns=2) as (figure, (left, right)):
        for i, row in enumerate(result["students"].values()):
            line = {"label": row["training"], "marker": "o", "ms": 2.5, "lw": 1.2}
            line["color"] = colours(i)
            left.plot([int(k) for k in row["fid"]], list(row["fid"].values()), **line)
            right.plot(range(1, 25), row["residual"][:24], **line)
        left.set(xlabel="iterations", ylabel="FID (training images)", yscale="log")
        left.set_yticks([15, 20, 30, 50, 100, 200, 500], minor=False)
        left.minorticks_off()
        left.yaxis.set_major_formatter("{x:g}")
        right.set(xlabel="iterations", ylabel="relative residual, median", yscale="log")
        right.axhline(1e-3, ls="--", c="black", lw=0.8)
        lines, labels = left.get_legend_handles_labels()
        figure.legend(lines, labels, loc="outside lower center", ncols=2, fontsize=8)
