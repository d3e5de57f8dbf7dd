"""Exponential moving average of a model's parameters."""

import copy
import math
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from get.errors import InputError

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
        self.model = copy.deepcopy(model)
        self.model.requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, model: Model, step: int | None = None) -> None:
        """Move the copy towards `model`'s parameters as they are now.

        Args:
            model: The model.
            step: Number of this update, counted from 1; a ramp needs it.
        """
        shadow: list[Tensor] = list(self.model.parameters())
        current: list[Tensor] = list(model.parameters())
        torch._foreach_lerp_(shadow, current, 1 - self.decay_at(step))

    def decay_at(self, step: int | None) -> float:
        """Return the decay of an update."""
        if self.ramp is None:
            return self.decay
        if step is None:
            raise InputError("expected the number of the step for an EMA with a ramp, got none")
        return min(self.decay, 0.5 ** (1 / (self.ramp * step)))
