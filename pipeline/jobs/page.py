"""The page of a report: one HTML file that holds all it shows, for light and dark screens.

Plots are matplotlib's SVG whose black is the colour of the text around it.
"""

import base64
import io
import json
import re
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data.files import read_json
from pipeline.jobs.comparison import (
    Model,
    at_every_number_of_iterations,
    has_judges,
    iterates,
    quality,
    remarks,
    table_rows,
)

COLOURS = ("#3b82f6", "#f97316", "#14b8a6", "#d946ef", "#84cc16", "#94a3b8")
POINTS = 400  # of a curve at most
STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; white-space: nowrap; }
tbody tr:hover { background: var(--soft); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr));
  gap: 1rem; }
figure { margin: 0; } figcaption { font-size: .85rem; opacity: .8; }
svg { width: 100%; height: auto; }
img { width: min(100%, 56rem); image-rendering: pixelated; background: #fff; }
progress { width: 100%; } pre { overflow-x: auto; font-size: .8rem; }
"""


class Training(NamedTuple):
    """What a run folder says of a training.

    Attributes:
        name: Of its folder.
        steps: Done and logged.
        total: Steps in all.
        values: What was logged, by name: steps and values.
        record: run.json.
    """

    name: str
    steps: int
    total: int
    values: dict[str, list[tuple[int, float]]]
    record: dict[str, Any]


def read_training(run: Path) -> Training | None:
    """Read a run folder, also while it is written to; None if no training has begun there."""
    if not (run / "run.json").is_file():
        return None
    record = read_json(run / "run.json")
    values, steps = dict[str, list[tuple[int, float]]](), 0
    files = [f for f in (run / "metrics.jsonl", run / "speed.jsonl") if f.is_file()]
    for line in (line for file in files for line in file.read_text().splitlines()):
        try:
            logged = json.loads(line)
        except ValueError:  # the last line, half written
            continue
        steps = max(steps, step := logged.pop("step"))
        for name, value in logged.items():
            values.setdefault(name, []).append((step, value))
    return Training(run.name, steps, record["config"]["max_train_steps"], values, record)


def html_page(
    recipe: str,
    models: list[Model],
    trainings: Sequence[Training],
    picture: Path,
    reload: int | None = None,
    sections: Sequence[str] = (),
) -> str:
    """Return the page.

    Args:
        recipe: Its name.
        models: What evaluate.py measured; none before the first evaluation.
        trainings: Of the students.
        picture: Images of all models, if the file exists.
        reload: Seconds after which the page loads itself again; None leaves it as it is.
        sections: What else there is to show: Markdown headings, paragraphs and tables.
    """
    title = escape(f"{recipe}: one call against many")
    parts = [f"<h1>{title}</h1>"]
    if reload is not None:
        parts += [progress(training) for training in trainings]
    if models:
        parts += [html_table(table_rows(models)), *(f"<p>{escape(x)}</p>" for x in remarks(models))]
    if picture.is_file():
        data = base64.b64encode(picture.read_bytes()).decode()
        parts.append(
            "<h2>The same noise through every model</h2>"
            f'<img alt="Images of every model" src="data:image/png;base64,{data}">'
        )
    parts.append(f'<h2>Curves</h2><div class="plots">{"".join(plots(models, trainings))}</div>')
    for heading, rows in at_every_number_of_iterations(models):
        parts.append(f"<h2>{escape(heading)}</h2>{html_table(rows)}")
    parts += map(html_of, sections)
    parts.append("<h2>Settings and versions</h2>")
    for training in trainings:
        shown = escape(json.dumps(training.record, indent=2))
        name = escape(training.name)
        parts.append(f"<details><summary>{name}</summary><pre>{shown}</pre></details>")
    refresh = "" if reload is None else f'<meta http-equiv="refresh" content="{reload}">'
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{refresh}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def html_of(part: str) -> str:
    """Return a Markdown heading, table or paragraph."""
    if part.startswith("## "):
        return f"<h2>{escape(part[3:])}</h2>"
    if part.startswith("|"):
        rows = [line.strip("| ").split(" | ") for line in part.splitlines()]
        return html_table([rows[0], *rows[2:]])  # without the line of dashes
    return f"<p>{escape(part)}</p>"


def html_table(rows: Sequence[Sequence[str]]) -> str:
    """Return a table, its header first; it scrolls where the screen is narrow."""
    header, *body = (
        "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row)
        for tag, row in zip(["th", *["td"] * (len(rows) - 1)], rows, strict=True)
    )
    lines = "".join(f"<tr>{row}</tr>" for row in body)
    return (
        f'<div class="wide"><table><thead><tr>{header}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def progress(training: Training) -> str:
    """Return how far a training is."""
    return (
        f"<p>{escape(training.name)}: step {training.steps:,} of {training.total:,}"
        f'<progress max="{training.total}" value="{training.steps}"></progress></p>'
    )


# ---------------------------------------------------------------- plots


def plots(models: list[Model], trainings: Sequence[Training]) -> list[str]:
    """Return the figures for which there are numbers."""
    found = []
    if any(map(iterates, models)):
        measure = "FDr" if has_judges(rows_of_dial(models)[0]) else "FID"
        found += [
            figure(f"{measure} against iterations (lines without points: models that do not "
                   "iterate)", lambda axes: dial(axes, models, measure)),
            figure(f"{measure} against multiply-accumulates of an image",
                   lambda axes: cost(axes, models, measure)),
        ]  # fmt: skip
    for name, caption, log in (
        ("validation_fid", "Small FID of held-out pairs against steps", True),
        ("validation_l1", "L1 distance from held-out pairs against steps", False),
        ("loss", "Loss of the last iterate against steps", True),
        ("residual", "Relative residual after the last iteration against steps", True),
        ("grad_norm", "Norm of the gradient against steps", True),
        ("images_per_second", "Images per second against steps", False),
    ):
        curves = {t.name: t.values[name] for t in trainings if name in t.values}
        if curves:
            found.append(figure(caption, lambda axes, c=curves, y=log: lines(axes, c, y)))
    return found


def rows_of_dial(models: list[Model]) -> list[dict[str, Any]]:
    """Return the figures of the first model that iterates, one for every number of iterations."""
    return list(next(filter(iterates, models))["by_iterations"].values())


def dial(axes: Axes, models: list[Model], measure: str) -> None:
    """Draw quality against the number of iterations."""
    for model, colour in zip(models, _colours(len(models)), strict=True):
        if iterates(model):
            points = {int(k): quality(x) for k, x in model["by_iterations"].items()}
            axes.plot([*points], [*points.values()], "o-", color=colour, label=model["name"])
            axes.set_xticks([*points], [str(k) for k in points])
        else:
            axes.axhline(quality(model), color=colour, label=model["name"], linestyle="--")
    axes.set_xscale("log", base=2)
    axes.minorticks_off()
    ticks = sorted({int(k) for m in models if iterates(m) for k in m["by_iterations"]})
    axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.set_xlabel("iterations")
    axes.set_ylabel(measure)


def cost(axes: Axes, models: list[Model], measure: str) -> None:
    """Draw quality against the cost of an image."""
    for model, colour in zip(models, _colours(len(models)), strict=True):
        rows = list(model["by_iterations"].values()) if iterates(model) else [model]
        axes.plot(
            [row["macs"] / 1e6 for row in rows],
            [quality(row) for row in rows],
            "o-",
            color=colour,
            label=model["name"],
        )
    axes.set_xscale("log")
    axes.set_xlabel("million multiply-accumulates")
    axes.set_ylabel(measure)


def lines(axes: Axes, curves: dict[str, list[tuple[int, float]]], log: bool) -> None:
    """Draw logged values against steps."""
    for (name, points), colour in zip(curves.items(), _colours(len(curves)), strict=True):
        thin = points[:: max(1, len(points) // POINTS)]
        axes.plot(*zip(*thin, strict=True), color=colour, label=name, linewidth=1)
    if log and all(value > 0 for points in curves.values() for _, value in points):
        axes.set_yscale("log")
    axes.set_xlabel("step")


def figure(caption: str, draw: Callable[[Axes], None]) -> str:
    """Return an SVG with its caption."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "get", "font.size": 9}):
        plot = Figure(figsize=(4.6, 3), layout="constrained")
        axes = plot.subplots()
        draw(axes)
        axes.grid(alpha=0.2)
        axes.patch.set_alpha(0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(framealpha=0, fontsize=8)
        plot.patch.set_alpha(0)
        file = io.StringIO()
        plot.savefig(file, format="svg", metadata={"Date": None})
    svg = file.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = svg.replace("#000000", "currentColor")
    svg = re.sub(r'<text style="', '<text style="fill: currentColor; ', svg)
    return f'<figure role="img" aria-label="{escape(caption)}">{svg}<figcaption>{escape(caption)}</figcaption></figure>'  # noqa: E501


def _colours(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]
