"""GETs and ViTs of many sizes on many or few pairs: what a looped block is worth.

Every contestant gets the same small search of its learning rate, then the same steps on the same
pairs with every seed. `laboratory.py` trains and judges them, `loops.py` sums up.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from data.files import read_json, write_json
from get.errors import InputError
from pipeline.benchmarks.laboratory import Laboratory, LaboratoryConfig, common
from pipeline.benchmarks.loops import Run, blocks, markdown, plot, summed_up
from pipeline.benchmarks.results import check_same, save
from pipeline.recipes.architectures import Architecture, GETModel, ViTModel

VITS = {f"ViT {depth}": ViTModel(depth=depth) for depth in (3, 4, 6, 10, 40)}
GETS = {  # blocks before + iterated x iterations + after
    f"GET {before}+{looped}x{times}+{after}": GETModel(
        depth=before, equilibrium_depth=looped, iterations=times, coda_depth=after
    )
    for before, looped, times, after in (
        *((1, 1, times, 1) for times in (1, 2, 4, 8)),
        *((1, 2, 4, 1), (2, 3, 2, 2)),
    )
}
ATTENTION = {  # without MLPs in the iterated blocks
    f"GET {before}+{looped}Ax{times}+{after}": GETModel(
        depth=before,
        equilibrium_depth=looped,
        equilibrium_mlp_ratio=0.0,
        iterations=times,
        coda_depth=after,
    )
    for before, looped, times, after in ((1, 3, 6, 2), (2, 3, 3, 4))
}
WINDOW = "GET 2+3x2+2 window"  # the loss of the recipe, so it may iterate longer
CONTESTANTS: dict[str, Architecture] = {
    **VITS,
    **GETS,
    **ATTENTION,
    WINDOW: GETS["GET 2+3x2+2"],
}
SHORT = tuple(name for name in CONTESTANTS if name not in ("ViT 40", WINDOW))
LONGER = 12  # iterations at which it costs what ViT 40 does


@dataclass(frozen=True, kw_only=True)
class FieldConfig(LaboratoryConfig):
    """Train GETs and ViTs of many sizes on many or few pairs, and judge each at its best.

    Attributes:
        num_pairs: Training pairs, a part of the table each; 0 is all.
        learning_rates: Muon's, of which every contestant takes its best with the first seed, for
            every number of pairs anew.
        contestants: Names to train.
        extend: The field.json of an earlier comparison with the same settings, to which seeds,
            pairs, contestants or rates are added: its runs are not made again.
    """

    num_pairs: tuple[int, ...] = (1024, 0)
    learning_rates: tuple[float, ...] = (0.005, 0.01, 0.02, 0.04)
    contestants: tuple[str, ...] = SHORT
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
    earlier = {"runs": [], "trials": []}
    if config.extend is not None:
        earlier |= take_over(laboratory, config.extend)
    runs, trials, at_edge = [], [], []
    for count, contestant in product(config.num_pairs, config.contestants):
        run = partial(measured, laboratory, contestant, count, config.max_train_steps)
        tried = [run(rate, config.seeds[0]) for rate in config.learning_rates]
        best = min(tried, key=lambda one: one["best"])
        runs += [run(best["learning_rate"], seed) for seed in config.seeds]
        trials += [one for one in tried if one is not best]
        if best["learning_rate"] in (min(config.learning_rates), max(config.learning_rates)):
            at_edge.append(f"{contestant} with {count or 'all'} pairs at {best['learning_rate']}")
    here = {(run["contestant"], run["num_pairs"]) for run in runs}
    for ours, theirs in ((runs, earlier["runs"]), (trials, earlier["trials"])):
        ours += [run for run in theirs if (run["contestant"], run["num_pairs"]) not in here]
        ours.sort(key=lambda run: [*CONTESTANTS].index(run["contestant"]))
    rows = summed_up([way for run in runs for way in ways(run)])
    figures = {"settings": asdict(config), "runs": runs, "trials": trials, "rows": rows}
    result = save(config, "field", figures)
    plot(config.output_dir / "field.png", result["rows"])
    print(markdown(result))
    if at_edge:
        print(f"best at an end of learning_rates, so give more of them: {', '.join(at_edge)}")


def take_over(laboratory: Laboratory, path: Path) -> dict[str, Any]:
    """Write the runs of an earlier comparison into the folder, and return the comparison.

    Raises:
        InputError: If it has other settings.
    """
    earlier = read_json(path)
    check_same(common(vars(laboratory.config)), common(earlier["settings"]), path)
    for run in (*earlier["runs"], *earlier.get("trials", ())):
        file = laboratory.folder / f"{run_name(**run)}.json"
        if not file.exists():
            write_json(file, run)
    return earlier


def run_name(contestant: str, learning_rate: float, num_pairs: int, seed: int, **_: Any) -> str:
    """Return the name of a run's file."""
    return f"{contestant.replace(' ', '-')}-lr{learning_rate:g}-pairs{num_pairs}-seed{seed}"


def measured(
    laboratory: Laboratory, contestant: str, num_pairs: int, steps: int, rate: float, seed: int
) -> Run:
    """Return the figures of a run: a loss on the last image alone, no window, no last phase.

    With a window the loss is that of the recipe, and the run has figures of more iterations.
    """
    base = laboratory.settings
    window = contestant == WINDOW
    model = replace(CONTESTANTS[contestant], patch_size=base.model.patch_size)
    settings = replace(
        base,
        model=model,
        seed=seed,
        max_train_steps=steps,
        muon_learning_rate=rate,
        learning_rate=base.learning_rate * rate / base.muon_learning_rate,
        iterate_decay=base.iterate_decay if window else 0.0,
        window_share=base.window_share if window else 0.0,
        frechet_weight=0.0,
    )
    name = run_name(contestant, rate, num_pairs, seed)
    run = laboratory.measured(name, settings, num_pairs, (LONGER,) if window else ())
    return {"contestant": contestant, "learning_rate": rate, "blocks": blocks(model), **run}


def ways(run: Run) -> Iterator[Run]:
    """Yield a run as it was trained, then as its model is when it iterates longer."""
    yield run
    for times, figures in run.get("longer", {}).items():
        name, shape = run["contestant"].replace("x2+", f"x{times}+"), run["blocks"]
        yield {**run, **figures, "contestant": name, "blocks": {**shape, "times": int(times)}}
