"""What evaluate.py measured of a recipe's models, as tables and sentences."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from data.files import read_json
from get.errors import InputError
from pipeline.jobs.tables import markdown

Model = dict[str, Any]
"""What evaluate.py measured of the teacher or of a student."""

Cell = TypeVar("Cell")


class Row(NamedTuple):
    """One line of the table: a model, at one number of iterations."""

    model: Model
    title: str
    figures: dict[str, Any]


def training_time(row: Row) -> str:
    """Return the minutes of a training; a dash if nobody knows them."""
    seconds = row.model["train_seconds"]
    return "-" if seconds is None else f"{seconds / 60:.1f} min"


def fid(row: Row) -> str:
    """Return the FID in the first feature network, and whether the model was trained on it."""
    networks = row.figures.get("networks")
    trained = networks and row.model.get("trained_on") == next(iter(networks))
    return f"{row.figures['training']['fid']:.2f}{' (trained on)' if trained else ''}"


def judged(figures: dict[str, Any]) -> str:
    """Return the Frechet distances in the feature networks that no training uses."""
    _, *others = figures["networks"].values()
    return " / ".join(f"{other['fid']:.3f}" for other in others)


def class_accuracy(row: Row) -> str:
    """Return the class accuracy; a dash for images without labels."""
    return f"{row.figures['class_accuracy']:.1%}" if "class_accuracy" in row.figures else "-"


COLUMNS: dict[str, Callable[[Row], str]] = {
    "model": lambda row: row.title,
    "parameters": lambda row: f"{row.model['parameters'] / 1e6:.2f} M",
    "MACs per image": lambda row: f"{row.figures['macs'] / 1e6:.1f} M",
    "network evaluations": lambda row: str(row.model["evaluations"]),
    "FID training": fid,
    "FID held-out": lambda row: f"{row.figures['held_out']['fid']:.2f}",
    "FD in the judges": lambda row: judged(row.figures),
    "FDr": lambda row: f"{row.figures['fdr']:.3f}",
    "KID training": lambda row: f"{row.figures['training']['kid']:.0f}",
    "precision": lambda row: f"{row.figures['training']['precision']:.3f}",
    "recall": lambda row: f"{row.figures['training']['recall']:.3f}",
    "class accuracy": class_accuracy,
    "nearest training image": lambda row: f"{row.figures['nearest_training_image']:.3f}",
    "images/s": lambda row: f"{row.figures['images_per_second']:.0f}",
    "x teacher": lambda row: f"{row.figures.get('speedup_over_teacher', 1):.1f}",
    "training time": training_time,
}
BY_ITERATIONS: dict[str, Callable[[str, dict[str, Any]], str]] = {
    "iterations": lambda iterations, _: iterations,
    "FID training": lambda _, figures: f"{figures['training']['fid']:.2f}",
    "FID held-out": lambda _, figures: f"{figures['held_out']['fid']:.2f}",
    "FD in the judges": lambda _, figures: judged(figures),
    "FDr": lambda _, figures: f"{figures['fdr']:.3f}",
    "L1 to the teacher": lambda _, figures: f"{figures['l1_to_teacher']:.4f}",
    "x teacher": lambda _, figures: f"{figures['speedup_over_teacher']:.1f}",
}
OF_JUDGES = {"FD in the judges", "FDr"}  # columns of evaluations with several feature networks


def read_models(folder: Path) -> list[Model]:
    """Return the measurements in a folder: the teacher, students that iterate, then the others.

    Raises:
        InputError: If there are none, or they were not made on the same images.
    """
    models = [read_json(path) for path in sorted(folder.glob("*.json"))]
    if not models:
        raise InputError(f"expected measurements (*.json) in {folder}, got none; run evaluate.py")
    common = {json.dumps({**m["inputs"], "weights": ""}) for m in models}
    if len(common) > 1:
        raise InputError(
            f"expected measurements of one evaluation in {folder}, got {len(common)} different "
            "ones; delete the old files there and run evaluate.py again"
        )
    return sorted(models, key=lambda m: (m["kind"] != "teacher", not iterates(m), m["parameters"]))


def iterates(model: Model) -> bool:
    """Say whether a model was measured at several numbers of iterations."""
    return "default_iterations" in model


def has_judges(figures: dict[str, Any]) -> bool:
    """Say whether figures are of several feature networks."""
    return len(figures.get("networks", ())) > 1


def shown(columns: dict[str, Cell], figures: dict[str, Any]) -> dict[str, Cell]:
    """Return the columns for which there are figures."""
    judged = has_judges(figures)
    return {title: cell for title, cell in columns.items() if judged or title not in OF_JUDGES}


def quality(figures: dict[str, Any]) -> float:
    """Return what models are compared by, lower is better: FDr, or FID in the only network."""
    return figures["fdr"] if has_judges(figures) else figures["training"]["fid"]


def best_iterations(model: Model) -> str:
    """Return the number of iterations, as a key, with the lowest FDr or FID."""
    return min(model["by_iterations"], key=lambda k: quality(model["by_iterations"][k]))


def rows_of(model: Model) -> list[Row]:
    """Return a model's lines: one that iterates as it was trained and at its lowest FID."""
    if not iterates(model):
        return [Row(model, model["name"], model)]
    default, best = str(model["default_iterations"]), best_iterations(model)
    rows = []
    for iterations in sorted({default, best}, key=int):
        note = " (as trained)" if iterations == default else " (best)"
        title = f"{model['name']}, {iterations} iterations{note}"
        rows.append(Row(model, title, model["by_iterations"][iterations]))
    return rows


