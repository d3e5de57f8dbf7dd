"""Moving averages of a model's parameters: exponential, and by a power of the step."""

import copy
import math
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from get.errors import InputError
from get.power_functions import exponent

Model = TypeVar("Model", bound=nn.Module)


class EMA(Generic[Model]):
    """Shadow copy e of a model's parameters w, e <- decay e + (1 - decay) w at every update.

    The copy starts equal to the model, without bias correction, as in locuslab/get. With a ramp the
    half-life of the average is at most this share of the steps made (0.05 in NVlabs EDM), so that
    early weights are forgotten soon.
    """

    def __init__(self, model: Model, decay: float, ramp: float | None = None) -> None:
        """Copy `model`; `decay` is in [0, 1), and `ramp`, if there is one, above 0."""
        if not 0 <= decay < 1:
            raise InputError(f"expected an EMA decay in [0, 1), got {decay}")
        if ramp is not None and not 0 < ramp < math.inf:
            raise InputError(f"expected an EMA ramp above 0, got {ramp}")
        self.decay, self.ramp = decay, ramp
        self.model = _shadow(model)

    def update(self, model: Model, step: int | None = None) -> None:
        """Move the copy towards `model`'s parameters as they are now.

        Args:
            model: The model.
            step: Number of this update, counted from 1; a ramp needs it.
        """
        _move(self.model, model, self.decay_at(step))

    def decay_at(self, step: int | None) -> float:
        """Return the decay of an update."""
        if self.ramp is None:
            return self.decay
        if step is None:
            raise InputError("expected the number of the step for an EMA with a ramp, got none")
        return min(self.decay, 0.5 ** (1 / (self.ramp * step)))


class PowerEMA(Generic[Model]):
    """Average of a model's parameters w_1 ... w_t over all steps, later ones weighted more.

    e_t = beta_t e_(t-1) + (1 - beta_t) w_t with beta_t = (1 - 1/t)^(gamma + 1), so that w_s has the
    weight (s^(gamma + 1) - (s - 1)^(gamma + 1)) / t^(gamma + 1): its width grows with the training
    (Karras et al. 2023, section 3.1, arXiv:2312.02696). The initial weights have none.
    """

    def __init__(self, model: Model, sigma_rel: float) -> None:
        """Copy `model`; `sigma_rel` is the average's width as a share of the steps made.

        Raises:
            InputError: If it is not above 0 and at most 12^-0.5, that of the plain mean.
        """
        self.exponent = exponent(sigma_rel)
        self.model = _shadow(model)

    def update(self, model: Model, step: int) -> None:
        """Take `model`'s parameters as they are now into the average, at a step counted from 1."""
        _move(self.model, model, (1 - 1 / step) ** (self.exponent + 1))


def _shadow(model: Model) -> Model:
    """Return a copy that is not trained."""
    return copy.deepcopy(model).requires_grad_(False).eval()


@torch.no_grad()
def _move(shadow: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the parameters of one model towards those of the other."""
    averaged: list[Tensor] = list(shadow.parameters())
    current: list[Tensor] = list(model.parameters())
    torch._foreach_lerp_(averaged, current, 1 - decay)
