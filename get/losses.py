"""Training objective: a pixel loss on every iterate, weighted geometrically towards the last.

`IterateLoss` is the module that DDP wraps: calling another method of an unwrapped model would
leave gradients unsynchronised, silently.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from get.models import GET, ViT

PixelLoss = Literal["l1", "l2"]


class Losses(NamedTuple):
    """What one training call returns.

    Attributes:
        iterates: Mean loss of each iterate, first to last.
        residual: Mean relative residual of the last iteration; None for a ViT.
    """

    iterates: Float[Tensor, " iterates"]
    residual: Float[Tensor, ""] | None


class IterateLoss(nn.Module):
    """A model and its pixel loss as one module whose forward returns per-iterate losses."""

    def __init__(self, model: GET | ViT, loss: PixelLoss = "l1") -> None:
        """Wrap `model`; "l1" is the mean absolute, "l2" the mean squared difference."""
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(
        self,
        noise: Float[Tensor, "batch channels side side"],
        labels: Int[Tensor, " batch"] | None,
        target: Float[Tensor, "batch channels side side"],
        z0: Float[Tensor, "batch tokens width"] | None = None,
    ) -> Losses:
        """Return the loss of every iterate against the teacher's image.

        Args:
            noise: Unit normal noise.
            labels: Class indices, or None for an unconditional model.
            target: The teacher's images of that noise, in [-1, 1].
            z0: Start of the iteration, for a GET whose `z0` policy is "normal".
        """
        if isinstance(self.model, GET):
            images, residual = self.model.trajectory(noise, labels, z0=z0)
        else:
            images, residual = self.model.trajectory(noise, labels)
        difference = images - target
        error = difference.abs() if self.loss == "l1" else difference.square()
        return Losses(error.flatten(1).mean(1), residual)


def geometric_weights(count: int, decay: float) -> Float[Tensor, " iterates"]:
    """Return decay^(count - k) for k = 1 .. count, so the last weight is 1 (GET uses 0.8)."""
    return decay ** torch.arange(count - 1, -1, -1, dtype=torch.float32)
