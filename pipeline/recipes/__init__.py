"""ONE TABLE of named runs; every script takes its settings from it, the command line overrides.

`python -m pipeline.recipes` prints all trainings with what they take and reach
(recipe_table.py), `python -m pipeline.recipes NAME` what launch.sh needs: teacher and students.
Measured results stand in the README, generated from JSON.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from data.teachers import SHIPPED
from pipeline.recipes import comparisons, published
from pipeline.recipes.settings_make import (
    ClassifierConfig,
    PairsConfig,
    SampleConfig,
    TeacherConfig,
)
from pipeline.recipes.settings_measure import (
    DiagnoseConfig,
    EvaluateConfig,
    MemoryConfig,
    ModesConfig,
    ReaderConfig,
    ReportConfig,
    SeedsConfig,
    SolversConfig,
    StepsConfig,
    TrainBenchmarkConfig,
    WriterConfig,
)
from pipeline.recipes.settings_train import GETModel, TrainConfig, ViTModel

RUNS = Path("runs")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole distillation: what each stage does, in order.

    Attributes:
        teacher: How the teacher was, or is, trained.
        pairs: What the teacher writes.
        students: Name to training settings; the first is the one that is sampled.
        sample: The images made at the end.
        evaluate: What is measured.
    """

    teacher: TeacherConfig
    pairs: PairsConfig
    students: dict[str, TrainConfig]
    sample: SampleConfig
    evaluate: EvaluateConfig


def _embedded(name: str, teacher: TeacherConfig, num_pairs: int, patch_size: int) -> Recipe:
    """Real images that come with the code, with a shipped teacher: GET and both ViT baselines."""
    pairs = PairsConfig(
        teacher=str(SHIPPED / teacher.output_dir.name),
        output_dir=RUNS / "pairs" / name,
        num_pairs=num_pairs,
    )
    get = TrainConfig(
        output_dir=RUNS / name,
        pairs=pairs.output_dir,
        model=GETModel(patch_size=patch_size),
        holdout_shards=5,
        max_train_steps=5000,
        global_batch_size=32,
        optimizer="muon",
        muon_learning_rate=0.01,
        learning_rate=3e-3,
        lr_scheduler="linear",
        adam_beta2=0.95,
        feature_network=SHIPPED / f"{name}-features",
        real_images=name,
    )
    # as many parameters as GET, and as many multiply-accumulates as GET with 3 iterations
    vits = {
        name: replace(
            get, output_dir=RUNS / name, model=ViTModel(depth=depth, patch_size=patch_size)
        )
        for name, depth in ((f"{name}-vit", 4), (f"{name}-vit-deep", 10))
    }
    students = {name: get} | vits
    return Recipe(
        teacher=teacher,
        pairs=pairs,
        students=students,
        sample=SampleConfig(model=get.output_dir, output_dir=get.output_dir / "images"),
        evaluate=EvaluateConfig(
            pairs=pairs.output_dir,
            holdout_shards=get.holdout_shards,
            runs=tuple(c.output_dir for c in students.values()),
            teacher=pairs.teacher,
            real_images=teacher.train_data_dir,
            feature_network=SHIPPED / f"{name}-features",
            output_dir=get.output_dir / "evaluation",
        ),
    )


def _digits() -> Recipe:
    """scikit-learn's digits on two CPU cores in a quarter of an hour."""
    teacher = TeacherConfig(output_dir=RUNS / "digits-teacher", learning_rate=4e-3)
    return _embedded("digits", teacher, num_pairs=37 * 1024, patch_size=2)


def _photos() -> Recipe:
    """16x16 RGB patches of scikit-image's photographs; as many tokens a student as for digits."""
    teacher = TeacherConfig(
        train_data_dir="photos",
        output_dir=RUNS / "photos-teacher",
        block_out_channels=(16, 32, 48),
        max_train_steps=1600,
        global_batch_size=64,
        learning_rate=4e-3,
    )
    return _embedded("photos", teacher, num_pairs=21 * 1024, patch_size=4)


