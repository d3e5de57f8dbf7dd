"""A GET solved by torchdeq as the paper's code solves it: what benchmark_train.py compares with."""

import torch
from torch import Tensor, nn

from get.losses import Losses
from get.models import GET


class OnTorchdeq(nn.Module):
    """The same GET and loss on torchdeq, as the paper's code solves it: six unrolled steps.

    Arguments of locuslab/get: no solver steps, then `grad 6`, a state after each (`sup_gap 1`).
    """

    def __init__(self, model: GET, *, recompute: bool = False) -> None:
        """Wrap a model of the plain map; `recompute` is `--mem`: blocks again in the backward."""
        from torchdeq import get_deq

        super().__init__()
        self.model, self.recompute = model, recompute
        self.deq = get_deq(f_max_iter=0, grad=[model.iterations], sup_gap=1)

    def forward(
        self, noise: Tensor, labels: Tensor | None, target: Tensor, z0: Tensor | None
    ) -> Losses:
        """Return the loss of every iterate, like IterateLoss."""
        from torchdeq.utils import mem_gc

        start, (_, *injections) = self.model.problem(noise, labels, z0)

        def f(z: Tensor) -> Tensor:
            for block, u in zip(self.model.equilibrium_blocks, injections, strict=True):
                z = mem_gc(block, (z, u)) if self.recompute else block(z, u)
            return z

        states, _ = self.deq(f, start)
        images = torch.stack([self.model.decode(z) for z in states])
        return Losses((images - target).abs().flatten(1).mean(1), None)
