"""What a recipe is: a whole distillation, from real images to the comparison of its students.

`distillation` makes one for any set of real images; `builtin.py` and `published.py` hold those that
come with the code, `own.py` loads a user's own. The functions at the end give each script its
settings by name. Plain data: nothing here imports torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from data import SHIPPED
from data.manifest import Manifest
from pipeline.recipes.architectures import Architecture, GETModel, ViTModel
from pipeline.recipes.settings_make import (
    ClassifierConfig,
    PairsConfig,
    SampleConfig,
    TeacherConfig,
)
from pipeline.recipes.settings_measure import EvaluateConfig, PlanConfig
from pipeline.recipes.settings_train import TrainConfig

RUNS, EMBEDDED = Path("runs"), ("digits", "photos")
# 0.39 M parameters; as many multiply-accumulates per image as a ViT of 10 such blocks
STUDENT = GETModel(depth=2, equilibrium_depth=3, iterations=2, coda_depth=2)


@dataclass(frozen=True)
class Images:
    """What a teacher makes, known before any pair exists.

    Attributes:
        shape: Channels, height, width.
        num_classes: Number of classes; None if unlabelled.
    """

    shape: tuple[int, int, int]
    num_classes: int | None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole distillation: what each stage does, in order.

    Attributes:
        images: What the teacher makes; None asks the folder of real images.
        classifier: The feature network that FID uses; None if there is none to train.
        judges: Further feature networks, by suffix of their names. No training may use them.
        teacher: How the teacher is trained; None if it is somebody else's.
        pairs: What the teacher writes.
        students: Name to training settings; the first is the one that is sampled.
        evaluate: What is measured; None if nothing is.
        references: What FID of Inception compares with, if `evaluate` says no networks.
    """

    images: Images | None
    classifier: ClassifierConfig | None = None
    judges: Mapping[str, ClassifierConfig] = field(default_factory=dict)
    teacher: TeacherConfig | None = None
    pairs: PairsConfig
    students: Mapping[str, TrainConfig] = field(default_factory=dict)
    evaluate: EvaluateConfig | None = None
    references: tuple[str, ...] = ()

    def manifest(self) -> Manifest:
        """Return what the manifest of the pairs will say, as far as that needs no teacher."""
        pairs, images = self.pairs, self.images or self._images_of_folder()
        return Manifest(
            teacher=pairs.teacher,
            sampler={"steps": pairs.num_inference_steps},
            evaluations=0,
            seed=pairs.seed,
            teacher_batch_size=pairs.teacher_batch_size,
            image_shape=images.shape,
            num_classes=images.num_classes,
            image_format=pairs.image_format,
            pairs_per_shard=pairs.pairs_per_shard,
            pack=pairs.pack,
            trajectory=(1.0,) * pairs.trajectory_points,  # the levels need the teacher
        )

    def _images_of_folder(self) -> Images:
        from data.real import real_images  # needs torch

        assert self.teacher is not None
        images, labels = real_images(self.teacher.train_data_dir, "training")
        channels, height, width = images.shape[1:]
        return Images((channels, height, width), int(labels.max()) + 1 if labels.any() else None)


