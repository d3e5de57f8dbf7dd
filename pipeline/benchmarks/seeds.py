"""Trainings compared over their seeds: the FID of every seed, and the first training's over each.

Reads what evaluate.py measured of a comparison's students (recipes/comparisons.py). A student that
iterates counts with the iterations it was trained with; its FID at other numbers is in the JSON.
A ratio below 1 favours the first training; the worst is that of the seed where it is largest.
"""

from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib import ticker

from data.files import read_json
from get.errors import InputError
from pipeline.benchmarks.results import BenchmarkConfig, save
from pipeline.jobs.plots import new_plot
from pipeline.jobs.tables import markdown as markdown_table
from pipeline.recipes import RECIPES
from pipeline.recipes.comparisons import COMPARISONS, SEEDS, Training
from pipeline.recipes.recipe import RUNS, evaluations

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class SeedsConfig(BenchmarkConfig):
    """Sum up the trainings of comparisons (recipes/comparisons.py) over their seeds.

    Attributes:
        name: What the JSON file and the plot are called.
        comparisons: Their recipes; the students are trained and evaluated before.
        runs: Folder that holds RECIPE/evaluation, which evaluate.py wrote.
    """

    name: str
    comparisons: tuple[str, ...]
    runs: Path = RUNS


def main(config: SeedsConfig) -> None:
    """Sum up every comparison; write a JSON file and a plot."""
    comparisons = {name: summed_up(config, name) for name in config.comparisons}
    result = save(config, config.name, {"seeds": list(SEEDS), "comparisons": comparisons})
    plot(config.output_dir / f"{config.name}.png", result)
    print(markdown(result))


def summed_up(config: SeedsConfig, comparison: str) -> dict[str, Any]:
    """Return a row per training, with the ratio of the first's FID to its own."""
    folder = config.runs / comparison / "evaluation"
    measured = {
        training: [read_json(folder / f"{name}.json") for name in training.seeds()]
        for training in COMPARISONS[comparison]
    }
    check(measured, comparison)
    rows = {training.name: row(training, seeds) for training, seeds in measured.items()}
    first = next(iter(rows.values()))["fid"]
    for other in rows.values():
        fid = other["fid"]
        ratios = [a / b for a, b in zip(first["seeds"], fid["seeds"], strict=True)]
        other["first_beside_it"] = {"means": first["mean"] / fid["mean"], "worst": max(ratios)}
    return {"images": evaluations(RECIPES)[comparison].real_images, "trainings": rows}


def check(measured: dict[Training, list[Row]], comparison: str) -> None:
    """Check that all students were trained as the recipe says and evaluated alike.

    Raises:
        InputError: If one was trained for another number of steps or evaluated on other inputs.
    """
    inputs = {**next(iter(measured.values()))[0]["inputs"], "weights": ""}
    for training, seeds in measured.items():
        steps = training.config.max_train_steps
        for name, m in zip(training.seeds(), seeds, strict=True):
            if m["train_steps"] != steps:
                raise InputError(
                    f"expected {name} trained for {steps} steps, got {m['train_steps']}; train it "
                    "with --overwrite_output_dir and evaluate again"
                )
            if {**m["inputs"], "weights": ""} != inputs:
                raise InputError(
                    f"expected one evaluation of all students of {comparison}, got another of "
                    f"{name}; run evaluate.py again"
                )


def row(training: Training, measured: list[Row]) -> Row:
    """Return what is reported of one training."""
    figures = [as_trained(m) for m in measured]
    fids = [f["training"]["fid"] for f in figures]
    iterations = measured[0].get("by_iterations", {})
    return {
        "title": training.title,
        "equal": training.equal,
        "parameters": measured[0]["parameters"],
        "macs": figures[0]["macs"],
        "steps": measured[0]["train_steps"],
        "seconds": [m["train_seconds"] for m in measured],
        "l1_to_teacher": [f["l1_to_teacher"] for f in figures],
        "fid": {"seeds": fids, "mean": mean(fids), "min": min(fids), "max": max(fids)},
        "fid_by_iterations": {
            k: [m["by_iterations"][k]["training"]["fid"] for m in measured] for k in iterations
        },
    }


