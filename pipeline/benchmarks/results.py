"""The results of a benchmark: a JSON file that says where and with what it was measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.files import read_json, write_json
from pipeline.jobs.provenance import provenance
from pipeline.recipes.recipe import RUNS
from pipeline.recipes.settings_make import positive


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What every benchmark has.

    Attributes:
        output_dir: Where the JSON file and the plot go.
    """

    output_dir: Path = RUNS / "benchmarks"

    def __post_init__(self) -> None:
        """Refuse numbers below 1."""
        for name, value in vars(self).items():
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, int) and not isinstance(number, bool):
                    positive(**{name: number})


def save(config: BenchmarkConfig, name: str, figures: Mapping[str, Any]) -> dict[str, Any]:
    """Write NAME.json; return it as a reader of that file gets it."""
    path = config.output_dir / f"{name}.json"
    write_json(path, {**figures, **provenance()})
    print(f"{name} {path}")
    return read_json(path)