def _equilibria(full: Recipe) -> Recipe:
    """Every way of training for a fixed point, on the pairs of `digits`, 2,000 steps each."""
    unrolled = replace(
        full.students["digits"],
        max_train_steps=2000,
        global_batch_size=64,
        optimizer="adamw",
        lr_scheduler="cosine",
    )
    corrected = replace(unrolled, gradient="phantom", solver_max_steps=12, solver_tol=1e-2)
    plain = replace(GETModel(), map="plain")
    ways = {
        "": corrected,
        "plain": replace(unrolled, model=plain),
        "unrolled": unrolled,
        "checkpointed": replace(unrolled, gradient_checkpointing=True),
        "phantom": replace(corrected, unrolled_iterations=0),
        "implicit": replace(corrected, gradient="implicit", unrolled_iterations=0),
        "implicit-iterates": replace(corrected, gradient="implicit"),
        "jacobian-0.1": replace(corrected, jacobian_weight=0.1, jacobian_probability=0.5),
        "jacobian-0.3": replace(corrected, jacobian_weight=0.3, jacobian_probability=0.5),
        "jacobian-0.6": replace(corrected, jacobian_weight=0.6, jacobian_probability=0.5),
        "jacobian-1": replace(corrected, jacobian_weight=1.0, jacobian_probability=0.5),
        "jacobian-1-unrolled": replace(unrolled, jacobian_weight=1.0, jacobian_probability=0.5),
    }
    students = {
        (name := f"equilibria-{way}".rstrip("-")): replace(c, output_dir=RUNS / name)
        for way, c in ways.items()
    }
    return _others(full, students, (1, 2, 3, 4, 6, 8, 12, 16, 24))


def _others(
    full: Recipe, students: dict[str, TrainConfig], iterations: tuple[int, ...] = (3, 4)
) -> Recipe:
    """Other students of the same pairs."""
    first = next(iter(students.values())).output_dir
    return replace(
        full,
        students=students,
        sample=SampleConfig(model=first, output_dir=first / "images"),
        evaluate=replace(
            full.evaluate,
            runs=tuple(c.output_dir for c in students.values()),
            output_dir=first / "evaluation",
            iterations=iterations,
        ),
    )


def _smoke(full: Recipe) -> Recipe:
    """Every stage of `digits` at its smallest: it proves the plumbing, not the method."""
    pairs = replace(
        full.pairs,
        output_dir=RUNS / "pairs" / "smoke",
        num_pairs=5 * 64,
        pairs_per_shard=64,
        teacher_batch_size=64,
        num_inference_steps=4,
    )
    get = replace(
        full.students["digits"],
        output_dir=RUNS / "smoke",
        pairs=pairs.output_dir,
        holdout_shards=1,
        streams=4,
        max_train_steps=20,
        lr_warmup_steps=2,
        global_batch_size=16,
        checkpointing_steps=10,
        validation_steps=10,
        feature_network=None,
        real_images=None,
        log_steps=1,
    )
    vit = replace(get, output_dir=RUNS / "smoke-vit", model=ViTModel(depth=4))
    return Recipe(
        teacher=replace(
            full.teacher,
            output_dir=RUNS / "smoke-teacher",
            max_train_steps=20,
            lr_warmup_steps=2,
            global_batch_size=16,
            checkpointing_steps=10,
        ),
        pairs=pairs,
        students={"smoke": get, "smoke-vit": vit},
        sample=SampleConfig(model=get.output_dir, output_dir=get.output_dir / "images"),
        evaluate=replace(
            full.evaluate,
            pairs=pairs.output_dir,
            holdout_shards=1,
            runs=(get.output_dir, vit.output_dir),
            output_dir=get.output_dir / "evaluation",
            num_images=64,
            iterations=(1, 3),
        ),
    )


