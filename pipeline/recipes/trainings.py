"""All trainings as text: what each is made of, takes and should reach.

`python -m pipeline.recipes` prints it. No number is typed here: settings come from the recipes,
counts from models without memory, figures from published.py or the measurements in docs/.
"""

from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from textwrap import fill

import torch

from data.files import read_json
from get.cost import count_parameters
from pipeline.recipes import RECIPES
from pipeline.recipes.architectures import Architecture
from pipeline.recipes.published import FIGURES, Figure
from pipeline.recipes.settings_train import TrainConfig
from pipeline.training.build import build_student
from pipeline.training.step_cost import image_macs

MEASUREMENTS = Path(__file__).parents[2] / "docs" / "measurements"
WIDTH = 100  # characters of a line
ELSEWHERE = {  # settings that are said in words, and those that do not change the result
    *("output_dir", "pairs", "model", "max_train_steps", "global_batch_size", "holdout_shards"),
    *("streams", "checkpointing_steps", "validation_steps", "log_steps"),
    *("feature_network", "real_images"),
}
REMARK = """\
Pairs needed: for training and held out; `python -m pipeline.make_pairs PAIRS` makes them. Published
FID: 50,000 images in one call, against CIFAR-10's test set, where it is about 2 points higher than
against the training set. FID measured here: 5,000 images in the features of a small classifier,
iterations as trained; only ratios between trainings on the same pairs mean anything.
`python -m pipeline.plan TRAINING` shows what one would take, and `python -m pipeline.train TRAINING
--help` all settings."""


def trainings() -> str:
    """Return a paragraph for every training, by the pairs it needs, and how to read them."""
    parts = []
    for recipe in RECIPES:
        of_it = {n: c for n, c in RECIPES[recipe].students.items() if c.seed == 0}
        if of_it:
            paragraphs = (paragraph(name, config, recipe) for name, config in of_it.items())
            parts.append("\n".join([heading(recipe), *paragraphs]))
    return "\n\n".join([*parts, REMARK])


def heading(recipe: str) -> str:
    """Return the pairs of a recipe in a line."""
    pairs = RECIPES[recipe].pairs
    teacher = Path(pairs.teacher)
    shown = teacher.name if teacher.is_absolute() else teacher
    return f"Pairs {Path(pairs.output_dir).name}: {pairs.num_pairs:,} of {shown}"


def paragraph(name: str, config: TrainConfig, recipe: str) -> str:
    """Return what a training is made of, takes and should reach."""
    figure, (parameters, macs) = expected(name), costs(config.model, recipe)
    work = f"{macs / 1e9:,.2f} G" if macs >= 1e9 else f"{macs / 1e6:,.2f} M"
    reach = "-" if figure.fid is None else f"{figure.fid:.2f}"
    lines = [
        f"{name}: FID {reach} ({figure.source})",
        f"{described(config.model)}; {parameters / 1e6:,.2f} M parameters, {work} MACs per image",
        f"{config.max_train_steps:,} steps of {config.global_batch_size}: "
        + (", ".join(different(config)) or "all settings are defaults"),
    ]
    indents = ("  ", "      "), ("      ", "        "), ("      ", "        ")
    return "\n".join(
        fill(line, WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)
        for line, (first, rest) in zip(lines, indents, strict=True)
    )


@cache
def costs(model: Architecture, recipe: str) -> tuple[int, int]:
    """Return parameters and multiply-accumulates per image of a shape of model."""
    config = TrainConfig(output_dir=Path(), pairs="", model=model)
    with torch.device("meta"):
        student = build_student(config, RECIPES[recipe].manifest())
    return count_parameters(student), image_macs(student)


def described(model: Architecture) -> str:
    """Return the shape of a model in words."""
    shape = ", ".join(f"{name} {value}" for name, value in asdict(model).items())
    return f"{type(model).__name__.removesuffix('Model')}: {shape}"


def different(config: TrainConfig) -> list[str]:
    """Return the settings that are not at the defaults of TrainConfig."""
    return [
        f"{f.name} {value}"
        for f in fields(config)
        if f.name not in ELSEWHERE and (value := getattr(config, f.name)) != f.default
    ]


def expected(name: str) -> Figure:
    """Return the FID that is published, or measured here."""
    if name in FIGURES:
        return FIGURES[name]
    for path in sorted(MEASUREMENTS.glob(f"*/{name}.json")):
        found = read_json(path)
        if "by_iterations" in found:
            found = found["by_iterations"][str(found["default_iterations"])]
        if "training" not in found:  # a benchmark of that name
            continue
        return Figure(found["training"]["fid"], f"measured: docs/measurements/{path.parent.name}")
    return Figure(None, "not measured")
