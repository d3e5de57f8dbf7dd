"""Broyden's good method with limited memory: a quasi-Newton search for a root of f(z) - z."""

from dataclasses import dataclass

import torch
from torch import Tensor

from get.equilibrium.iterate import combine, dots, put


@dataclass(frozen=True, kw_only=True)
class Broyden:
    """Broyden's good method (Broyden 1965; for equilibrium models Bai et al., arXiv:1909.01377).

    With g(z) = f(z) - z and H the negative inverse Jacobian of g, begun at I, a step is s = H g.
    H is never formed: it is the product of (I + s_(j+1) s_j^T / |s_j|^2) over the steps taken
    (Kelley 1995, Iterative Methods for Linear and Nonlinear Equations, section 7.3), so a step
    costs one stored vector, half of the usual two.

    Attributes:
        memory: Steps remembered. When they are full the memory starts anew from I: dropping
            single steps would break those that were built on them.
    """

    memory: int = 30

    def __post_init__(self) -> None:
        """Refuse a memory that cannot hold a secant."""
        if self.memory < 2:
            raise ValueError(f"expected memory of at least 2, got {self.memory}")

    def init(self, z: Tensor, max_steps: int) -> tuple[Tensor, ...]:
        """Return an empty memory: steps, their inner products, marks of those that count."""
        batch, dimension = z.shape
        memory = min(self.memory, max_steps)
        steps = z.new_empty(batch, memory, dimension)
        return steps, z.new_zeros(batch, memory, memory), z.new_zeros(batch, memory)

    def step(
        self, k: int, z: Tensor, fz: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the quasi-Newton step; the first one, and one that cannot be made, are plain."""
        steps, gram, counts = state
        g, n = fz - z, k % steps.shape[1]
        if n == 0:
            s, counts = g, torch.zeros_like(counts)
        else:
            # c_j = s_j^T H_j g / |s_j|^2 for j < n, one after the other: a triangular system.
            known = gram[:, :n, :n]
            squares = known.diagonal(dim1=1, dim2=2).clamp_min(torch.finfo(z.dtype).tiny)
            system = torch.tril(-known.roll(-1, dims=2), -1) + torch.diag_embed(squares)
            right = (counts[:, :n] * dots(steps[:, :n], g))[:, :, None]
            c = torch.linalg.solve_triangular(system, right, upper=False)[:, :, 0]
            s = (g + combine(c[:, :-1], steps[:, 1:n])) / (1 - c[:, -1:])
            usable = torch.isfinite(s).all(1, keepdim=True)
            s, counts = torch.where(usable, s, g), counts * usable
        steps, counts = put(steps, n, s), put(counts, n, torch.ones_like(counts[:, 0]))
        products = torch.zeros_like(counts)
        products[:, : n + 1] = counts[:, : n + 1] * dots(steps[:, : n + 1], s)
        return z + s, (steps, put(gram, n, products), counts)
