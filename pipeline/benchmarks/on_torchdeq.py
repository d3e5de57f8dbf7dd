"""A GET solved by torchdeq, as the code of its paper solves it: what `train.py` compares with."""

import torch
from torch import Tensor

from get.losses import IterateLoss, Losses
from get.models import GET, Rollout


class OnTorchdeq(IterateLoss):
    """The same GET and loss on torchdeq: six unrolled steps.

    Arguments as in locuslab/get: no solver steps, then `grad 6`, a state after each (`sup_gap 1`).
    """

    def __init__(self, model: GET, *, recompute: bool = False) -> None:
        """Wrap a model of the plain map.

        Args:
            model: The model to train.
            recompute: Compute blocks again in the backward pass, as `--mem` does there.
        """
        from torchdeq import get_deq

        super().__init__(model)
        self.get, self.recompute = model, recompute
        self.deq = get_deq(f_max_iter=0, grad=[model.iterations], sup_gap=1)

    def forward(
        self,
        noise: Tensor,
        labels: Tensor | None,
        target: Tensor,
        z0: Tensor | None = None,
        penalty_draws: int = 0,
        generator: torch.Generator | None = None,
        rollout: Rollout | None = None,
        frechet_weight: float | None = None,
    ) -> Losses:
        """Return the loss of every iterate; there is nothing else."""
        from torchdeq.utils import mem_gc

        start, (_, *injections) = self.get.problem(noise, labels, z0)

        def f(z: Tensor) -> Tensor:
            for block, u in zip(self.get.equilibrium_blocks, injections, strict=True):
                z = mem_gc(block, (z, u)) if self.recompute else block(z, u)
            return z

        states, _ = self.deq(f, start)
        return Losses(torch.stack([self.loss(self.get.image_of(z), target) for z in states]), None)
