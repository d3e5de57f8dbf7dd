"""Our training against the published one at its best, in equal time and over several seeds.

Both are searched alike: one setting after the other, each taken at its best before the next. As
published (AdamW at 1e-4, averages over 10,000 steps) a short run hardly moves, so the search is
what makes the published training a rival. Equal time is equal CPU time of training steps, which
take turns; other work on the machine does not lengthen it.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
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
from pipeline.training.build import build_student
from pipeline.training.step import TrainingStep

Search = Mapping[str, tuple[Any, ...]]
"""Setting -> values, in the order of the search; the first value is where it begins."""

SEARCHED: dict[str, Search] = {
    "ours": {"muon_learning_rate": (0.01, 0.02, 0.04)},
    "published": {
        "learning_rate": (1e-3, 3e-4, 3e-3),
        "global_batch_size": (32, 128),
        "ema_decay": (0.99, 0.999),
        "lr_scheduler": ("cosine", "constant"),
        "iterations": (6, 3),
    },
}


@dataclass(frozen=True, kw_only=True)
class OursConfig(LaboratoryConfig):
    """Compare our training with the published one, both at their best, in equal time.

    Equal to `max_train_steps` steps of ours as the recipe has them.

    Attributes:
        repeats: Training steps of each that are timed.
    """

    repeats: int = 9


def main(config: OursConfig) -> None:
    """Search, train and measure what is missing; write a JSON file."""
    laboratory = Laboratory(config, f"ours-{config.recipe}")
    ours = replace(laboratory.settings, frechet_weight=0.0)
    rows = {}
    for title, training in (("ours", ours), ("published", published(ours))):
        search = SEARCHED[title]

        def measured(trial: TrainConfig, title: str = title, search: Search = search) -> Run:
            words = "-".join(str(value(trial, name)) for name in search)
            steps, ratio = equal_steps(laboratory, ours, trial, config)
            name = f"{title}-{words}-seed{trial.seed}"
            run = laboratory.measured(name, replace(trial, max_train_steps=steps))
            return {**{name: value(trial, name) for name in search}, "time_of_a_step": ratio, **run}

        best, searched = searched_best(training, search, measured)
        runs = [measured(replace(best, seed=seed)) for seed in config.seeds]
        rows[title] = {"search": searched, "runs": runs}
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
    """Return the steps that take as long as ours, and the time of one over that of ours."""
    calls = {name: step_of(laboratory, t) for name, t in (("ours", ours), ("other", other))}
    took = in_turns(calls, config.repeats)
    ratio = median_ratio(took["other"].cpu, took["ours"].cpu)
    return max(1, round(config.max_train_steps / ratio)), ratio


def step_of(laboratory: Laboratory, training: TrainConfig) -> partial:
    """Return a training step on one batch."""
    student = build_student(training, laboratory.manifest)
    batch: Pairs = laboratory.pairs.take(slice(training.global_batch_size)).as_floats()
    return partial(TrainingStep(training, student), batch, 0)


def markdown(result: dict[str, Any]) -> str:
    """Return a table with a line per training."""
    rows = result["trainings"]
    first = [figure(run) for run in rows["ours"]["runs"]]
    header = [
        *("training", "found by the search", "parameters", "MACs per image", "steps"),
        *("FD in the judges, each seed", "mean", "ours / its: means, worst seed"),
    ]
    lines = [header]
    for title, row in rows.items():
        run, figures = row["runs"][0], [figure(run) for run in row["runs"]]
        worst = max(a / b for a, b in zip(first, figures, strict=True))
        lines.append(
            [
                title,
                ", ".join(f"{name} {run[name]}" for name in SEARCHED[title]),
                f"{run['parameters'] / 1e6:.2f} M",
                f"{run['macs'] / 1e6:.1f} M",
                f"{run['steps']:,}",
                ", ".join(f"{one:.3g}" for one in figures),
                f"{mean(figures):.3g}",
                "-" if title == "ours" else f"{mean(first) / mean(figures):.3f}x, {worst:.3f}x",
            ]
        )
    return markdown_table(lines)