def as_trained(measured: Row) -> Row:
    """Return the figures of a student, at the iterations it was trained with if it iterates."""
    if "by_iterations" not in measured:
        return measured
    return measured["by_iterations"][str(measured["default_iterations"])]


def markdown(result: dict[str, Any]) -> str:
    """Return the table of all comparisons."""
    comparisons = result["comparisons"].values()
    first = next(iter(next(iter(comparisons))["trainings"].values()))["title"]
    seeds = ", ".join(map(str, result["seeds"]))
    header = [
        *("images", "training", "parameters", "MACs per image", "steps", "training time"),
        *("L1 to the teacher", f"FID, seeds {seeds}", "mean FID"),
        f"FID of {first} / its FID: means, worst seed",
    ]
    rows = [header]
    for comparison in comparisons:
        for training in comparison["trainings"].values():
            fid, ratio = training["fid"], training["first_beside_it"]
            rows.append(
                [
                    comparison["images"],
                    training["title"],
                    f"{training['parameters'] / 1e6:.2f} M",
                    f"{training['macs'] / 1e6:.1f} M",
                    f"{training['steps']:,}",
                    f"{mean(training['seconds']) / 60:.1f} min",
                    f"{mean(training['l1_to_teacher']):.4f}",
                    ", ".join(f"{one:.1f}" for one in fid["seeds"]),
                    f"{fid['mean']:.1f}",
                    "-"
                    if training["title"] == first
                    else f"{ratio['means']:.2f}x, {ratio['worst']:.2f}x",
                ]
            )
    return markdown_table(rows)


def plot(path: Path, result: dict[str, Any]) -> None:
    """Draw every seed's FID: against parameters where they differ, else a column per training."""
    comparisons = result["comparisons"].values()
    size = (5.5 * len(comparisons), 4.2)
    with new_plot(path, size, columns=len(comparisons)) as (_, axes):
        for axis, comparison in zip(axes, comparisons, strict=True):
            rows = list(comparison["trainings"].values())
            different = len({training["parameters"] for training in rows}) > 1
            (against_parameters if different else side_by_side)(axis, rows)
            axis.set(title=comparison["images"], ylabel="FID (training images)", yscale="log")
            axis.yaxis.set_minor_locator(ticker.LogLocator(subs=(2, 3, 5, 7)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter("{x:g}")


def side_by_side(axis: Any, rows: list[Row]) -> None:
    """Draw a column per training: a dot per seed, a bar at the mean."""
    for i, training in enumerate(rows):
        fid = training["fid"]
        axis.plot([i] * len(fid["seeds"]), fid["seeds"], "o", color=f"C{i}")
        axis.plot([i - 0.2, i + 0.2], [fid["mean"]] * 2, color=f"C{i}")
    axis.set_xticks(range(len(rows)), [row["title"].replace(", ", ",\n") for row in rows])


def against_parameters(axis: Any, rows: list[Row]) -> None:
    """Draw the first training as a level, the others as a line for equal steps and equal time."""
    first, *others = rows

    def dots(training: Row, marker: str, **style: Any) -> None:
        seeds = training["fid"]["seeds"]
        axis.plot([training["parameters"] / 1e6] * len(seeds), seeds, marker, **style)

    axis.axhline(first["fid"]["mean"], color="C2", ls="--", lw=1)
    dots(first, "*", ms=10, color="C2", label=first["title"])
    for i, equal in enumerate(("steps", "time")):
        some = [training for training in others if training["equal"] == equal]
        sizes = [training["parameters"] / 1e6 for training in some]
        means = [training["fid"]["mean"] for training in some]
        axis.plot(sizes, means, color=f"C{i}", label=f"ViT, equal {equal}")
        for training in some:
            dots(training, "o", ms=4, color=f"C{i}")
    axis.set(xlabel="parameters, millions")
    axis.legend()
