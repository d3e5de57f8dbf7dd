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
        restart: A sample whose residual has grown forgets its past and takes a plain step. Without
            it the method stalls on trained GETs (docs/log.md); with it, it cannot find a fixed
            point that plain steps flee from.
    """

    memory: int = 6
    damping: float = 1.0
    ridge: float = 1e-7
    restart: bool = True

    def __post_init__(self) -> None:
        """Refuse settings that cannot mean anything."""
        if self.memory < 2 or not 0 < self.damping <= 1 or self.ridge < 0:
            raise ValueError(f"expected memory >= 2, damping in (0, 1] and ridge >= 0, got {self}")

    def init(self, z: Tensor) -> tuple[Tensor, ...]:
        """Return no states, no residuals, and no marks of those that still count."""
        empty = z.new_empty(len(z), 0, z.shape[1])
        return empty, empty, z.new_empty(len(z), 0)

    def step(
        self, z: Tensor, fz: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the mixed state; the first step is a damped plain one."""
        states, residuals, counts = (
            torch.cat([old[:, -self.memory + 1 :], new[:, None]], dim=1)
            for old, new in zip(state, (z, fz - z, z.new_ones(len(z))), strict=True)
        )
        gram = residuals @ residuals.mT
        squares = gram.diagonal(dim1=1, dim2=2)
        if self.restart and squares.shape[1] > 1:
            shrank = (squares[:, -1:] <= squares[:, -2:-1]).to(z.dtype)
            counts = torch.cat([counts[:, :-1] * shrank, counts[:, -1:]], dim=1)
        scale = squares.mean(1).clamp_min(torch.finfo(z.dtype).tiny)
        both = counts[:, :, None] * counts[:, None]
        identity = torch.eye(gram.shape[1], dtype=z.dtype, device=z.device)
        # What no longer counts is cut out: weight 0 from the equation 1 * weight = 0.
        gram = torch.where(both > 0, gram / scale[:, None, None] + self.ridge * identity, identity)
        weights, _ = torch.linalg.solve_ex(gram, counts[:, :, None])
        weights = weights / weights.sum(1, keepdim=True)
        mixed = (weights * (states + self.damping * residuals)).sum(1)
        return mixed, (states, residuals, counts)
