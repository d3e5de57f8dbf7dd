"""What collapse.json says, as tables and as a plot."""

from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

from pipeline.jobs.plots import new_plot
from pipeline.jobs.tables import markdown

Result = dict[str, Any]

TITLES = {
    "accuracy": "accuracy",
    "minority_accuracy": "minority accuracy",
    "nc1": "NC1",
    "nc2": "NC2 of the means",
    "nc3": "NC3",
    "minority_cosine": "minority cosine",
}
STYLES = ("-", "--", ":")
CURVES = ("training_accuracy", "nc1", "nc2", "nc3", "minority_cosine", "residual")


def of_figures(result: Result) -> str:
    """Return the figures of every cell and kind at the end of training."""
    lines = [["images", "network", "no errors from step", *TITLES.values(), "residual"]]
    for row in result["rows"]:
        terminal = [step for step in row["terminal_steps"] if step is not None]
        never = len(row["terminal_steps"]) - len(terminal)
        first = f"{min(terminal)} to {max(terminal)}" if terminal else "never"
        cells = [_with_interval(row["figures"].get(name), name) for name in TITLES]
        residual = row["figures"].get("residual")
        lines.append(
            [
                row["cell"],
                row["kind"],
                first + (f" ({never} never)" if never and terminal else ""),
                *cells,
                "-" if residual is None else f"{residual['mean']:.1e}",
            ]
        )
    return markdown(lines)


def of_differences(result: Result) -> str:
    """Return the differences between an equilibrium network and its twin, over seeds."""
    lines = [["images", "network", "seeds", *TITLES.values()]]
    for row in result["rows"]:
        if "differences" in row:
            cells = []
            for name in TITLES:
                found = row["differences"].get(name)
                better = f", {found['better']}" if found else ""
                cells.append(_with_interval(found, name, "+") + better)
            lines.append([row["cell"], row["kind"], str(len(row["seeds"])), *cells])
    return markdown(lines)


def _with_interval(found: dict[str, Any] | None, name: str, sign: str = "") -> str:
    if found is None:
        return "-"
    form = f"{sign}.1%" if name.endswith("accuracy") else f"{sign}.3f"
    half = "" if found["half"] is None else f" ± {found['half']:{form.lstrip('+')}}"
    return f"{found['mean']:{form}}{half}"


TABLES: dict[str, Callable[[Result], str]] = {
    "collapse-figures": of_figures,
    "collapse-differences": of_differences,
}


def summary(result: Result) -> str:
    """Return all tables, for a terminal."""
    return "\n\n".join(table(result) for table in TABLES.values())


def plot(path: Path, result: Result) -> None:
    """Draw the course of the figures, mean over seeds and their range."""
    runs = result["runs"]
    cells = list(dict.fromkeys(run["cell"] for run in runs))
    kinds = list(dict.fromkeys(run["kind"] for run in runs))
    with new_plot(path, (3.6 * len(CURVES), 4.2), columns=len(CURVES)) as (_, axes):
        for axis, name in zip(axes, CURVES, strict=True):
            for i, cell in enumerate(cells):
                for kind, style in zip(kinds, STYLES, strict=False):
                    same = [run for run in runs if (run["cell"], run["kind"]) == (cell, kind)]
                    _line(axis, same, name, f"{cell}, {kind}", style, f"C{i}")
            scale = "log" if name in ("nc1", "residual") else "linear"
            axis.set(xlabel="step", title=name.replace("_", " "), yscale=scale)
        axes[0].legend(fontsize=6)


def _line(axis: Any, runs: list[Any], name: str, label: str, style: str, colour: str) -> None:
    """Draw a figure of several trainings: their mean as a line, their range shaded."""
    curves = [[p[name] for p in run["curve"]] for run in runs if name in run["curve"][0]]
    if curves:
        steps = [point["step"] for point in runs[0]["curve"]]
        values = list(zip(*curves, strict=True))
        axis.plot(steps, [mean(v) for v in values], style, c=colour, label=label)
        axis.fill_between(
            steps, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.12
        )
