"""Every way of training a GET side by side: FID and residual against iterations, seconds a step.

Reads what evaluate.py measured of the recipe's students, follows each to its fixed point, and times
their training steps in turn in this process.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch

from data.files import new_file, read_json, write_json
from data.reader import read_shard
from get.errors import InputError
from get.losses import IterateLoss
from get.models import GET
from pipeline.diagnose import diagnose
from pipeline.jobs.provenance import provenance
from pipeline.jobs.students import load_student
from pipeline.recipes import RECIPES, STUDENTS
from pipeline.recipes.settings_make import positive
from pipeline.recipes.settings_measure import DiagnoseConfig
from pipeline.recipes.settings_train import TrainConfig
from pipeline.training.build import training_module

SHOWN = (1, 3, 6, 12, 24)  # iterations in the table


@dataclass(frozen=True, kw_only=True)
class ModesConfig:
    """Compare every way of training a GET: FID and residual against iterations, time a step.

    Attributes:
        recipe: The recipe whose students are compared; they are trained and evaluated before.
        runs: Where the students' run folders are.
        pairs: Folder of the pairs they were trained on.
        evaluation: Folder of what evaluate.py wrote of them.
        output_dir: Where modes.json, modes.md and modes.png go.
        reference: The student whose step is the unit of time.
        repeats: Steps of each student, in turn, of which the best time counts.
    """

    recipe: str
    runs: Path
    pairs: Path
    evaluation: Path
    output_dir: Path
    reference: str
    repeats: int = 10

    def __post_init__(self) -> None:
        """Refuse numbers below 1."""
        positive(repeats=self.repeats)


def main(config: ModesConfig) -> None:
    """Measure every student of the recipe; write a JSON, a table and a plot."""
    names = list(RECIPES[config.recipe].students)
    models: dict[str, GET] = {}
    for name in names:
        model = load_student(config.runs / name, torch.device("cpu"))
        if not isinstance(model, GET):
            raise InputError(f"expected GETs in recipe {config.recipe}, got a ViT: {name}")
        models[name] = model
    seconds = step_seconds(config, models)
    rows: dict[str, dict[str, Any]] = {}
    for name, model in models.items():
        measured = read_json(config.evaluation / f"{name}.json")["by_iterations"]
        settings = DiagnoseConfig(model=config.runs / name, output_dir=config.output_dir)
        diagnosis = diagnose(model, settings)
        rows[name] = {
            "training": describe(STUDENTS[name]),
            "seconds_per_step": seconds[name],
            "fid": {k: v["training"]["fid"] for k, v in measured.items()},
            "l1_to_teacher": {k: v["l1_to_teacher"] for k, v in measured.items()},
            "residual": [row["median"] for row in diagnosis["residual"]],
            "spectral_radius": diagnosis["spectral_radius"]["median"],
            "convergence": diagnosis["convergence"],
        }
    result = {
        "recipe": config.recipe,
        "train_steps": STUDENTS[names[0]].max_train_steps,
        "global_batch_size": STUDENTS[names[0]].global_batch_size,
        "step_of": config.reference,
        "students": rows,
        **provenance(),
    }
    write_json(config.output_dir / "modes.json", result)
    table = markdown(result)
    with new_file(config.output_dir / "modes.md") as path:
        path.write_text(table + "\n")
    plot(config, rows)
    print(table)
    print(f"modes {config.output_dir / 'modes.json'}, {config.output_dir / 'modes.png'}")


def step_seconds(config: ModesConfig, models: dict[str, GET]) -> dict[str, float]:
    """Return the best seconds of a training step of every trained student, timed in turn."""
    modules: dict[str, tuple[TrainConfig, IterateLoss]] = {}
    for name, model in models.items():
        train = STUDENTS[name]
        model.train()
        if train.gradient_checkpointing:
            model.enable_gradient_checkpointing()
        modules[name] = train, training_module(train, model)
    size = STUDENTS[config.reference].global_batch_size
    pairs = read_shard(config.pairs, 0).take(slice(size)).as_floats()
    best = dict.fromkeys(models, float("inf"))
    for _ in range(config.repeats):
        for name, (train, module) in modules.items():
            began = time.perf_counter()
            draws = train.jacobian_draws if train.jacobian_weight else 0
            found = module(pairs.noise, pairs.labels, pairs.images, penalty_draws=draws)
            found.total(train.iterate_decay, train.jacobian_weight).backward()
            best[name] = min(best[name], time.perf_counter() - began)
    for model in models.values():
        model.zero_grad()
        model.eval()
    return best


def describe(train: TrainConfig) -> str:
    """Say in words how a student is trained."""
    iterates = train.unrolled_iterations
    said = [] if train.model.map == "anchored" else ["plain map"]  # pyrefly: ignore
    if train.gradient == "unrolled":
        said.append("unrolled" + (", checkpointed" if train.gradient_checkpointing else ""))
    else:
        alone = " alone" if iterates == 0 else " after unrolled iterates"
        said.append(f"{train.gradient} at the converged state{alone}")
    if train.jacobian_weight:
        share = f"{train.jacobian_probability:.0%} of steps"
        said.append(f"Jacobian penalty {train.jacobian_weight:g} in {share}")
    return ", ".join(said)


def markdown(result: dict[str, Any]) -> str:
    """Return the table of all students."""
    reference = result["students"][result["step_of"]]["seconds_per_step"]
    header = [
        "training",
        "time a step",
        *(f"FID at {k}" for k in SHOWN),
        "residual at 24",
        "spectral radius",
        "evaluations to 1e-3: Picard, Anderson, Broyden",
    ]
    lines = [header, ["---"] * len(header)]
    for row in result["students"].values():
        spent = [
            f"{c['evaluations']['median']:.0f}"
            + ("" if c["outcomes"]["converged"] * 2 > sum(c["outcomes"].values()) else " (not)")
            for c in row["convergence"].values()
        ]
        lines.append(
            [
                row["training"],
                f"{row['seconds_per_step'] / reference:.2f}x",
                *(f"{row['fid'][str(k)]:.1f}" for k in SHOWN),
                f"{row['residual'][23]:.1e}",
                f"{row['spectral_radius']:.2f}",
                ", ".join(spent),
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plot(config: ModesConfig, rows: dict[str, dict[str, Any]]) -> None:
    """Draw FID and residual against the iterations."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 6), layout="constrained")
    colours = plt.get_cmap("tab20")
    for i, row in enumerate(rows.values()):
        line = {"label": row["training"], "marker": "o", "ms": 2.5, "lw": 1.2, "color": colours(i)}
        axes[0].plot([int(k) for k in row["fid"]], list(row["fid"].values()), **line)
        axes[1].plot(range(1, 25), row["residual"][:24], **line)
    axes[0].set(xlabel="iterations", ylabel="FID (training images)", yscale="log")
    axes[0].set_yticks([15, 20, 30, 50, 100, 200, 500], minor=False)
    axes[0].minorticks_off()
    axes[0].yaxis.set_major_formatter("{x:g}")
    axes[1].set(xlabel="iterations", ylabel="relative residual, median", yscale="log")
    axes[1].axhline(1e-3, ls="--", c="black", lw=0.8)
    lines, labels = axes[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=2, fontsize=8)
    with new_file(config.output_dir / "modes.png") as path:
        figure.savefig(path, dpi=130, format="png")
    plt.close(figure)
