"""The settings, by name, of the commands that measure and show students."""

from pathlib import Path

from pipeline.recipes.recipe import EMBEDDED, Recipe, Recipes, students
from pipeline.recipes.settings_measure import (
    DemoConfig,
    DiagnoseConfig,
    EvaluateConfig,
    FidConfig,
    ReportConfig,
)


def fids(recipes: Recipes) -> dict[str, FidConfig]:
    """Return the settings of fid.py by student."""
    return {
        name: _fid(recipe, config.output_dir)
        for recipe in recipes.values()
        for name, config in recipe.students.items()
    }


def _fid(recipe: Recipe, run: Path) -> FidConfig:
    networks, references = ("inception-v3-compat",), recipe.references
    if (evaluate := recipe.evaluate) is not None:
        networks, real = tuple(map(str, evaluate.feature_networks)), evaluate.real_images
        references = (f"{real}-train", f"{real}-val") if real in EMBEDDED else (real,)
    folder = run / "fid"
    return FidConfig(
        models=(str(run),), references=references, feature_networks=networks, output_dir=folder
    )


def diagnoses(recipes: Recipes) -> dict[str, DiagnoseConfig]:
    """Return the settings of diagnose.py by student."""
    return {
        name: DiagnoseConfig(model=config.output_dir, output_dir=config.output_dir / "diagnosis")
        for name, config in students(recipes).items()
    }


def demos(recipes: Recipes) -> dict[str, DemoConfig]:
    """Return the settings of demo.py by student."""
    return {
        name: DemoConfig(model=config.output_dir, teacher=recipe.pairs.teacher)
        for recipe in recipes.values()
        for name, config in recipe.students.items()
    }


def evaluations(recipes: Recipes) -> dict[str, EvaluateConfig]:
    """Return the settings of evaluate.py by recipe."""
    return {name: r.evaluate for name, r in recipes.items() if r.evaluate is not None}


def reports(recipes: Recipes) -> dict[str, ReportConfig]:
    """Return the settings of report.py by recipe."""
    return {
        name: ReportConfig(recipe=name, evaluation=config.output_dir, runs=config.runs)
        for name, config in evaluations(recipes).items()
    }
