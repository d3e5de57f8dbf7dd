"""The Frechet distance as a training loss: its value, its gradient, its place in a training."""

import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data import SHIPPED
from get.errors import InputError
from get.frechet import FrechetLoss, with_pixels
from get.metrics import frechet_distance
from get.metrics.classifier import Classifier
from pipeline.recipes import RECIPES
from pipeline.recipes.settings_train import TrainConfig
from pipeline.training.step import TrainingStep

from .problems import seeded, tiny_get
from .processes import completed
from .runs import assert_same, checkpoints, metrics, writing

DIMENSIONS = 4  # images of 2x2 pixels are their own features


def vectors(count: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    mix = torch.randn(DIMENSIONS, DIMENSIONS, generator=seeded(9))
    made = torch.randn(count, DIMENSIONS, generator=seeded(seed)) @ mix + shift
    return made.reshape(count, 1, 2, 2)


def flat(images: torch.Tensor) -> torch.Tensor:
    return images.flatten(1)


def distance_from(reference: torch.Tensor) -> FrechetLoss:
    return FrechetLoss(flat, reference.mean(0), torch.cov(reference.double().T, correction=0))


def test_the_value_is_the_frechet_distance_of_all_images_seen():
    made, reference = vectors(5000, 1, shift=0.3), vectors(5000, 2)
    loss = distance_from(flat(reference))
    for i, part in enumerate(made.split(500)):
        loss(part)
        loss.update(1 / (i + 1))
    value = float(loss(made[:2]))
    assert value == pytest.approx(
        frechet_distance(flat(made).double(), flat(reference).double()), rel=2e-3
    )


def test_the_gradient_is_that_of_the_distance_of_a_batch_if_nothing_older_counts():
    made = vectors(400, 1, shift=0.3).requires_grad_()
    loss = distance_from(flat(vectors(4000, 2)))
    loss(made)
    loss.update(1.0)
    (found,) = torch.autograd.grad(loss(made), made)
    exact = flat(made).detach().double().requires_grad_()
    mean, second = exact.mean(0), exact.T @ exact / len(exact)
    (expected,) = torch.autograd.grad(loss.distance(mean, second), exact)
    torch.testing.assert_close(flat(found).double(), expected, rtol=1e-4, atol=1e-7)


def test_descent_makes_the_distributions_alike():
    made = vectors(2000, 1, shift=0.5).requires_grad_()
    reference = flat(vectors(2000, 2)).double()
    loss = distance_from(reference)
    before = frechet_distance(flat(made).detach().double(), reference)
    for _ in range(200):
        value = loss(made)
        (gradient,) = torch.autograd.grad(value, made)
        loss.update(1.0)
        made = (made - 100 * gradient).detach().requires_grad_()
    after = frechet_distance(flat(made).detach().double(), reference)
    assert after < 0.02 * before


def test_micro_steps_update_the_averages_once_with_their_mean():
    whole, parts = (distance_from(flat(vectors(50, 2))) for _ in range(2))
    images = vectors(40, 1)
    whole(images)
    for part in images.split(10):
        parts(part)
    for loss in (whole, parts):
        loss.update(0.25)
    torch.testing.assert_close(parts.moments.state_dict(), whole.moments.state_dict())


def test_pixels_are_compared_beside_features_at_the_size_of_a_small_image():
    images = torch.rand(5, 3, 16, 16) * 2 - 1
    assert with_pixels(flat, 0.0) is flat
    both = with_pixels(flat, 2.0)(images)
    assert both.shape == (5, 3 * 16 * 16 + 3 * 8 * 8)
    torch.testing.assert_close(both[:, : 3 * 16 * 16], flat(images))
    means = images.unflatten(3, (8, 2)).unflatten(2, (8, 2)).mean((3, 5))
    torch.testing.assert_close(both[:, 3 * 16 * 16 :], 2 * means.flatten(1))
    assert with_pixels(flat, 1.0)(images[..., :4, :4]).shape == (5, 2 * 3 * 4 * 4)


def test_moments_are_collected_first_then_the_distance_counts():
    config = TrainConfig(
        output_dir=Path(),
        pairs="",
        feature_network=SHIPPED / "digits-features",
        real_images="digits",
        max_train_steps=20,
        global_batch_size=10,
        frechet_weight=0.5,
        frechet_steps=8,
        frechet_images=30,
        lr_scheduler="linear",
    )
    step = TrainingStep(config, tiny_get())
    weights = [step.frechet_weight(number) for number in range(20)]
    assert weights == [None] * 9 + [0.0] * 3 + [0.5] * 8
    rates = []
    for _ in range(20):
        rates.append(step.updates.schedulers[0].get_last_lr()[0] / config.learning_rate)
        step.updates()
    assert rates[11] < 0.5  # the end of the schedule
    assert rates[12:] == pytest.approx([0.05 * (8 - i) / 8 for i in range(8)])


def test_settings_that_do_not_fit_are_refused():
    student = RECIPES["digits"].students["digits"]
    with pytest.raises(InputError, match="expected feature_network for frechet_weight, got none"):
        replace(student, feature_network=None, real_images=None, frechet_weight=0.1)
    with pytest.raises(InputError, match="expected max_train_steps of 1313 or more"):
        replace(student, frechet_weight=0.1, max_train_steps=1312)


@pytest.fixture(scope="module")
def frechet(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """Settings of a training with the distance, in the features of a network for the pairs."""
    folder = tmp_path_factory.mktemp("network")
    Classifier(image_size=4, channels=1, width=4, features=8).save_pretrained(folder)
    settings = "--frechet_weight", 0.01, "--frechet_steps", 8, "--frechet_images", 32
    settings = *settings, "--frechet_pixels", 2.0
    return *settings, "--frechet_reference", "teacher", "--feature_network", folder


def test_a_killed_training_with_the_distance_ends_with_the_same_bits(
    train, pairs, frechet, tmp_path
):
    run, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    completed(train(undisturbed, "--pairs", pairs, *frechet))
    killed = train(run, "--pairs", pairs, *frechet, at=writing(12))
    assert (killed.codes, checkpoints(run)) == ([-signal.SIGKILL], [4, 8])
    completed(train(run, "--pairs", pairs, *frechet))
    assert_same(run, undisturbed)
    shown = [line["step"] for line in metrics(run) if "frechet" in line]
    assert shown == [*range(5, 13)]  # two steps without, two of 16 images collect


def test_two_processes_average_the_same_moments(train, pairs, frechet, tmp_path):
    found = []
    for processes in (1, 2):
        run = tmp_path / f"{processes}"
        log = "--log_steps", 3  # the distance joins between two logged steps
        completed(train(run, "--pairs", pairs, *frechet, *log, processes=processes))
        found.append([line["frechet"] for line in metrics(run) if "frechet" in line])
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_images_of_another_shape_than_the_network_takes_are_one_line(train, pairs, tmp_path):
    photos = ("--feature_network", SHIPPED / "photos-features", "--real_images", "photos")
    short = "--frechet_weight", 0.01, "--frechet_steps", 4, "--frechet_images", 16
    wrong = train(tmp_path / "run", "--pairs", pairs, *photos, *short)
    assert wrong.codes == [2]
    assert "expected images of" in wrong.err.splitlines()[-1]
