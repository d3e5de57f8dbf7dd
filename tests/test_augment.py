"""How the training images of a feature network are shifted."""

import pytest
import torch

from pipeline.recipes import RECIPES
from pipeline.recipes.recipe import classifiers
from pipeline.train_classifier import NOISE, augment


def shifted(background: float | None) -> set[tuple[int, ...]]:
    """Return every row seen in 40 augmentations of a picture of 1 (left) and 2 (right), rounded."""
    generator = torch.Generator().manual_seed(0)
    image = torch.tensor([[1.0, 1.0, 2.0, 2.0]] * 4)[None, None]
    return {
        tuple(row.round().int().tolist())
        for _ in range(40)
        for row in augment(image, background, generator)[0, 0]
    }


def test_the_background_moves_in() -> None:
    none, left, right = (1, 1, 2, 2), (1, 2, 2, -3), (-3, 1, 1, 2)
    assert shifted(-3.0) == {none, left, right, (-3, -3, -3, -3)}


def test_without_a_background_the_border_is_repeated() -> None:
    assert shifted(None) == {(1, 1, 2, 2), (1, 2, 2, 2), (1, 1, 1, 2)}


def test_the_noise_has_the_documented_deviation() -> None:
    images = torch.zeros(64, 3, 16, 16)
    noise = augment(images, None, torch.Generator().manual_seed(0))
    assert float(noise.std()) == pytest.approx(NOISE, rel=0.05)


def test_the_digits_have_the_background_the_shipped_network_saw() -> None:
    settings = classifiers(RECIPES)
    assert settings["digits"].background == -1
    assert settings["photos"].background is None
