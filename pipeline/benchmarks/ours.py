"""Our training against the published one at its best, in equal time and over several seeds.

Both are searched alike: one setting after the other, each taken at its best before the next. As
published (AdamW at 1e-4, averages over 10,000 steps) a short run hardly moves, so the search is
what makes the published training a rival. Equal time is equal CPU time of training steps, which
take turns; other work on the machine does not lengthen it. Ours has two rows: what the published
training has too, pairs alone; and all of the recipe, whose last steps train the Frechet distance.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import ceil
from statistics import mean
from typing import Any

from data.pairs import Pairs
from get.cost import in_turns, median_ratio
from pipeline.benchmarks.laboratory import Laboratory, LaboratoryConfig
from pipeline.benchmarks.loops import Run, figure
from pipeline.benchmarks.results import save
from pipeline.jobs.tables import markdown as markdown_table
from pipeline.recipes.architectures import GETModel
from pipeline.recipes.published import as_published
from pipeline.recipes.settings_train import TrainConfig

Search = Mapping[str, tuple[Any, ...]]
"""Setting -> values, in the order of the search; the first value is where it begins."""

SEARCHED: dict[str, Search] = {
    "ours": {"muon_learning_rate": (0.01, 0.005, 0.02), "muon_weight_decay": (0.0, 0.1)},
    "published": {
        "lr_scheduler": ("constant", "cosine"),
        "iterations": (6, 3),
        "learning_rate": (1e-3, 5e-4),  # 2e-3 is best with seed 0 and diverges with 1 and 2
        "global_batch_size": (32, 16, 64),
        "ema_decay": (0.99, 0.995),
    },
}
WHOLE = "ours with its last phase"  # at what the search of "ours" found


@dataclass(frozen=True, kw_only=True)
class OursConfig(LaboratoryConfig):
    """Compare our training with the published one, both at their best, in equal time.

    Equal to `max_train_steps` steps of ours as the recipe has them before its last phase.

    Attributes:
        repeats: Training steps of each that are timed.
    """

    repeats: int = 9


def main(config: OursConfig) -> None:
    """Search, train and measure what is missing; write a JSON file."""
    laboratory = Laboratory(config, f"ours-{config.recipe}")
    ours = replace(laboratory.settings, frechet_weight=0.0)

    def measured(training: TrainConfig, title: str) -> Run:
        search = SEARCHED.get(title, SEARCHED["ours"])
        found = {name: value(training, name) for name in search}
        steps, ratio = equal_steps(laboratory, ours, training, config)
        words = "-".join(map(str, (title.replace(" ", "-"), *found.values())))
        run = laboratory.measured(f"{words}-seed{training.seed}", shortened(training, steps))
        return {**found, "time_of_a_step": ratio, **run}

    best, rows = {}, {}
    for title, training in (("ours", ours), ("published", published(ours))):
        trial = partial(measured, title=title)
        best[title], trials = searched_best(training, SEARCHED[title], trial)
        rows[title] = {"search": trials}
    if laboratory.settings.frechet_weight:
        weight = laboratory.settings.frechet_weight
        best[WHOLE], rows[WHOLE] = replace(best["ours"], frechet_weight=weight), {}
    for title, training in best.items():
        runs = [measured(replace(training, seed=seed), title) for seed in config.seeds]
        rows[title]["runs"] = runs
    print(markdown(save(config, "ours", {"settings": asdict(config), "trainings": rows})))


def published(ours: TrainConfig) -> TrainConfig:
    """Return the published training of a GET of the published form."""
    model = GETModel(patch_size=ours.model.patch_size, map="plain", z0="normal", iterations=6)
    # What a run of hundreds of steps instead of 800,000 needs: a warm-up and clipped gradients.
    return replace(
        as_published(replace(ours, model=model, window_share=0.0)),
        lr_warmup_steps=50,
        max_grad_norm=1.0,
    )


def value(training: TrainConfig, name: str) -> Any:
    """Return a setting of a training or of its model."""
    return getattr(training if hasattr(training, name) else training.model, name)


def changed(training: TrainConfig, name: str, new: Any) -> TrainConfig:
    """Return a training with another setting, its own or its model's."""
    if hasattr(training, name):
        return replace(training, **{name: new})
    return replace(training, model=replace(training.model, **{name: new}))


def searched_best(
    training: TrainConfig, search: Search, measured: Callable[[TrainConfig], Run]
) -> tuple[TrainConfig, list[Run]]:
    """Return the training at its best in the network that chooses, and every trial."""
    trials = []
    for name, (first, *_) in search.items():
        training = changed(training, name, first)
    for name, values in search.items():
        found = {new: measured(changed(training, name, new)) for new in values}
        trials += found.values()
        training = changed(training, name, min(found, key=lambda new: found[new]["best"]))
    return training, trials


def equal_steps(
    laboratory: Laboratory, ours: TrainConfig, other: TrainConfig, config: OursConfig
) -> tuple[int, float]:
    """Return the steps that take as long as ours, and the time of one over that of ours.

    The last phase, moments' collection included, is timed by its last step.
    """
    calls = {"ours": step_of(laboratory, ours, 0), "other": step_of(laboratory, other, 0)}
    late = 0.0
    if other.frechet_weight:
        late = (other.frechet_steps + other.frechet_collecting_steps) / other.max_train_steps
        calls["late"] = step_of(laboratory, other, other.max_train_steps - 1)
    took = in_turns(calls, config.repeats)
    ratios = {name: median_ratio(took[name].cpu, took["ours"].cpu) for name in calls}
    ratio = (1 - late) * ratios["other"] + late * ratios.get("late", 0.0)
    return max(1, round(config.max_train_steps / ratio)), ratio


def step_of(laboratory: Laboratory, training: TrainConfig, number: int) -> partial:
    """Return a training step on one batch."""
    batch: Pairs = laboratory.pairs.take(slice(training.global_batch_size)).as_floats()
    return partial(laboratory.training_step(training), batch, number)


def shortened(training: TrainConfig, steps: int) -> TrainConfig:
    """Return a training of so many steps, with every phase shortened alike."""
    share = steps / training.max_train_steps
    return replace(
        training,
        max_train_steps=steps,
        frechet_steps=ceil(training.frechet_steps * share),
        frechet_images=ceil(training.frechet_images * share),
    )


def markdown(result: dict[str, Any]) -> str:
    """Return a table with a line per training."""
    rows = result["trainings"]
    figures = {title: [figure(run) for run in row["runs"]] for title, row in rows.items()}
    theirs = figures["published"]
    header = [
        *("training", "found by the search", "parameters", "MACs per image", "steps"),
        *("FD in the judges, each seed", "mean", "over the published: means, worst seed"),
    ]
    lines = [header]
    for title, own in figures.items():
        run = rows[title]["runs"][0]
        worst = max(a / b for a, b in zip(own, theirs, strict=True))
        lines.append(
            [
                title,
                ", ".join(f"{n} {run[n]}" for n in SEARCHED.get(title, SEARCHED["ours"])),
                f"{run['parameters'] / 1e6:.2f} M",
                f"{run['macs'] / 1e6:.1f} M",
                f"{run['steps']:,}",
                ", ".join(f"{one:.3g}" for one in own),
                f"{mean(own):.3g}",
                f"{mean(own) / mean(theirs):.3f}x, {worst:.3f}x" if own is not theirs else "-",
            ]
        )
    return markdown_table(lines)
