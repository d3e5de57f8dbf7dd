"""The image classifiers: an equilibrium one solves for its features, its twin computes them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data.real import Labelled, real_images
from get.equilibrium import Implicit, Outcome, Phantom
from get.errors import InputError
from get.models.image_classifier import (
    EquilibriumClassifier,
    ExplicitClassifier,
    ImageClassifier,
)
from pipeline.recipes import RECIPES
from pipeline.recipes.settings_classify import (
    ClassifierShape,
    EquilibriumShape,
    ImageClassifierConfig,
    image_classifiers,
)
from pipeline.training.classify import accuracy_of, training_of

from .problems import normal, seeded
from .processes import completed

SMALL: dict[str, Any] = {"width": 16, "heads": 2}
KINDS = pytest.mark.parametrize("kind", [EquilibriumClassifier, ExplicitClassifier])


def tiny(kind: type[ImageClassifier], **options) -> ImageClassifier:
    """Return a small classifier of grey 8x8 images with new weights."""
    torch.manual_seed(0)
    return kind(**{**SMALL, **options}).eval()


@KINDS
def test_logits_are_the_head_on_the_features_of_each_image_alone(kind: type[ImageClassifier]):
    model, images = tiny(kind), normal(5, channels=1)
    with torch.no_grad():
        features, logits = model.both(images)
        torch.testing.assert_close(model.classes(features), logits)
        torch.testing.assert_close(model(images[2:3]), logits[2:3])
    assert (features.shape, logits.shape) == ((5, 16), (5, 10))


@KINDS
def test_a_classifier_comes_back_from_its_folder(kind: type[ImageClassifier], tmp_path: Path):
    model, images = tiny(kind, num_classes=4), normal(3, channels=1)
    model.save_pretrained(tmp_path)
    again = kind.from_pretrained(tmp_path, use_safetensors=True)
    with torch.no_grad():
        assert again(images).equal(model(images))
    assert again.num_classes == 4


def contraction() -> EquilibriumClassifier:
    """Return an equilibrium classifier with small weights in the loop, which solves far."""
    torch.manual_seed(0)
    model = EquilibriumClassifier(**SMALL, max_steps=60, tol=1e-6)
    with torch.no_grad():
        for parameter in model.equilibrium_blocks.parameters():
            parameter.mul_(0.5)
    return model


def test_the_features_of_an_equilibrium_do_not_depend_on_where_the_solve_starts():
    model, images = contraction(), normal(4, channels=1)
    with torch.no_grad():
        cold = model.solve(images)
        warm = model.solve(images, z0=cold.z + 0.1 * torch.randn(cold.z.shape, generator=seeded(0)))
        again = model.equilibrium_map(cold.z, *model.problem(images).inputs)
    assert (cold.outcome == int(Outcome.CONVERGED)).all()
    torch.testing.assert_close(warm.z, cold.z, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(again, cold.z, rtol=1e-4, atol=1e-4)


def test_the_gradient_through_the_solved_state_is_close_to_the_implicit_one():
    model, images = contraction(), normal(4, channels=1)
    gradients = []
    for mode in (Implicit(), Phantom(steps=3, damping=1.0)):
        model.zero_grad()
        model.logits_of(model.solve(images, gradient=mode).z).square().sum().backward()
        found = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        gradients.append(torch.cat(found))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


@KINDS
def test_images_of_another_shape_are_refused(kind: type[ImageClassifier]):
    with pytest.raises(InputError, match=r"images of shape \(batch, 1, 8, 8\), got \(2, 3, 8, 8\)"):
        tiny(kind)(normal(2))


def settings(kind: type[ClassifierShape], **changes) -> ImageClassifierConfig:
    defaults: dict[str, Any] = {
        "max_train_steps": 60,
        "lr_warmup_steps": 5,
        "ema_decay": 0.8,
        "noise": 0.2,
    }
    return ImageClassifierConfig(
        output_dir=Path("unused"), model=kind(**SMALL), **{**defaults, **changes}
    )


@pytest.mark.parametrize("gradient", ["window", "phantom"])
def test_an_equilibrium_learns_the_digits_and_reports_its_residual(gradient):
    fast = {"learning_rate": 1e-2, "muon_learning_rate": 0.02, "global_batch_size": 24}
    config = settings(EquilibriumShape, gradient=gradient, max_train_steps=40, **fast)
    config = replace(config, model=EquilibriumShape(**SMALL, max_steps=6, tol=1e-2))
    *_, last = training_of(config, real_images("digits", "training"), every=40)
    assert accuracy_of(last.average, real_images("digits", "held_out")) > 0.2
    assert 0 < float(last.values["residual"]) < 0.5


def test_a_training_is_seen_every_so_many_steps_and_depends_on_its_seed_alone():
    data = real_images("digits", "training")
    few = Labelled(data.images[:40], data.labels[:40])
    short = settings(ClassifierShape, max_train_steps=5, global_batch_size=8, noise=0.0)
    runs = []
    for seed in (0, 0, 1):
        seen = [
            (p.steps, p.model.classes.weight.detach().clone())
            for p in training_of(replace(short, seed=seed), few, num_classes=10, every=2)
        ]
        assert [steps for steps, _ in seen] == [2, 4, 5]
        runs.append(torch.stack([weight for _, weight in seen]))
    assert runs[0].equal(runs[1])
    assert not runs[0].equal(runs[2])


def test_one_class_cannot_be_told_apart():
    one = Labelled(torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.long))
    with pytest.raises(InputError, match="at least two classes, got one"):
        next(training_of(settings(ClassifierShape), one))


def test_every_recipe_with_classes_has_both_classifiers():
    table = image_classifiers(RECIPES)
    assert {"digits", "digits-explicit", "photos", "photos-explicit"} <= table.keys()
    assert table["photos"].model.patch_size == 4
    assert len({config.output_dir for config in table.values()}) == len(table)


@pytest.mark.parametrize("name", ["digits", "digits-explicit"])
def test_the_script_leaves_a_classifier_with_metrics_and_a_card(name, tmp_path, here):
    few = "--max_train_steps", 4, "--log_steps", 2, "--model.width", 16, "--lr_warmup_steps", 1
    arguments = name, *few, "--output_dir", tmp_path
    completed(here("train_equilibrium_classifier", *arguments))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert {"loss", "accuracy", "residual", "grad_norm"} < lines[0].keys()
    card = json.loads((tmp_path / "card.json").read_text())
    assert 0 <= card["held_out_accuracy_with_noise"] <= 1
    assert ("evaluations" in card) == (name == "digits")
    assert "nothing to do" in completed(here("train_equilibrium_classifier", *arguments)).out
