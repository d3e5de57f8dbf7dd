"""Trainings side by side over their seeds: FID of every seed, and the first's FID beside each.

Reads what evaluate.py measured of a comparison's students (comparisons.py). GETs count with the
iterations they were trained with; their FID at the others is in the JSON. A ratio below 1 is for
the first training; the worst is that of the seed where it does least well.
"""

from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib as mpl

from data.files import new_file, read_json, write_json
from get.errors import InputError
from pipeline.jobs.provenance import provenance
from pipeline.recipes import COMPARISONS, EVALUATIONS
from pipeline.recipes.comparisons import SEEDS, Training
from pipeline.recipes.settings_train import TrainConfig

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class SeedsConfig:
    """Sum up the trainings of a comparison (comparisons.py) over their seeds.

    Attributes:
        name: What the JSON, the table and the plot are called.
        comparisons: Their recipes; the students are trained and evaluated before.
        runs: Where evaluate.py wrote of them: RECIPE/evaluation in this folder.
        output_dir: Where JSON, table and plot go.
    """

    name: str
    comparisons: tuple[str, ...]
    runs: Path
    output_dir: Path


def main(config: SeedsConfig) -> None:
    """Sum up every comparison; write a JSON, a table and a plot."""
    found = {name: summed_up(config, name) for name in config.comparisons}
    result = {"seeds": list(SEEDS), "comparisons": found, **provenance()}
    write_json(config.output_dir / f"{config.name}.json", result)
    table = markdown(result)
    with new_file(config.output_dir / f"{config.name}.md") as path:
        path.write_text(table + "\n")
    plot(config, found)
    print(table)
    print(f"{config.name} {config.output_dir / config.name}.json, .md, .png")


def summed_up(config: SeedsConfig, comparison: str) -> dict[str, Any]:
    """Return a row a training, with the first's FID beside its own."""
    folder = config.runs / comparison / "evaluation"
    measured = {
        training: [read_json(folder / f"{name}.json") for name in training.seeds()]
        for training in COMPARISONS[comparison]
    }
    check([m for some in measured.values() for m in some], comparison)
    rows = {training.name: row(training, some) for training, some in measured.items()}
    first = next(iter(rows.values()))["fid"]
    for other in rows.values():
        fid = other["fid"]
        ratios = [a / b for a, b in zip(first["seeds"], fid["seeds"], strict=True)]
        other["first_beside_it"] = {"means": first["mean"] / fid["mean"], "worst": max(ratios)}
    return {"images": EVALUATIONS[comparison].real_images, "trainings": rows}


def check(measured: list[Row], comparison: str) -> None:
    """Refuse measurements of other runs or of different evaluations.

    Raises:
        InputError: Then.
    """
    settings: list[TrainConfig] = [
        config for t in COMPARISONS[comparison] for config in t.seeds().values()
    ]
    for config, m in zip(settings, measured, strict=True):
        name, steps = config.output_dir.name, config.max_train_steps
        if m["train_steps"] != steps:
            raise InputError(
                f"expected {name} trained for {steps} steps, got {m['train_steps']}; train it with "
                "--overwrite_output_dir and evaluate again"
            )
        if {**m["of"], "weights": ""} != {**measured[0]["of"], "weights": ""}:
            raise InputError(
                f"expected one evaluation of all students of {comparison}, got another of {name}; "
                "run evaluate.py again"
            )


def row(training: Training, measured: list[Row]) -> Row:
    """Return what is told of one training."""
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
    """Return the figures of a ViT, or of a GET at the iterations it was trained with."""
    if "by_iterations" not in measured:
        return measured
    return measured["by_iterations"][str(measured["default_iterations"])]


def markdown(result: dict[str, Any]) -> str:
    """Return the table of all comparisons."""
    comparisons = result["comparisons"].values()
    first = next(iter(next(iter(comparisons))["trainings"].values()))["title"]
    seeds = ", ".join(map(str, result["seeds"]))
    header = [
        *("images", "training", "parameters", "MACs an image", "steps", "training time"),
        *("L1 to the teacher", f"FID, seeds {seeds}", "mean FID"),
        f"FID of {first} / its FID: means, worst seed",
    ]
    lines = [header, ["---"] * len(header)]
    for comparison in comparisons:
        for told in comparison["trainings"].values():
            fid, beside = told["fid"], told["first_beside_it"]
            lines.append(
                [
                    comparison["images"],
                    told["title"],
                    f"{told['parameters'] / 1e6:.2f} M",
                    f"{told['macs'] / 1e6:.1f} M",
                    f"{told['steps']:,}",
                    f"{mean(told['seconds']) / 60:.1f} min",
                    f"{mean(told['l1_to_teacher']):.4f}",
                    ", ".join(f"{one:.1f}" for one in fid["seeds"]),
                    f"{fid['mean']:.1f}",
                    "-"
                    if told["title"] == first
                    else f"{beside['means']:.2f}x, {beside['worst']:.2f}x",
                ]
            )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plot(config: SeedsConfig, found: dict[str, dict[str, Any]]) -> None:
    """Draw every seed's FID: against parameters where they differ, else a column a training."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib import ticker

    size = (5.5 * len(found), 4.2)
    figure, axes = plt.subplots(1, len(found), figsize=size, layout="constrained", squeeze=False)
    for axis, comparison in zip(axes[0], found.values(), strict=True):
        rows = list(comparison["trainings"].values())
        sizes = len({told["parameters"] for told in rows}) > 1
        (against_parameters if sizes else side_by_side)(axis, rows)
        axis.set(title=comparison["images"], ylabel="FID (training images)", yscale="log")
        axis.yaxis.set_minor_locator(ticker.LogLocator(subs=(2, 3, 5, 7)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:g}")
    with new_file(config.output_dir / f"{config.name}.png") as path:
        figure.savefig(path, dpi=130, format="png")
    plt.close(figure)


def side_by_side(axis: Any, rows: list[Row]) -> None:
    """Draw a column a training: a dot a seed, a bar at the mean."""
    for i, told in enumerate(rows):
        axis.plot([i] * len(SEEDS), told["fid"]["seeds"], "o", color=f"C{i}")
        axis.plot([i - 0.2, i + 0.2], [told["fid"]["mean"]] * 2, color=f"C{i}")
    axis.set_xticks(range(len(rows)), [told["title"].replace(", ", ",\n") for told in rows])


def against_parameters(axis: Any, rows: list[Row]) -> None:
    """Draw the first training as a level, the others as a line for equal steps and equal time."""
    first, *others = rows
    millions = first["parameters"] / 1e6
    axis.axhline(first["fid"]["mean"], color="C2", ls="--", lw=1)
    axis.plot(
        [millions] * len(SEEDS), first["fid"]["seeds"], "*", ms=10, color="C2", label=first["title"]
    )
    for i, equal in enumerate(("steps", "time")):
        some = [told for told in others if told["equal"] == equal]
        x = [told["parameters"] / 1e6 for told in some]
        axis.plot(
            x, [told["fid"]["mean"] for told in some], color=f"C{i}", label=f"ViT, equal {equal}"
        )
        for at, told in zip(x, some, strict=True):
            axis.plot([at] * len(SEEDS), told["fid"]["seeds"], "o", ms=4, color=f"C{i}")
    axis.set(xlabel="parameters, millions")
    axis.legend()
