"""GETs and ViTs of many sizes on many or few pairs: what a looped block is worth.

Every contestant gets the same small search of its learning rate, then the same steps on the same
pairs with every seed. `laboratory.py` trains and judges them, `loops.py` sums up.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from data.files import read_json, write_json
from get.errors import InputError
from pipeline.benchmarks.laboratory import Laboratory, LaboratoryConfig, common
from pipeline.benchmarks.loops import blocks, markdown, plot, summed_up
from pipeline.benchmarks.results import check_same, save
from pipeline.recipes.architectures import Architecture, GETModel, ViTModel

VITS = {f"ViT {depth}": ViTModel(depth=depth) for depth in (3, 4, 6, 10)}
GETS = {  # blocks before + iterated x iterations + after
    f"GET {before}+{looped}x{times}+{after}": GETModel(
        depth=before, equilibrium_depth=looped, iterations=times, coda_depth=after
    )
    for before, looped, times, after in (
        *((1, 1, times, 1) for times in (1, 2, 4, 8)),
        *((1, 2, 4, 1), (2, 3, 2, 2)),
    )
}
CONTESTANTS: dict[str, Architecture] = {**VITS, **GETS}


@dataclass(frozen=True, kw_only=True)
class FieldConfig(LaboratoryConfig):
    """Train GETs and ViTs of many sizes on many or few pairs, and judge each at its best.

    Attributes:
        num_pairs: Training pairs, a part of the table each; 0 is all.
        learning_rates: Muon's, of which every contestant takes its best.
        contestants: Names to train; all by default.
        extend: The field.json of an earlier comparison with the same settings. Its runs are taken
            over, and learning rates that lost in it are not tried again: for more seeds, pairs,
            contestants or rates.
    """

    num_pairs: tuple[int, ...] = (1024, 0)
    learning_rates: tuple[float, ...] = (0.005, 0.01, 0.02, 0.04)
    contestants: tuple[str, ...] = tuple(CONTESTANTS)
    extend: Path | None = None

    def __post_init__(self) -> None:
        """Refuse unknown contestants."""
        super().__post_init__()
        unknown = [name for name in self.contestants if name not in CONTESTANTS]
        if unknown:
            raise InputError(
                f"expected contestants among {', '.join(CONTESTANTS)}, got {', '.join(unknown)}"
            )


def main(config: FieldConfig) -> None:
    """Train and measure what is missing; write a JSON file and a plot."""
    laboratory = Laboratory(config, f"field-{config.recipe}")
    lost = {} if config.extend is None else taken_over(laboratory, config.extend)
    rates = {name: best_rate(laboratory, config, name, lost) for name in config.contestants}
    runs = [
        measured(laboratory, contestant, rates[contestant], count, seed, config.max_train_steps)
        for seed, count, contestant in product(config.seeds, config.num_pairs, config.contestants)
    ]
    figures = {"settings": asdict(config), "learning_rates": rates, "runs": runs}
    result = save(config, "field", {**figures, "rows": summed_up(runs)})
    plot(config.output_dir / "field.png", result["rows"])
    print(markdown(result))


def taken_over(laboratory: Laboratory, path: Path) -> dict[str, set[float]]:
    """Write the runs of an earlier comparison into the folder; return which rates lost in it.

    Raises:
        InputError: If it has other settings.
    """
    earlier = read_json(path)
    check_same(common(vars(laboratory.config)), common(earlier["settings"]), path)
    for run in earlier["runs"]:
        file = laboratory.folder / f"{run_name(**run)}.json"
        if not file.exists():
            write_json(file, run)
    tried = {*earlier["settings"]["learning_rates"]}
    return {name: tried - {best} for name, best in earlier["learning_rates"].items()}


def best_rate(
    laboratory: Laboratory, config: FieldConfig, contestant: str, lost: Mapping[str, set[float]]
) -> float:
    """Return the learning rate that is best with the first seed and all pairs."""
    steps, seed = config.max_train_steps, config.seeds[0]
    found = {
        rate: measured(laboratory, contestant, rate, 0, seed, steps)["best"]
        for rate in config.learning_rates
        if rate not in lost.get(contestant, ())
    }
    return min(found, key=found.__getitem__)


def run_name(contestant: str, learning_rate: float, num_pairs: int, seed: int, **_: Any) -> str:
    """Return the name of a run's file."""
    return f"{contestant.replace(' ', '-')}-lr{learning_rate:g}-pairs{num_pairs}-seed{seed}"


def measured(
    laboratory: Laboratory, contestant: str, rate: float, num_pairs: int, seed: int, steps: int
) -> dict[str, Any]:
    """Return the figures of a run: a loss on the last image alone, no window, no last phase."""
    base = laboratory.settings
    model = replace(CONTESTANTS[contestant], patch_size=base.model.patch_size)
    settings = replace(
        base,
        model=model,
        seed=seed,
        max_train_steps=steps,
        muon_learning_rate=rate,
        learning_rate=base.learning_rate * rate / base.muon_learning_rate,
        iterate_decay=0.0,
        window_share=0.0,
        frechet_weight=0.0,
    )
    name = run_name(contestant, rate, num_pairs, seed)
    run = laboratory.measured(name, settings, num_pairs)
    return {"contestant": contestant, "learning_rate": rate, "blocks": blocks(model), **run}