DIGITS, PHOTOS = _digits(), _photos()
COMPARISONS = {
    "ours-digits": comparisons.ours(DIGITS.students["digits"]),
    "ours-photos": comparisons.ours(PHOTOS.students["photos"]),
    "claim": comparisons.claim(DIGITS.students["digits"]),
}
RECIPES = {
    "digits": DIGITS,
    "photos": PHOTOS,
    "equilibria": _equilibria(DIGITS),
    "ours-digits": _others(DIGITS, comparisons.students(COMPARISONS["ours-digits"])),
    "ours-photos": _others(PHOTOS, comparisons.students(COMPARISONS["ours-photos"])),
    "claim": _others(DIGITS, comparisons.students(COMPARISONS["claim"])),
    "smoke": _smoke(DIGITS),
}

TEACHERS = {name: recipe.teacher for name, recipe in RECIPES.items()}
CLASSIFIERS = {
    "digits": ClassifierConfig(output_dir=RUNS / "digits-features", background=-1.0),
    "photos": ClassifierConfig(
        output_dir=RUNS / "photos-features",
        train_data_dir="photos",
        width=24,
        max_train_steps=600,
    ),
}
PAIRS = {name: recipe.pairs for name, recipe in RECIPES.items()} | published.PAIRS
EMBEDDED = {"digits": published.Images((1, 8, 8), 10), "photos": published.Images((3, 16, 16), 3)}
IMAGES = {name: EMBEDDED[recipe.teacher.train_data_dir] for name, recipe in RECIPES.items()}
IMAGES |= published.IMAGES
STUDENTS = {name: c for recipe in RECIPES.values() for name, c in recipe.students.items()}
STUDENTS |= published.STUDENTS
SAMPLES = {name: recipe.sample for name, recipe in RECIPES.items()}
EVALUATIONS = {name: recipe.evaluate for name, recipe in RECIPES.items()}
DIAGNOSES = {
    name: DiagnoseConfig(model=recipe.sample.model, output_dir=recipe.sample.model / "diagnosis")
    for name, recipe in RECIPES.items()
}
BENCHMARKS = {
    "claim": SeedsConfig(
        name="claim", comparisons=("claim",), runs=RUNS, output_dir=RUNS / "benchmarks"
    ),
    "memory": MemoryConfig(output_dir=RUNS / "benchmarks"),
    "modes": ModesConfig(
        recipe="equilibria",
        runs=RUNS,
        pairs=DIGITS.pairs.output_dir,
        evaluation=RUNS / "equilibria" / "evaluation",
        output_dir=RUNS / "benchmarks",
        reference="equilibria-unrolled",
    ),
    "ours": SeedsConfig(
        name="ours",
        comparisons=("ours-digits", "ours-photos"),
        runs=RUNS,
        output_dir=RUNS / "benchmarks",
    ),
    "pairs": WriterConfig(output_dir=RUNS / "benchmarks"),
    "reader": ReaderConfig(output_dir=RUNS / "benchmarks"),
    "solvers": SolversConfig(output_dir=RUNS / "benchmarks"),
    "steps": StepsConfig(output_dir=RUNS / "benchmarks"),
    "train": TrainBenchmarkConfig(output_dir=RUNS / "benchmarks"),
}
REPORTS = {
    name: ReportConfig(recipe=name, evaluation=recipe.evaluate.output_dir)
    for name, recipe in RECIPES.items()
}

if __name__ == "__main__":
    if len(sys.argv) == 1:
        from pipeline.recipes.__main__ import markdown_table  # it imports this module

        print(markdown_table())
        sys.exit()
    if len(sys.argv) != 2 or sys.argv[1] not in RECIPES:
        found = " ".join(sys.argv[1:])
        print(f"recipes: expected a recipe ({', '.join(RECIPES)}), got {found}", file=sys.stderr)
        sys.exit(2)
    print(RECIPES[sys.argv[1]].pairs.teacher)
    print(*RECIPES[sys.argv[1]].students)
