"""How a fixed-point solve is differentiated, chosen by name and never silently another one."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True, kw_only=True)
class Unrolled:
    """Backpropagate through every evaluation of f, as GET is trained (arXiv:2401.08639).

    Attributes:
        checkpoint: Store only the state of each iteration and recompute the inside of f in the
            backward pass: same gradients, one more evaluation each, far less memory.
    """

    checkpoint: bool = False

    def apply(self, f: Callable[..., Tensor], z: Tensor, *inputs: Tensor) -> Tensor:
        """Return f(z, *inputs), differentiable as this mode says."""
        if self.checkpoint and torch.is_grad_enabled():
            return checkpoint(f, z, *inputs, use_reentrant=False)
        return f(z, *inputs)
