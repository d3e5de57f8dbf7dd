"""Skipping small changes in a trained GET, beside what a solve can save without it.

The same noise is solved in every way (`shortcuts.py`). Work is counted in multiply-accumulates,
time is taken alternately in one process, and images are compared with real ones. The reference is
the dense solve. `photograph.py` does the same for a network that fits one picture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from data import SHIPPED
from data.files import read_json, write_json
from data.real.features import RealFeatures
from get.errors import InputError
from get.images import from_uint8, to_uint8
from get.metrics import frechet_distance
from get.metrics.features import name_of
from get.models import GET
from get.noise import draw
from pipeline import cli
from pipeline.benchmarks.results import BenchmarkConfig, save
from pipeline.benchmarks.savings import best_of, compare, plot, table
from pipeline.benchmarks.shortcuts import (
    Cell,
    Grid,
    kept_by_iteration,
    make_all,
    profile,
    take_times,
    work_outside,
)
from pipeline.benchmarks.wider import widened
from pipeline.jobs.students import load_student, weights_hash
from pipeline.recipes.recipe import RUNS
from pipeline.recipes.settings_make import within

ALLOWED = 0.02  # relative growth of FID that a saving may cost


@dataclass(frozen=True, kw_only=True)
class DeltaConfig(BenchmarkConfig):
    """Compare skipped changes with fewer iterations, stopping and compaction.

    Attributes:
        model: A run, or any folder with `model_index.json`, of a GET.
        real_images: What FID compares with: "digits", "photos" or a folder.
        feature_networks: Their features are compared; training may have used the first.
        num_images: Images a seed.
        seeds: Name, with indices from 0, the noise; the full grid is `--seeds 1000 1001 1002`.
        grid: The settings.
        batch_size: Images at once, in the time measured too.
        turns: Turns in which the times are taken.
        wide_factor: The best settings are also timed on a network that is so many times wider and
            makes the same images (`wider.py`); 1 leaves that out.
        wide_batch: Images at once in this.
    """

    model: Path = RUNS / "digits"
    real_images: str = "digits"
    feature_networks: tuple[Path, ...] = (
        SHIPPED / "digits-features",
        SHIPPED / "digits-features-b",
        SHIPPED / "digits-features-c",
    )
    num_images: int = 5000
    seeds: tuple[int, ...] = (1000,)
    grid: Grid = Grid()  # noqa: RUF009  frozen
    batch_size: int = 256
    turns: int = 5
    wide_factor: int = 4
    wide_batch: int = 64

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        super().__post_init__()
        within(4, num_images=self.num_images)


@torch.no_grad()
def main(config: DeltaConfig) -> None:
    """Measure every cell; write delta.json and delta.png."""
    model, weights = load_student(config.model, torch.device("cpu")), weights_hash(config.model)
    if not isinstance(model, GET):
        kind = type(model).__name__
        raise InputError(f"expected a GET in {config.model}, got a {kind}; it does not iterate")
    networks = {
        name_of(path): RealFeatures(
            path, config.real_images, model.image_shape, model.device, config.batch_size
        )
        for path in config.feature_networks
    }
    cells = config.grid.cells()
    rows = measured(model, cells, networks, config, weights)
    batch = draw(config.seeds[0], range(config.batch_size), model.image_shape, model.num_classes)
    take_times(model, cells, rows, *batch, config.turns)
    compare(rows, work_outside(model, *batch))
    for row in rows:
        row["change"] = {
            name: [now / then - 1 for now, then in zip(fid, rows[0]["fid"][name], strict=True)]
            for name, fid in row["fid"].items()
        }
    best = best_of(rows, ALLOWED)
    for row in best.values():
        row["profile"] = profile(model, cells[row["row"]], *batch)
    figures = {
        "model": weights,
        "grid": asdict(config.grid),
        "num_images": config.num_images,
        "seeds": config.seeds,
        "batch_size": config.batch_size,
        "threads": torch.get_num_threads(),
        "rows": rows,
        "best": best,
        "kept": kept_by_iteration(model, cells, *batch),
        "wide": times_of_wide(model, [cells[0], *(cells[r["row"]] for r in best.values())], config),
    }
    found = save(config, "delta", figures)
    plot(config.output_dir / "delta.png", found, "FID, relative change", ALLOWED)
    print(markdown(found))


def measured(
    model: GET,
    cells: Sequence[Cell],
    networks: Mapping[str, RealFeatures],
    config: DeltaConfig,
    weights: str,
) -> list[dict[str, Any]]:
    """Return work and FID of every cell for every seed; what was measured before is kept."""
    path = config.output_dir / "delta.partial.json"
    inputs = [weights, config.real_images, *networks, config.num_images]
    state: dict[str, Any] = {"inputs": inputs, "cells": {}}
    if path.exists() and (found := read_json(path))["inputs"] == inputs:
        state = found
    rows: list[dict[str, Any]] = [
        {**asdict(cell), "macs": [], "evaluations": [], "fid": {name: [] for name in networks}}
        for cell in cells
    ]
    with cli.progress_bar(len(cells) * len(config.seeds), "delta", "setting") as progress:
        for seed in config.seeds:
            indices = range(config.num_images)
            noise, labels = draw(seed, indices, model.image_shape, model.num_classes)
            for cell, row in zip(cells, rows, strict=True):
                if (key := f"{seed}: {cell}") not in state["cells"]:
                    images, *work = make_all(model, cell, noise, labels, config.batch_size)
                    made = from_uint8(to_uint8(images))
                    distances = [
                        frechet_distance(real.features_of(made), real.features["training"])
                        for real in networks.values()
                    ]
                    state["cells"][key] = [*work, distances]
                    write_json(path, state)
                macs, evaluations, distances = state["cells"][key]
                row["macs"].append(macs)
                row["evaluations"].append(evaluations)
                for name, distance in zip(networks, distances, strict=True):
                    row["fid"][name].append(distance)
                progress.update(1)
    return rows


def times_of_wide(model: GET, cells: Sequence[Cell], config: DeltaConfig) -> dict[str, Any]:
    """Return the times of these cells on the widened network."""
    if config.wide_factor == 1:
        return {}
    batch = draw(config.seeds[0], range(config.wide_batch), model.image_shape, model.num_classes)
    rows: list[dict[str, Any]] = [asdict(cell) for cell in cells]
    take_times(widened(model, config.wide_factor), cells, rows, *batch, config.turns)
    return {"factor": config.wide_factor, "batch_size": config.wide_batch, "rows": rows}


def markdown(result: Mapping[str, Any]) -> str:
    """Return the table of what each method saves where FID grows by 2 % at most."""
    return table(result["best"], "FID", "{:+.1%}")
