"""What a sweep of shortcuts amounts to: savings at equal quality, a table, a plot.

Times are CPU times: other work on the machine does not lengthen them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from pipeline.jobs.plots import new_plot
from pipeline.jobs.tables import markdown as markdown_table

Row = dict[str, Any]


def compare(rows: Sequence[Row], outside: float) -> None:
    """Enter how much less work every row needs than the first, the dense solve.

    Args:
        rows: Their "macs" are of one image, a figure a seed.
        outside: Multiply-accumulates of an image outside the solve.
    """
    dense = mean(rows[0]["macs"])
    for row in rows:
        row["saved"] = 1 - mean(row["macs"]) / dense
        row["saved_in_solve"] = 1 - (mean(row["macs"]) - outside) / (dense - outside)


def change(row: Row) -> float:
    """Return the loss of quality against the dense solve by the first measure, mean over seeds."""
    return mean(next(iter(row["change"].values())))


def worst_change(row: Row) -> float:
    """Return the largest loss over measures, each a mean over seeds."""
    return max(mean(changes) for changes in row["change"].values())


def best_of(rows: Sequence[Row], allowed: float) -> dict[str, Row]:
    """Return for every method the setting that saves most work at an allowed loss.

    `instead` says what each method without thresholds needs to lose no more than this one: its
    least work, in parts of this one's; absent where it cannot.
    """
    best: dict[str, Row] = {}
    for i, row in enumerate(rows):
        if i and change(row) <= allowed:
            known = best.get(row["method"])
            if known is None or row["saved"] > known["saved"]:
                best[row["method"]] = {"row": i, **_brief(row), "instead": _instead(row, rows)}
    return best


def _brief(row: Row) -> Row:
    names = (
        "method",
        "iterations",
        "tol",
        "threshold",
        "saved",
        "saved_in_solve",
        "speedup",
        "cpu_speedup",
    )
    figures = {name: row[name] for name in names}
    return {**figures, "change": change(row), "worst_change": worst_change(row)}


def _instead(row: Row, rows: Sequence[Row]) -> dict[str, float]:
    found: dict[str, float] = {}
    for other in rows:
        if other["unit"] is None and change(other) <= change(row):
            ratio = mean(other["macs"]) / mean(row["macs"])
            found[other["method"]] = min(ratio, found.get(other["method"], ratio))
    return found


def table(best: Mapping[str, Row], quality: str, form: str) -> str:
    """Return the table of the best settings.

    Args:
        best: By method, from `best_of`.
        quality: What is lost.
        form: How it is written.
    """
    heads = ["method", "setting", "MACs saved in the solve", "MACs saved per image"]
    rows = [[*heads, quality, f"{quality}, worst", "CPU time"]]
    for method, row in best.items():
        saved = [f"{row[key]:.1%}" for key in ("saved_in_solve", "saved")]
        lost = [form.format(row[key]) for key in ("change", "worst_change")]
        rows.append([method, setting(row), *saved, *lost, f"{1 / row['cpu_speedup']:.2f}x"])
    return markdown_table(rows)


def setting(row: Row) -> str:
    """Return what distinguishes a row from others of its method."""
    parts = [f"threshold {row['threshold']:g}"] if row["threshold"] else []
    parts += [f"tol {row['tol']:g}"] if row["tol"] else []
    if not parts or "fewer" in row.get("method", ""):
        parts.append(f"{row['iterations']} iterations")
    return ", ".join(parts)


def plot(path: Path, result: Mapping[str, Any], quality: str, allowed: float) -> None:
    """Draw quality against work and against time, and the work that each iteration does."""
    rows = result["rows"]
    methods = list(dict.fromkeys(row["method"] for row in rows[1:]))
    with new_plot(path, (15, 4.5), columns=3) as (_, axes):
        for method in methods:
            mine = [row for row in rows if row["method"] == method]
            form = "." if "and" in method else ".-"
            for axis, key in ((axes[0], "saved_in_solve"), (axes[1], "cpu_speedup")):
                points = sorted((row[key], change(row)) for row in mine)
                axis.plot(*zip(*points, strict=True), form, label=method)
        for axis in axes[:2]:
            axis.axhline(allowed, ls="--", c="black", lw=0.8)
            axis.set(ylabel=quality, ylim=(-1.5 * allowed, 6 * allowed))
        axes[0].set(xlabel="multiply-accumulates saved in the solve")
        axes[0].legend(fontsize=7)
        axes[1].set(xlabel="CPU time of the dense solve / CPU time")
        for unit, kept in result["kept"].items():
            threshold = list(kept)[len(kept) // 2]
            steps = range(1, len(kept[threshold]) + 1)
            axes[2].plot(steps, kept[threshold], label=f"{unit}, threshold {threshold}")
        axes[2].set(xlabel="iteration", ylabel="linear work done, of dense")
        axes[2].legend()
