"""Exponential moving average of a model's parameters."""

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from get.errors import InputError

Model = TypeVar("Model", bound=nn.Module)


class EMA(Generic[Model]):
    """Shadow copy e of a model's parameters w, e <- decay e + (1 - decay) w at every update.

    No warm-up and no bias correction, as in locuslab/get: the copy starts equal to the model.
    """

    def __init__(self, model: Model, decay: float) -> None:
        """Copy `model`; `decay` is in [0, 1)."""
        if not 0 <= decay < 1:
            raise InputError(f"expected an EMA decay in [0, 1), got {decay}")
        self.decay = decay
        self.model = copy.deepcopy(model)
        self.model.requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, model: Model) -> None:
        """Move the copy towards `model`'s parameters as they are now."""
        shadow: list[Tensor] = list(self.model.parameters())
        current: list[Tensor] = list(model.parameters())
        torch._foreach_lerp_(shadow, current, 1 - self.decay)
