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
    """

    settings: BenchmarkConfig
    main: Callable[[Any], None]
    tables: Mapping[str, Callable[[dict[str, Any]], str]]


ANALYSES = {
    "collapse": Analysis(CollapseConfig(), collapse.main, collapse_tables.TABLES),
    "nngp": Analysis(NngpConfig(), nngp.main, nngp_tables.TABLES),
}


def tables_of_analyses(names: Set[str], folder: Path) -> dict[str, str]:
    """Return the tables of these names that are of analyses, from folder/NAME/NAME.json."""
    found: dict[str, str] = {}
    for name, analysis in ANALYSES.items():
        if shown := sorted(names & analysis.tables.keys()):
            result = read_json(folder / name / f"{name}.json")
            found |= {table: analysis.tables[table](result) for table in shown}
    return found
