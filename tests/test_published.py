"""Published recipes have the published sizes and settings; every recipe is in the list."""

import runpy
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.order import choose_streams, rows_of
from data.teachers.settings import Execution, Sampler
from get.noise import draw
from pipeline import recipes
from pipeline.recipes import RECIPES, published, trainings
from pipeline.recipes.architectures import GETModel
from pipeline.recipes.recipe import Recipe, students
from pipeline.recipes.settings_train import TrainConfig
from pipeline.training.build import build_student

PUBLISHED = students(published.RECIPES)
RECIPE_OF = {name: r for r in RECIPES.values() for name in r.students}
COUNTS = {  # of get_paper.md, in units of the last digit printed there
    "cifar10-get-t": 8.6,
    "cifar10-get-m": 19.2,
    "cifar10-get-s": 37.2,
    "cifar10-get-b": 62.2,
    "cifar10-get-bplus": 83.5,
    "cifar10-vit-s": 21.4,
    "cifar10-vit-b": 85.3,
    "cifar10-vit-l": 302.6,
    "cifar10-vit-xl": 446.7,
}
MACS = {  # the same, in G
    "cifar10-get-t": 7.0,
    "cifar10-get-m": 15.1,
    "cifar10-get-s": 31.2,
    "cifar10-get-b": 81.2,
    "cifar10-get-bplus": 69.0,
    "cifar10-vit-s": 6.0,
    "cifar10-vit-b": 23.0,
    "cifar10-vit-l": 80.5,
    "cifar10-vit-xl": 118.4,
}
OURS = ("imagenet64-get-b", "imagenet256-latent-get-b")
MODELS = {  # one training of every model that is trained on some pairs
    (config.model, recipe.pairs): (config, recipe)
    for recipe in RECIPES.values()
    for config in recipe.students.values()
}


@pytest.mark.parametrize(
    ("config", "recipe"), MODELS.values(), ids=[c.output_dir.name for c, _ in MODELS.values()]
)
def test_every_model_fits_the_pairs_it_is_trained_on(config: TrainConfig, recipe: Recipe):
    manifest = recipe.manifest()
    assert config.pairs == recipe.pairs.output_dir
    with torch.device("meta"):
        student = build_student(config, manifest)
        noise = torch.zeros(2, *manifest.image_shape)
        labels = torch.zeros(2, dtype=torch.int64) if manifest.num_classes else None
        start = student.start_shape
        z0 = None if start is None else torch.zeros(2, *start)
        assert student.images(noise, labels, z0=z0).shape == noise.shape


@pytest.mark.parametrize("name", COUNTS)
def test_every_published_model_has_the_published_parameters_and_work(name: str):
    parameters, macs = trainings.costs(PUBLISHED[name].model, "cifar10")
    assert (round(parameters / 1e6, 1), round(macs / 1e9, 1)) == (COUNTS[name], MACS[name])


@pytest.mark.parametrize(("name", "config"), PUBLISHED.items(), ids=PUBLISHED)
def test_the_settings_are_exactly_the_published_ones(name: str, config: TrainConfig):
    wide = "cond" in name or name in OURS
    assert config == TrainConfig(
        output_dir=Path("runs") / name,
        pairs=RECIPE_OF[name].pairs.output_dir,
        model=config.model,
        max_train_steps=800_000,
        global_batch_size=256 if wide else 128,
        learning_rate=1e-4,
        adam_beta2=0.999,
        optimizer="adamw",
        lr_scheduler="constant",
        lr_warmup_steps=0,
        max_grad_norm=None,
        ema_decay=0.9999,
        loss="l1",
        iterate_decay=0.8,
        gradient="unrolled",
        mixed_precision="no",
        checkpointing_steps=10_000,
        validation_steps=10_000,
        log_steps=100,
    )
    if isinstance(config.model, GETModel):
        model = config.model
        assert (model.iterations, model.z0, model.map) == (6, "normal", "plain")


def test_figures_are_those_published_and_ours_have_none():
    figures = {name: figure.fid for name, figure in published.FIGURES.items()}
    assert figures == dict.fromkeys(PUBLISHED) | {
        "cifar10-get-t": 15.23,
        "cifar10-get-m": 10.81,
        "cifar10-get-s": 7.99,
        "cifar10-get-b": 7.39,
        "cifar10-get-bplus": 7.21,
        "cifar10-cond-get-b": 6.23,
        "cifar10-vit-b": 11.49,
    }
    assert all("not run" in published.FIGURES[name].source for name in OURS)
    assert "not verified" in published.FIGURES["cifar10-vit-b"].source


def test_the_conditional_recipe_differs_in_batch_and_pairs_only():
    plain, conditional = (PUBLISHED[f"cifar10-{n}"] for n in ("get-b", "cond-get-b"))
    assert conditional == replace(
        plain,
        output_dir=conditional.output_dir,
        pairs=RECIPES["cifar10-cond"].pairs.output_dir,
        global_batch_size=256,
    )
    assert RECIPES["cifar10-cond"].manifest().num_classes == 10


def test_ours_iterate_256_tokens_as_the_published_ones_do():
    for name in OURS:
        model = PUBLISHED[name].model
        assert isinstance(model, GETModel)
        assert RECIPE_OF[name].manifest().image_shape[1] // model.patch_size == 16


def test_the_pairs_fit_the_order_of_training():
    for name, student in PUBLISHED.items():
        pairs = RECIPE_OF[name].pairs
        shards = pairs.num_pairs // pairs.pairs_per_shard - student.holdout_shards
        assert shards * pairs.pairs_per_shard in (1_000_000, 3_000_000)
        assert choose_streams(shards, student.global_batch_size, readers=8) == 8
        assert pairs.pairs_per_shard % pairs.teacher_batch_size == 0
        size = student.global_batch_size
        for processes, workers in (8, 2), (16, 0), (32, 2):  # up to four machines of eight
            parts = [rows_of(size, rank, processes, workers) for rank in range(processes)]
            assert [row for part in parts for rows in part for row in rows] == [*range(size)]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_of_pairs_can_be_stored_as_it_says(name: str):
    """Neither writer.py nor the teachers refuse them, as they do PNG of latents, for instance."""
    manifest, pairs = RECIPES[name].manifest(), RECIPES[name].pairs
    assert manifest.image_format != "png" or manifest.image_shape[0] in (1, 3)
    if pairs.teacher.endswith(".pkl"):
        assert pairs.teacher_settings() == (Sampler(steps=18), Execution())
    noise, labels = draw(0, range(2), manifest.image_shape, manifest.num_classes)
    assert noise.shape == (2, *manifest.image_shape)
    assert (labels is None) == (manifest.num_classes is None)


def test_recipes_prints_all_trainings_or_what_launch_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def printed(*arguments: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["recipes", *arguments])
        with suppress(SystemExit):
            runpy.run_path(str(Path(recipes.__file__).parent), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    assert printed("smoke")[-1] == "smoke smoke-vit"
    lines = printed()
    assert max(map(len, lines)) <= trainings.WIDTH
    found = dict(line.strip().split(": ", 1) for line in lines if ": FID " in line)
    assert list(found) == [name for name, c in students(RECIPES).items() if c.seed == 0]
    assert found["cifar10-get-b"] == "FID 7.39 (STAT.md of locuslab/get)"
    assert found["digits"].endswith(" (measured: docs/measurements/digits)")
    assert {found[name].split()[1] for name in (*OURS, "smoke")} == {"-"}
