"""Trainings compared with ours over three seeds.

`ours-*`: the published training of the same model, adapted to a short run, in equal wall time.
`claim`: ViTs of 1, 3 and 5 times GET's parameters (arXiv:2401.08639 claims a GET worth a ViT five
times its size), trained as GET is, for equally many steps and for equal wall time.
`python -m pipeline.benchmark steps` measures what equal wall time means, `... ours` and `... claim`
sum up.
"""

from dataclasses import dataclass, replace
from typing import Literal

from pipeline.recipes.builtin import DIGITS, PHOTOS
from pipeline.recipes.published import as_published
from pipeline.recipes.recipe import RUNS, simplest, with_students
from pipeline.recipes.settings_train import GETModel, TrainConfig, ViTModel

SEEDS = (0, 1, 2)
OURS_STEPS, CLAIM_STEPS = 1500, 1000
# Steps that take as long as OURS_STEPS or CLAIM_STEPS of ours: `python -m pipeline.benchmark steps`
# writes the ratios to docs/measurements/benchmarks/steps.json, and a test compares.
PUBLISHED_STEPS = {"digits": 318, "photos": 332}
VITS = {  # times GET's parameters: 1.05, 2.93 and 5.08
    1: (ViTModel(width=64, depth=5, heads=2), 1695),
    3: (ViTModel(width=80, depth=9, heads=2), 757),
    5: (ViTModel(width=112, depth=8, heads=4), 472),
}


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training that is repeated with every seed.

    Attributes:
        title: What tables call it.
        equal: What it has as much of as the first training of its comparison.
        config: Its settings with the first seed.
    """

    title: str
    equal: Literal["steps", "time"]
    config: TrainConfig

    @property
    def name(self) -> str:
        """Return the name of the first seed's run."""
        return self.config.output_dir.name

    def seeds(self) -> dict[str, TrainConfig]:
        """Return the settings with every seed, by the names of the runs."""
        names = [self.name, *(f"{self.name}-seed{seed}" for seed in SEEDS[1:])]
        return {
            name: replace(self.config, seed=seed, output_dir=RUNS / name)
            for seed, name in zip(SEEDS, names, strict=True)
        }


def students(trainings: tuple[Training, ...]) -> dict[str, TrainConfig]:
    """Return the settings of every run of a comparison."""
    return {name: config for training in trainings for name, config in training.seeds().items()}


def ours(student: TrainConfig) -> tuple[Training, ...]:
    """Return the recipe's own training on a smaller budget, and the published one."""
    images = student.output_dir.name
    first = _short(student, f"ours-{images}", OURS_STEPS)
    assert isinstance(first.model, GETModel)
    published = as_published(
        replace(
            _short(first, f"ours-{images}-published", PUBLISHED_STEPS[images]),
            model=replace(first.model, map="plain", z0="normal", iterations=6),
            global_batch_size=128,
        )
    )
    # What a run of hundreds instead of 800,000 steps needs. As published it stays near its initial
    # weights (FID of thousands: docs/log.md), which would be a straw man.
    adapted = replace(
        published,
        output_dir=RUNS / f"ours-{images}-adapted",
        learning_rate=1e-3,
        lr_scheduler="cosine",
        lr_warmup_steps=50,
        max_grad_norm=1.0,
        ema_decay=0.99,
    )
    return (
        Training(title="ours", equal="time", config=first),
        Training(title="published, adapted to a short run", equal="time", config=adapted),
    )


def claim(student: TrainConfig) -> tuple[Training, ...]:
    """Return the recipe's own GET on a smaller budget, and ViTs trained like it."""
    get = _short(student, "claim", CLAIM_STEPS)
    trainings = [Training(title="GET", equal="steps", config=get)]
    for times, (model, steps) in VITS.items():
        vit = replace(get, model=replace(model, patch_size=student.model.patch_size))
        in_time = _short(vit, f"claim-vit-{times}x-time", steps)
        vit = _short(vit, f"claim-vit-{times}x", CLAIM_STEPS)
        trainings += [
            Training(title=f"ViT {times}x, equal steps", equal="steps", config=vit),
            Training(title=f"ViT {times}x, equal time", equal="time", config=in_time),
        ]
    return tuple(trainings)


def _short(student: TrainConfig, name: str, steps: int) -> TrainConfig:
    """Return a training of few steps that spends no time on being watched."""
    return replace(
        student,
        output_dir=RUNS / name,
        max_train_steps=steps,
        validation_steps=steps,
        feature_network=None,
        real_images=None,
    )


COMPARISONS = {
    "ours-digits": ours(simplest(DIGITS.students["digits"])),
    "ours-photos": ours(simplest(PHOTOS.students["photos"])),
    "claim": claim(simplest(DIGITS.students["digits"])),
}
RECIPES = {
    name: with_students(PHOTOS if name == "ours-photos" else DIGITS, students(trainings))
    for name, trainings in COMPARISONS.items()
}
