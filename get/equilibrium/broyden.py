"""Broyden's good method with limited memory: a quasi-Newton search for a root of f(z) - z."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Broyden:
    """Broyden's good method (Broyden 1965; for equilibrium models Bai et al., arXiv:1909.01377).

    With g(z) = f(z) - z, dz and dg the last changes, the inverse Jacobian of g is kept as
    B = -I + U V^T and updated by B + (dz - B dg) (dz^T B) / (dz^T B dg); z <- z - B g.

    Attributes:
        memory: Rank-one updates remembered. When they are full the memory starts anew from -I:
            dropping single updates would break those that were built on them.
    """

    memory: int = 30

    def __post_init__(self) -> None:
        """Refuse an empty memory."""
        if self.memory < 1:
            raise ValueError(f"expected memory of at least 1, got {self.memory}")

    def init(self, z: Tensor) -> tuple[Tensor, ...]:
        """Return no updates, and no step to learn from."""
        empty = z.new_empty(len(z), 0, z.shape[1])
        return empty, empty, torch.full_like(z, torch.nan), torch.full_like(z, torch.nan)

    def step(
        self, z: Tensor, fz: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the quasi-Newton step; the first one is plain."""
        us, vs, z_before, g_before = state
        g = fz - z
        if us.shape[1] == self.memory:
            us, vs = us[:, :0], vs[:, :0]
        dz, dg = z - z_before, g - g_before
        inverse_dg = -dg + _apply(us, vs, dg)
        v = -dz + _apply(vs, us, dz)  # dz^T B
        denominator = (v * dg).sum(1, keepdim=True)
        u = (dz - inverse_dg) / denominator
        # No update on the first step (nan) and where the curvature vanishes.
        usable = torch.isfinite(u).all(1, keepdim=True)
        us = torch.cat([us, torch.where(usable, u, 0)[:, None]], dim=1)
        vs = torch.cat([vs, torch.where(usable, v, 0)[:, None]], dim=1)
        return z + g - _apply(us, vs, g), (us, vs, z, g)


def _apply(left: Tensor, right: Tensor, x: Tensor) -> Tensor:
    """Return left (right^T x) for vectors x (batch, dimension) and stacked rows."""
    return (left.mT @ (right @ x[:, :, None]))[:, :, 0]
