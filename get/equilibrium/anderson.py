"""Anderson acceleration: mixes the last states so that their mixed residual is smallest."""

from dataclasses import dataclass

import torch
from torch import Tensor

from get.equilibrium.vectors import combine, dots, put, wide


@dataclass(frozen=True, kw_only=True)
class Anderson:
    """Anderson acceleration, type II (Anderson 1965; Walker and Ni 2011, doi:10.1137/10078356X).

    With residuals g_i = f(z_i) - z_i of the last `memory` states, the weights a minimise
    |sum a_i g_i|^2 under sum a_i = 1, and z <- sum a_i ((1 - damping) z_i + damping f(z_i)).

    Attributes:
        memory: Number of states remembered, at least 2.
        damping: Step length in (0, 1].
        ridge: Added to the diagonal of the Gram matrix of residuals, in units of its mean; at least
            1e-12, without which residuals that depend on each other have no mixture.
        restart: A sample whose residual has grown clears its memory and takes a plain step. Without
            this the method stalls on trained GETs (docs/log.md); with it, it cannot find a
            repelling fixed point.
    """

    memory: int = 6
    damping: float = 1.0
    ridge: float = 1e-7
    restart: bool = True

    def __post_init__(self) -> None:
        """Refuse settings that cannot mean anything."""
        if self.memory < 2 or not 0 < self.damping <= 1 or not self.ridge >= 0:
            raise ValueError(f"expected memory >= 2, damping in (0, 1] and ridge >= 0, got {self}")

    def init(self, z: Tensor, max_steps: int) -> tuple[Tensor, ...]:
        """Return the empty memory.

        That is ring buffers of targets t_i = (1 - damping) z_i + damping f(z_i) and of residuals
        g_i, the Gram matrix of the residuals, and for every slot 1 if it is in use, else 0.
        """
        (batch, dimension), dtype = z.shape, wide(z.dtype)
        memory = min(self.memory, max_steps)
        targets, residuals = (z.new_empty(batch, memory, dimension, dtype=dtype) for _ in range(2))
        gram = z.new_zeros(batch, memory, memory, dtype=dtype)
        return targets, residuals, gram, z.new_zeros(batch, memory, dtype=dtype)

    def step(
        self, k: int, z: Tensor, fz: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the mixed state; the first step is a damped plain one."""
        targets, residuals, gram, counts = state
        dtype, memory = z.dtype, targets.shape[1]
        z, fz = z.to(targets.dtype), fz.to(targets.dtype)

        # Store target and residual in the oldest slot.
        g, here, before, known = fz - z, k % memory, (k - 1) % memory, min(k + 1, memory)
        target = fz if self.damping == 1 else z + self.damping * g
        targets, residuals = put(targets, here, target), put(residuals, here, g)

        # Update row and column of the Gram matrix G_ij = g_i . g_j.
        products = torch.zeros_like(counts)
        products[:, :known] = dots(residuals[:, :known], g)
        gram = put(put(gram, here, products), here, products, dim=2)
        squares = gram.diagonal(dim1=1, dim2=2)

        # Restart: where |g| has grown since the last step, only the new slot stays in use.
        if self.restart and k:
            counts = counts * (squares[:, here] <= squares[:, before])[:, None]
        counts = put(counts, here, torch.ones_like(counts[:, 0]))

        # Minimise a^T G a under sum a = 1: solve (G / scale + ridge I) a = 1, then divide by sum a.
        # Slots not in use get the equation 1 * a_i = 0.
        # In float64, because the matrix is often singular to the last bits of float32.
        scale = squares.sum(1) / known
        scale = torch.where(scale > torch.finfo(z.dtype).tiny, scale, 1)
        both = counts[:, :, None] * counts[:, None]
        identity = torch.eye(memory, dtype=torch.float64, device=z.device)
        system = (gram / scale[:, None, None]).double() + max(self.ridge, 1e-12) * identity
        system = torch.where(both > 0, system, identity)
        weights, _ = torch.linalg.solve_ex(system, counts[:, :, None].double())
        weights = (weights[:, :, 0] / weights.sum(1))[:, :known].to(z.dtype)

        # The next state is the same mixture of the targets.
        mixture = combine(weights, targets[:, :known]).to(dtype)
        return mixture, (targets, residuals, gram, counts)