def table_rows(models: list[Model]) -> list[list[str]]:
    """Return the cells of the table, the header first."""
    rows = [row for model in models for row in rows_of(model)]
    columns = shown(COLUMNS, rows[0].figures)
    return [list(columns), *([cell(row) for cell in columns.values()] for row in rows)]


def summary(models: list[Model]) -> str:
    """Return the table of a recipe and what its figures mean: what documents show."""
    return "\n\n".join([markdown(table_rows(models)), *remarks(models)])


def remarks(models: list[Model]) -> list[str]:
    """Say what the figures are and how students that iterate compare with the others."""
    first, figures = models[0], rows_of(models[0])[0].figures
    sizes = {split: figures[split]["real"] for split in ("training", "held_out")}
    lines = [
        f"FID, KID, precision and recall compare {first['inputs']['num_images']:,} images with "
        f"{sizes['training']:,} real training images (and {sizes['held_out']:,} held-out ones) in "
        "the features of a small classifier trained on "
        f"{first['inputs']['real_images']}: only ratios between rows mean anything, and the "
        "held-out column is higher because it has fewer images. Nearest training image: mean "
        "root-mean-square pixel distance; "
        f"{figures['nearest_training_image_of_held_out']:.3f} for the real held-out images. "
        f"Measured on {hardware(first)}, commit {first['commit']}, one seed."
    ]
    measure = "FID"
    if has_judges(figures):
        measure, networks = "FDr", figures["networks"]
        first_name, *judges = networks
        of_real = " / ".join(f"{network['fid_of_real']:.2f}" for network in networks.values())
        lines.append(
            f"FID is in the features of {first_name}, which training may use; the judges are "
            f"networks that none uses: {', '.join(judges)}. FDr is the mean over all "
            f"{len(networks)} of the Frechet distance from the training images, divided by that of "
            f"the {sizes['held_out']} held-out real ones ({of_real}). These are few, and neither "
            "networks nor models have seen them, so below 1 is possible."
        )
    others = [model for model in models if not iterates(model)]
    for model in filter(iterates, models):
        best = best_iterations(model)
        reached = quality(model["by_iterations"][best])
        ratios = [
            f"{reached / quality(other):.2f}x that of {other['name']} "
            f"({other['parameters'] / model['parameters']:.1f}x its parameters)"
            for other in others
        ]
        if ratios:
            lines.append(
                f"{measure} of {model['name']} at {best} iterations is {', '.join(ratios)}."
            )
    return lines


def at_every_number_of_iterations(models: list[Model]) -> list[tuple[str, list[list[str]]]]:
    """Return, of every model that iterates, a title and the cells at every number measured."""
    parts = []
    for model in filter(iterates, models):
        measured = model["by_iterations"]
        columns = shown(BY_ITERATIONS, next(iter(measured.values())))
        rows = [
            [cell(iterations, figures) for cell in columns.values()]
            for iterations, figures in measured.items()
        ]
        parts.append((f"{model['name']} by iterations", [list(columns), *rows]))
    return parts


def hardware(model: Model) -> str:
    """Return what the figures were measured on."""
    h = model["hardware"]
    return ", ".join(h["gpus"]) if h["gpus"] else f"{h['cores']} CPU cores ({h['cpu']})"
