"""What the runs of `field.py` say: phi, the worth of a loop, and GETs against ViTs of equal cost.

A block that is iterated r times is worth r^phi blocks of their own (arXiv:2604.21106): 1 if it did
as much as r different blocks, 0 if it did no more than one. ViTs of several depths say what a
number of blocks of their own reaches; a GET is worth the depth at which that line has its figure.
Both are means over seeds, and the interval is that of all choices of as many seeds with repetition.
"""

import math
from collections.abc import Iterable
from itertools import pairwise, product, takewhile
from pathlib import Path
from statistics import mean
from typing import Any

from pipeline.jobs.plots import new_plot
from pipeline.jobs.tables import markdown as markdown_table
from pipeline.recipes.architectures import Architecture, GETModel, ViTModel

Run = dict[str, Any]
EQUAL = 0.1  # multiply-accumulates that differ by less are called equal


def blocks(model: Architecture) -> dict[str, int]:
    """Return how many blocks run once, how many are iterated, and how often."""
    if isinstance(model, GETModel):
        once = model.depth + model.coda_depth
        shape = {"once": once, "looped": model.equilibrium_depth, "times": model.iterations}
        return shape if model.equilibrium_mlp_ratio else {**shape, "mlp": 0}
    assert isinstance(model, ViTModel)
    return {"once": model.depth, "looped": 0, "times": 1}


def figure(run: Run) -> float:
    """Return the geometric mean of a run's Frechet distances in the judges."""
    return math.exp(mean(math.log(x) for x in run["judges"].values()))


def evaluated(run: Run) -> int:
    """Return how many blocks an image goes through."""
    shape = run["blocks"]
    return shape["once"] + shape["looped"] * shape["times"]


def depth_worth(line: list[tuple[int, float]], distance: float) -> float:
    """Return the depth at which a line of (depth, distance) has this distance.

    The line is straight between its points in logarithms of both, and goes on beyond its ends.
    """
    points = [(math.log(depth), math.log(d)) for depth, d in sorted(line)]
    y, pairs = math.log(distance), [*pairwise(points)]
    spans = [pair for pair in pairs if pair[1][1] <= y]  # from the first that reaches it
    (x0, y0), (x1, y1) = spans[0] if spans else pairs[-1]
    return math.exp(x0 + (x1 - x0) * (y - y0) / (y1 - y0))


def phi(blocks: dict[str, int], worth: float) -> float | None:
    """Return phi such that worth = once + looped * times^phi; None if that is not even once."""
    if worth <= blocks["once"]:
        return None
    return math.log((worth - blocks["once"]) / blocks["looped"]) / math.log(blocks["times"])


def phi_of(runs: list[Run], vits: list[Run]) -> dict[str, Any] | None:
    """Return phi of a GET's runs by the mean figures, and its interval over choices of seeds.

    The line ends at the first ViT that a deeper one does not beat. None if that is the first of
    all: then nothing has a worth in blocks.
    """
    seeds = sorted({run["seed"] for run in runs})
    by_seed = {run["seed"]: figure(run) for run in runs}
    depths: dict[int, dict[int, float]] = {}
    for vit in vits:
        depths.setdefault(evaluated(vit), {})[vit["seed"]] = figure(vit)

    better = takewhile(
        lambda two: mean(depths[two[1]].values()) < mean(depths[two[0]].values()),
        pairwise(sorted(depths)),
    )
    line = [min(depths), *(deeper for _, deeper in better)]
    if len(line) == 1:
        return None

    def of(chosen: Iterable[int]) -> float | None:
        chosen = [*chosen]
        points = [(depth, mean(depths[depth][seed] for seed in chosen)) for depth in line]
        return phi(runs[0]["blocks"], depth_worth(points, mean(by_seed[s] for s in chosen)))

    found = sorted(
        (of(chosen) for chosen in product(seeds, repeat=len(seeds))),
        key=lambda x: -math.inf if x is None else x,
    )
    return {"mean": of(seeds), "low": found[0], "high": found[-1]}


def summed_up(runs: list[Run]) -> list[dict[str, Any]]:
    """Return a row for every number of pairs and contestant, over its seeds."""
    rows = []
    for count in sorted({run["num_pairs"] for run in runs}, key=lambda n: n or math.inf):
        some = [run for run in runs if run["num_pairs"] == count]
        vits = [run for run in some if not run["blocks"]["looped"]]
        names = dict.fromkeys(run["contestant"] for run in some)
        rows += [_row([r for r in some if r["contestant"] == name], vits) for name in names]
    return rows


