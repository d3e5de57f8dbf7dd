"""The analyses by name: their settings, what runs them, and the tables that documents show.

collapse  neural collapse in equilibrium and explicit classifiers (docs/collapse.md)
nngp      equilibrium networks of infinite width as Gaussian processes (docs/gaussian_process.md)
"""

from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any, NamedTuple

from data.files import read_json
from pipeline.analyses import collapse, collapse_tables, nngp, nngp_tables
from pipeline.analyses.settings import CollapseConfig, NngpConfig
from pipeline.benchmarks.results import BenchmarkConfig


class Analysis(NamedTuple):
    """One analysis.

    Attributes:
        settings: Its settings; the command line changes them.
        main: Runs with these settings and writes NAME.json and a plot.
        tables: Tables that documents show, by name: each made of what NAME.json says.
        title: Of a section of a report.
        page: The document that explains the tables.
    """

    settings: BenchmarkConfig
    main: Callable[[Any], None]
    tables: Mapping[str, Callable[[dict[str, Any]], str]]
    title: str
    page: str


ANALYSES = {
    "collapse": Analysis(
        CollapseConfig(),
        collapse.main,
        collapse_tables.TABLES,
        "Neural collapse",
        "docs/collapse.md",
    ),
    "nngp": Analysis(
        NngpConfig(),
        nngp.main,
        nngp_tables.TABLES,
        "Wide equilibria as Gaussian processes",
        "docs/gaussian_process.md",
    ),
}


def tables_of_analyses(names: Set[str], folder: Path) -> dict[str, str]:
    """Return the tables of these names that are of analyses, from folder/NAME/NAME.json."""
    found: dict[str, str] = {}
    for name, analysis in ANALYSES.items():
        if shown := sorted(names & analysis.tables.keys()):
            result = read_json(folder / name / f"{name}.json")
            found |= {table: analysis.tables[table](result) for table in shown}
    return found


def sections_of_analyses(folder: Path | None) -> list[str]:
    """Return the titled tables of every analysis that has results in a folder."""
    parts = []
    for name, analysis in ANALYSES.items():
        if folder is not None and (path := folder / name / f"{name}.json").exists():
            result = read_json(path)
            parts += [f"## {analysis.title}", f"{analysis.page} says what the figures mean."]
            parts += [table(result) for table in analysis.tables.values()]
    return parts
