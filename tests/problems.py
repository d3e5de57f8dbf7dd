"""Tiny real models that several tests share."""

from typing import TypeVar

import jaxtyping
import pytest
import torch
from torch import Tensor, nn

from data.teachers.settings import Execution, Sampler
from data.teachers.teacher import Teacher
from get.models import GET, ViT

Model = TypeVar("Model", bound=nn.Module)


def seeded(seed: int) -> torch.Generator:
    """Return a new CPU generator."""
    return torch.Generator().manual_seed(seed)


def shake(model: Model, seed: int = 0) -> Model:
    """Give every trainable parameter a random value: new models output zero, whatever is wrong."""
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2, generator=generator)
    return model


def tiny_get(**options) -> GET:
    """Return a GET of 8x8 images: two heads, one injection and two equilibrium blocks."""
    defaults = {"image_size": 8, "width": 16, "depth": 1, "equilibrium_depth": 2, "heads": 2}
    return shake(GET(**(defaults | options)))


def tiny_vit(**options) -> ViT:
    """Return a ViT of 8x8 images: two heads, two blocks."""
    defaults = {"image_size": 8, "width": 16, "depth": 2, "heads": 2}
    return shake(ViT(**(defaults | options)))


def normal(count: int, channels: int = 3, seed: int = 1) -> Tensor:
    """Return unit normal noise for the models above."""
    return torch.randn(count, channels, 8, 8, generator=seeded(seed))


def contraction(dimension: int, norm: float, seed: int = 0) -> Tensor:
    """Return a random matrix of this spectral norm."""
    a = torch.randn(dimension, dimension, generator=seeded(seed)).double()
    return norm * a / torch.linalg.matrix_norm(a, 2)


def tanh_layer(z: Tensor, x: Tensor, w: Tensor) -> Tensor:
    """Return the layer tanh(w z + x), whose iteration contracts where w does."""
    return torch.tanh(z @ w.T + x)


class Softsign(Teacher):
    """A teacher in closed form: (x + label) / (1 + |x + label|), the same bits in any batch."""

    evaluations = 3
    fingerprint = "softsign"
    execution = Execution()
    vae_source = None

    def __init__(self, *, channels: int = 1, num_classes: int | None = 10) -> None:
        self.image_shape = (channels, 4, 4)
        self.num_classes = num_classes
        self.sampler = Sampler(steps=2)

    def __call__(self, noise: Tensor, labels: Tensor | None) -> Tensor:
        x = noise if labels is None else noise + labels.view(-1, 1, 1, 1)
        return x / (1 + x.abs())


@pytest.fixture
def as_users_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch off the type checker of the test run, which would refuse bad arguments first."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
