"""Training objective: a pixel loss on every iterate, weighted geometrically towards the last.

`IterateLoss` is the module that DDP wraps: calling another method of an unwrapped model would
leave gradients unsynchronised, silently.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from get.equilibrium import jacobian_penalty
from get.errors import InputError
from get.models import GET, Equilibrium, ViT

PixelLoss = Literal["l1", "l2"]


class Losses(NamedTuple):
    """What one training call returns.

    Attributes:
        iterates: Mean loss of each iterate, first to last.
        residual: Mean relative residual of the last state; None for a ViT.
        penalty: Mean Jacobian penalty |df/dz|_F^2 / d at the last state; None if not asked for.
    """

    iterates: Float[Tensor, " iterates"]
    residual: Float[Tensor, ""] | None
    penalty: Float[Tensor, ""] | None = None

    def total(self, decay: float, penalty_weight: float = 0.0) -> Float[Tensor, ""]:
        """Return the training loss: iterates by `geometric_weights`, and the penalty if any."""
        loss = self.iterates @ geometric_weights(len(self.iterates), decay).to(self.iterates)
        return loss if self.penalty is None else loss + penalty_weight * self.penalty


class IterateLoss(nn.Module):
    """A model and its pixel loss as one module whose forward returns per-iterate losses."""

    def __init__(
        self,
        model: GET | ViT,
        loss: PixelLoss = "l1",
        *,
        iterations: int | None = None,
        equilibrium: Equilibrium | None = None,
    ) -> None:
        """Wrap `model`.

        Args:
            model: The model to train.
            loss: "l1" is the mean absolute, "l2" the mean squared difference.
            iterations: Iterates of a GET with a loss each; None takes the model's number.
            equilibrium: How a GET goes on to its converged state, which gets the last loss; None
                ends with the last iterate.

        Raises:
            InputError: If a ViT is given either: it solves nothing.
        """
        super().__init__()
        if not isinstance(model, GET) and (equilibrium, iterations) != (None, None):
            raise InputError("expected a GET for an equilibrium, got a ViT; it has no fixed point")
        self.model = model
        self.loss = loss
        self.iterations, self.equilibrium = iterations, equilibrium

    def forward(
        self,
        noise: Float[Tensor, "batch channels side side"],
        labels: Int[Tensor, " batch"] | None,
        target: Float[Tensor, "batch channels side side"],
        z0: Float[Tensor, "batch tokens width"] | None = None,
        penalty_draws: int = 0,
        generator: torch.Generator | None = None,
    ) -> Losses:
        """Return the loss of every iterate against the teacher's image.

        Args:
            noise: Unit normal noise.
            labels: Class indices, or None for an unconditional model.
            target: The teacher's images of that noise, in [-1, 1].
            z0: Start of the iteration, for a GET whose `z0` policy is "normal".
            penalty_draws: Random vectors of the Jacobian penalty; 0 does not compute it.
            generator: Source of those vectors.
        """
        if isinstance(self.model, GET):
            found = self.model.trajectory(
                noise, labels, iterations=self.iterations, z0=z0, equilibrium=self.equilibrium
            )
        else:
            found = self.model.trajectory(noise, labels)
        difference = found.images - target
        error = difference.abs() if self.loss == "l1" else difference.square()
        penalty = None
        if penalty_draws and isinstance(self.model, GET):
            with sdpa_kernel(SDPBackend.MATH):  # the one attention that differentiates twice
                penalty = jacobian_penalty(
                    self.model.equilibrium_map,
                    found.states[-1],
                    inputs=found.inputs,
                    draws=penalty_draws,
                    generator=generator,
                ).mean()
        return Losses(error.flatten(1).mean(1), found.residual, penalty)


def geometric_weights(count: int, decay: float) -> Float[Tensor, " iterates"]:
    """Return decay^(count - k) for k = 1 .. count, so the last weight is 1 (GET uses 0.8)."""
    return decay ** torch.arange(count - 1, -1, -1, dtype=torch.float32)