def distillation(
    name: str,
    *,
    real_images: str | Path,
    num_pairs: int,
    images: Images | None = None,
    model: Architecture | None = None,
    baselines: Mapping[str, Architecture] | None = None,
    teacher: TeacherConfig | None = None,
    classifier: ClassifierConfig | None = None,
) -> Recipe:
    """Return the distillation of a teacher that is trained on real images.

    Teacher and feature network are those shipped in data/weights under this name, or else are
    trained by the recipe. Everything about it can be changed with `dataclasses.replace`.

    Args:
        name: What the recipe, its student and its output folders are called.
        real_images: "digits", "photos", or a folder of square pictures of one size, a sub-folder
            a class (two at least, which the feature network learns to tell apart).
        num_pairs: Noise/image pairs the teacher writes, in shards of 1,024, five held out.
        images: Shape and classes of the real images; None looks into the folder when needed.
        model: The student; None is `STUDENT`.
        baselines: Students to compare it with, by suffix of their names; None is a ViT of as
            many parameters as `STUDENT`.
        teacher: How the teacher is trained; its output_dir is set here.
        classifier: How the feature network is trained; its output_dir is set here.
    """
    model = model or STUDENT
    if baselines is None:
        baselines = {"vit": ViTModel(depth=8, patch_size=model.patch_size)}
    shipped = (SHIPPED / f"{name}-teacher").is_dir()
    weights = SHIPPED if shipped else RUNS
    features = weights / f"{name}-features"
    own_teacher = replace(
        teacher or TeacherConfig(output_dir=RUNS, learning_rate=4e-3),
        output_dir=RUNS / f"{name}-teacher",
        train_data_dir=str(real_images),
    )
    own_classifier = replace(
        classifier or ClassifierConfig(output_dir=RUNS),
        output_dir=RUNS / f"{name}-features",
        train_data_dir=str(real_images),
    )
    pairs = PairsConfig(
        teacher=str(weights / f"{name}-teacher"),
        output_dir=RUNS / "pairs" / name,
        num_pairs=num_pairs,
    )
    student = TrainConfig(
        output_dir=RUNS / name,
        pairs=pairs.output_dir,
        model=model,
        holdout_shards=5,
        max_train_steps=3900,
        global_batch_size=32,
        iterate_decay=0.2,
        window_share=0.5,
        optimizer="muon",
        muon_learning_rate=0.01,
        learning_rate=3e-3,
        lr_scheduler="linear",
        adam_beta2=0.95,
        feature_network=features,
        real_images=str(real_images),
    )
    others = {
        f"{name}-{suffix}": replace(student, output_dir=RUNS / f"{name}-{suffix}", model=shape)
        for suffix, shape in baselines.items()
    }
    evaluate = EvaluateConfig(
        pairs=pairs.output_dir,
        holdout_shards=student.holdout_shards,
        runs=(),
        teacher=pairs.teacher,
        real_images=str(real_images),
        feature_networks=(features,),
        output_dir=RUNS / name / "evaluation",
    )
    recipe = Recipe(
        images=images,
        classifier=own_classifier,
        teacher=own_teacher,
        pairs=pairs,
        evaluate=evaluate,
    )
    return with_students(recipe, {name: student, **others}, evaluate.iterations)


def with_students(
    recipe: Recipe, students: Mapping[str, TrainConfig], iterations: tuple[int, ...] = (3, 4)
) -> Recipe:
    """Return the recipe with other students of the same pairs, all of them evaluated.

    Args:
        recipe: Says everything else.
        students: Name to settings.
        iterations: Numbers of iterations at which GETs are measured.
    """
    assert recipe.evaluate is not None
    runs = tuple(config.output_dir for config in students.values())
    folder = runs[0] / "evaluation"
    evaluate = replace(recipe.evaluate, runs=runs, output_dir=folder, iterations=iterations)
    return replace(recipe, students=students, evaluate=evaluate)


def simplest(student: TrainConfig) -> TrainConfig:
    """Return a student's training without coda, rollouts and Frechet distance.

    `equilibria` was measured so: three equilibrium blocks after one, iterated three times.
    """
    model = GETModel(patch_size=student.model.patch_size)
    return replace(student, model=model, iterate_decay=0.5, window_share=0.0, frechet_weight=0.0)


# ---------------------------------------------------------------------- settings by name

Recipes = Mapping[str, Recipe]


def teachers(recipes: Recipes) -> dict[str, TeacherConfig]:
    """Return the settings of train_teacher.py by recipe."""
    return {name: r.teacher for name, r in recipes.items() if r.teacher is not None}


def classifiers(recipes: Recipes) -> dict[str, ClassifierConfig]:
    """Return the settings of train_classifier.py by recipe, and by recipe and suffix."""
    first = {name: r.classifier for name, r in recipes.items() if r.classifier is not None}
    judges = {f"{name}-{k}": c for name, r in recipes.items() for k, c in r.judges.items()}
    return first | judges


def pairs(recipes: Recipes) -> dict[str, PairsConfig]:
    """Return the settings of make_pairs.py by recipe."""
    return {name: r.pairs for name, r in recipes.items()}


def students(recipes: Recipes) -> dict[str, TrainConfig]:
    """Return the settings of train.py by student."""
    return {name: config for r in recipes.values() for name, config in r.students.items()}


def plans(recipes: Recipes) -> dict[str, PlanConfig]:
    """Return the settings of plan.py by student."""
    return {
        name: PlanConfig(**{f.name: getattr(config, f.name) for f in fields(config)})
        for name, config in students(recipes).items()
    }


def samples(recipes: Recipes) -> dict[str, SampleConfig]:
    """Return the settings of sample.py by student."""
    return {
        name: SampleConfig(model=config.output_dir, output_dir=config.output_dir / "images")
        for name, config in students(recipes).items()
    }
