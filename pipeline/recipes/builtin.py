"""The recipes that run here on two CPU cores: two sets of real images, and trainings on them."""

from dataclasses import replace

from data import SHIPPED
from pipeline.recipes.architectures import GETModel, ViTModel
from pipeline.recipes.recipe import (
    RUNS,
    STUDENT,
    Images,
    Recipe,
    distillation,
    simplest,
    with_students,
)
from pipeline.recipes.settings_make import ClassifierConfig, TeacherConfig


def _judged(recipe: Recipe, frechet_weight: float, frechet_pixels: float = 0.0) -> Recipe:
    """Return the recipe with two more feature networks, shipped, of other bodies and seeds.

    They can judge students that are trained on the first, so students are.
    """
    assert recipe.classifier is not None
    assert recipe.evaluate is not None
    judges = {
        "b": replace(recipe.classifier, body="residual", width=24, seed=1),
        "c": replace(recipe.classifier, body="transformer", width=64, seed=2),
    }
    name = recipe.classifier.output_dir.name
    judges = {k: replace(c, output_dir=RUNS / f"{name}-{k}") for k, c in judges.items()}
    shipped = tuple(SHIPPED / c.output_dir.name for c in judges.values())
    networks = (*recipe.evaluate.feature_networks, *shipped)
    evaluate = replace(recipe.evaluate, feature_networks=networks)
    frechet = {"frechet_weight": frechet_weight, "frechet_pixels": frechet_pixels}
    students = {
        name: replace(config, **frechet, frechet_reference="real")
        for name, config in recipe.students.items()
    }
    return replace(recipe, judges=judges, evaluate=evaluate, students=students)


# scikit-learn's digits: a quarter of an hour
DIGITS = _judged(
    distillation(
        "digits",
        real_images="digits",
        num_pairs=37 * 1024,
        images=Images((1, 8, 8), 10),
        classifier=ClassifierConfig(output_dir=RUNS, background=-1.0),
    ),
    frechet_weight=0.003,
    frechet_pixels=8.0,
)
# 16x16 RGB patches of scikit-image's photographs; a student has as many tokens as for digits
PHOTOS = _judged(
    distillation(
        "photos",
        real_images="photos",
        num_pairs=21 * 1024,
        images=Images((3, 16, 16), 3),
        model=replace(STUDENT, patch_size=4),
        teacher=TeacherConfig(
            output_dir=RUNS,
            block_out_channels=(16, 32, 40),
            max_train_steps=4000,
            global_batch_size=64,
            muon_learning_rate=0.01,
            learning_rate=3e-3,
            lr_scheduler="linear",
            adam_beta2=0.95,
        ),
        classifier=ClassifierConfig(output_dir=RUNS, width=24, max_train_steps=600),
    ),
    frechet_weight=0.001,
)


def _equilibria() -> Recipe:
    """Every way of training for a fixed point, on the pairs of `digits`, 2,000 steps each."""
    unrolled = replace(
        simplest(DIGITS.students["digits"]),
        max_train_steps=2000,
        global_batch_size=64,
        optimizer="adamw",
        lr_scheduler="cosine",
    )
    corrected = replace(unrolled, gradient="phantom", solver_max_steps=12, solver_tol=1e-2)
    penalised = replace(corrected, jacobian_probability=0.5)
    ways = {
        "": corrected,
        "plain": replace(unrolled, model=replace(GETModel(), map="plain")),
        "unrolled": unrolled,
        "checkpointed": replace(unrolled, gradient_checkpointing=True),
        "phantom": replace(corrected, unrolled_iterations=0),
        "implicit": replace(corrected, gradient="implicit", unrolled_iterations=0),
        "implicit-iterates": replace(corrected, gradient="implicit"),
        "jacobian-0.1": replace(penalised, jacobian_weight=0.1),
        "jacobian-0.3": replace(penalised, jacobian_weight=0.3),
        "jacobian-0.6": replace(penalised, jacobian_weight=0.6),
        "jacobian-1": replace(penalised, jacobian_weight=1.0),
        "jacobian-1-unrolled": replace(unrolled, jacobian_weight=1.0, jacobian_probability=0.5),
    }
    students = {
        (name := f"equilibria-{way}".rstrip("-")): replace(config, output_dir=RUNS / name)
        for way, config in ways.items()
    }
    return with_students(DIGITS, students, (1, 2, 3, 4, 6, 8, 12, 16, 24))


def _smoke() -> Recipe:
    """Every stage of `digits` at its smallest: it tests the plumbing, not the method."""
    assert DIGITS.teacher is not None
    assert DIGITS.evaluate is not None
    short = {"max_train_steps": 20, "lr_warmup_steps": 2, "checkpointing_steps": 10}
    pairs = replace(
        DIGITS.pairs,
        output_dir=RUNS / "pairs" / "smoke",
        num_pairs=5 * 64,
        pairs_per_shard=64,
        teacher_batch_size=64,
        num_inference_steps=4,
    )
    student = replace(
        DIGITS.students["digits"],
        **short,
        output_dir=RUNS / "smoke",
        pairs=pairs.output_dir,
        holdout_shards=1,
        streams=4,
        global_batch_size=16,
        validation_steps=10,
        feature_network=None,
        real_images=None,
        frechet_weight=0.0,
        log_steps=1,
    )
    vit = replace(student, output_dir=RUNS / "smoke-vit", model=ViTModel(depth=4))
    recipe = replace(
        DIGITS,
        teacher=replace(
            DIGITS.teacher, **short, output_dir=RUNS / "smoke-teacher", global_batch_size=16
        ),
        pairs=pairs,
        evaluate=replace(DIGITS.evaluate, pairs=pairs.output_dir, holdout_shards=1, num_images=64),
    )
    return with_students(recipe, {"smoke": student, "smoke-vit": vit}, (1, 3))


EQUILIBRIA, SMOKE = _equilibria(), _smoke()
