"""The results of a benchmark: a JSON file that says where and with what it was measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.files import read_json, write_json
from get.errors import InputError
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


def check_common(folder: Path, ours: Mapping[str, str]) -> None:
    """Write what all runs in a folder have in common, or compare with what is there.

    Raises:
        InputError: If it has runs with other settings.
    """
    path = folder / "settings.json"
    if not path.exists():
        write_json(path, ours)
    check_same(ours, read_json(path), folder)


def check_same(ours: Mapping[str, str], theirs: Mapping[str, str], place: Path) -> None:
    """Refuse runs with other settings than ours.

    Raises:
        InputError: If theirs differ.
    """
    if different := [f"{k} {theirs.get(k)}" for k in ours if theirs.get(k) != ours[k]]:
        raise InputError(
            f"expected runs with these settings in {place}, got {', '.join(different)}; "
            "give the same settings, or choose another place"
        )