def _row(seeds: list[Run], vits: list[Run]) -> dict[str, Any]:
    """Sum up the seeds of a contestant, beside the ViTs of the same pairs and seeds."""
    first, ratios = seeds[0], []
    for run in seeds:
        beside = [vit for vit in vits if vit["seed"] == run["seed"]]
        equal = [vit for vit in beside if abs(vit["macs"] / run["macs"] - 1) < EQUAL]
        ratios += [figure(run) / figure(vit) for vit in equal]
    shape = first["blocks"]
    loops = shape["looped"] and shape["times"] > 1 and shape.get("mlp") != 0  # as ViTs' blocks
    return {
        **{key: first[key] for key in ("contestant", "num_pairs", "parameters", "macs", "blocks")},
        "learning_rate": first["learning_rate"],
        "steps_at_best": [best_step(run) for run in seeds],
        "distance": [figure(run) for run in seeds],
        "judges": {name: [run["judges"][name] for run in seeds] for name in first["judges"]},
        "l1_to_teacher": [run["l1_to_teacher"] for run in seeds],
        "phi": phi_of(seeds, vits) if loops and vits else None,
        "over_vit_of_equal_macs": {"mean": mean(ratios), "worst": max(ratios)} if ratios else None,
    }


def best_step(run: Run) -> int:
    """Return the step at which the run was best."""
    return min(run["curve"], key=lambda point: point["distance"])["step"]


def markdown(result: dict[str, Any]) -> str:
    """Return a table with a line per contestant and number of pairs."""
    header = [
        *("pairs", "model", "parameters", "MACs per image", "FD in the judges: mean, worst"),
        *("L1 to the teacher", "over the ViT of equal MACs: mean, worst", "phi (interval)"),
    ]
    lines = [header]
    for row in result["rows"]:
        ratio, worth = row["over_vit_of_equal_macs"], row["phi"]
        is_vit = not row["blocks"]["looped"]
        lines.append(
            [
                f"{row['num_pairs']:,}" if row["num_pairs"] else "all",
                row["contestant"],
                f"{row['parameters'] / 1e6:.2f} M",
                f"{row['macs'] / 1e6:.1f} M",
                f"{mean(row['distance']):.3f}, {max(row['distance']):.3f}",
                f"{mean(row['l1_to_teacher']):.4f}",
                "-" if is_vit or ratio is None else f"{ratio['mean']:.2f}x, {ratio['worst']:.2f}x",
                "-" if worth is None else phi_text(worth),
            ]
        )
    return markdown_table(lines)


def phi_text(worth: dict[str, float | None]) -> str:
    """Return phi and its interval; what is worth less than the blocks around its loop has none."""
    mean_, low, high = ("none" if x is None else f"{x:.2f}" for x in worth.values())
    return f"{mean_} ({low} to {high})"


def plot(path: Path, rows: list[dict[str, Any]]) -> None:
    """Draw the distance against MACs and parameters (most pairs), and against pairs."""
    counts = list(dict.fromkeys(row["num_pairs"] for row in rows))
    most = [row for row in rows if row["num_pairs"] == counts[-1]]
    vits = [row for row in most if not row["blocks"]["looped"]]
    costs = (("macs", "MACs"), ("parameters", "parameters"))
    with new_plot(path, (15, 4.6), columns=3) as (_, axes):
        for axis, (key, unit) in zip(axes[:2], costs, strict=True):
            _line(axis, [(v[key] / 1e6, v["distance"]) for v in vits], "ViT", "C0")
            for i, row in enumerate(r for r in most if r["blocks"]["looped"]):
                _line(axis, [(row[key] / 1e6, row["distance"])], row["contestant"], f"C{i + 1}")
            axis.set(xlabel=f"{unit}, millions", ylabel="FD in the judges", yscale="log")
        largest = max(*counts, 1)
        places = [count or largest * 8 for count in counts]
        for i, name in enumerate(dict.fromkeys(row["contestant"] for row in rows)):
            points = [
                (row["num_pairs"] or largest * 8, row["distance"])
                for row in rows
                if row["contestant"] == name
            ]
            style = "-" if name.startswith("GET") else "--"
            _line(axes[2], points, name, f"C{i % 10}", style)
        axes[2].set(xlabel="pairs", xscale="log", yscale="log")
        axes[2].set_xticks(places, [f"{count:,}" if count else "all" for count in counts])
        axes[2].xaxis.set_minor_formatter("")
        for axis in axes:
            axis.yaxis.set_major_formatter("{x:.3g}")
            axis.yaxis.set_minor_formatter("{x:.3g}")
            axis.legend(fontsize=7)


def _line(
    axis: Any, points: Iterable[tuple[float, list[float]]], name: str, colour: str, style: str = "-"
) -> None:
    """Draw the means of points as a line, and every seed as a dot."""
    points = sorted(points)
    axis.plot([x for x, _ in points], [mean(ys) for _, ys in points], style, color=colour)
    for x, ys in points:
        axis.plot([x] * len(ys), ys, "o", ms=3, color=colour)
    axis.plot([], [], style, marker="o", ms=3, color=colour, label=name)
