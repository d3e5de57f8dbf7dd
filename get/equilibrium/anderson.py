"""Anderson acceleration: the mixture of the last states whose mixed residual is smallest."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Anderson:
    """Anderson acceleration, type II (Anderson 1965; Walker and Ni 2011, doi:10.1137/10078356X).

    With residuals g_i = f(z_i) - z_i of the last `memory` states, the weights a minimise
    |sum a_i g_i|^2 under sum a_i = 1, and z <- sum a_i ((1 - damping) z_i + damping f(z_i)).

    Attributes:
        memory: States remembered, at least 2.
        damping: Step length in (0, 1].
        ridge: Added to the diagonal of the Gram matrix of residuals, in units of its mean.
    """

    memory: int = 6
    damping: float = 1.0
    ridge: float = 1e-7

    def __post_init__(self) -> None:
        """Refuse settings that cannot mean anything."""
        if self.memory < 2 or not 0 < self.damping <= 1 or self.ridge < 0:
            raise ValueError(f"expected memory >= 2, damping in (0, 1] and ridge >= 0, got {self}")

    def init(self, z: Tensor) -> tuple[Tensor, ...]:
        """Return no states and no residuals yet."""
        empty = z.new_empty(len(z), 0, z.shape[1])
        return empty, empty

    def step(
        self, z: Tensor, fz: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the mixed state; the first step is a damped plain one."""
        states, residuals = (
            torch.cat([old[:, -self.memory + 1 :], new[:, None]], dim=1)
            for old, new in zip(state, (z, fz - z), strict=True)
        )
        gram = residuals @ residuals.mT
        scale = gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(torch.finfo(z.dtype).tiny)
        gram = gram / scale[:, None, None]
        gram = gram + self.ridge * torch.eye(gram.shape[1], dtype=z.dtype, device=z.device)
        ones = torch.ones_like(gram[:, :, :1])
        weights, _ = torch.linalg.solve_ex(gram, ones)
        weights = weights / weights.sum(1, keepdim=True)
        mixed = (weights * (states + self.damping * residuals)).sum(1)
        return mixed, (states, residuals)
