"""Broyden's good method with limited memory: a quasi-Newton search for a root of f(z) - z."""

from dataclasses import dataclass

import torch
from torch import Tensor

from get.equilibrium.vectors import combine, dots, put, wide


@dataclass(frozen=True, kw_only=True)
class Broyden:
    """Broyden's good method (Broyden 1965; for equilibrium models Bai et al., arXiv:1909.01377).

    With g(z) = f(z) - z and H an estimate of the negative inverse Jacobian of g, at first I, a step
    is s = H g. H is never formed: it is the product of (I + s_(j+1) s_j^T / |s_j|^2) over all steps
    so far (Kelley 1995, Iterative Methods for Linear and Nonlinear Equations, section 7.3), so a
    step needs one stored vector instead of the usual two.

    Attributes:
        memory: Number of steps remembered. A full memory is cleared and H starts again at I: later
            steps depend on earlier ones, so single steps cannot be dropped.
    """

    memory: int = 30

    def __post_init__(self) -> None:
        """Refuse a memory too small for one update of H, which takes two steps."""
        if self.memory < 2:
            raise ValueError(f"expected memory of at least 2, got {self.memory}")

    def init(self, z: Tensor, max_steps: int) -> tuple[Tensor, ...]:
        """Return the empty memory.

        That is the steps s_j, a matrix with the products s_i . s_j of every step with those before
        it, and for every slot 1 if it is in use, else 0.
        """
        (batch, dimension), dtype = z.shape, wide(z.dtype)
        memory = min(self.memory, max_steps)
        steps = z.new_empty(batch, memory, dimension, dtype=dtype)
        gram = z.new_zeros(batch, memory, memory, dtype=dtype)
        return steps, gram, z.new_zeros(batch, memory, dtype=dtype)

    def step(
        self, k: int, z: Tensor, fz: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return z + s; s is a plain step g at first and where no other is finite."""
        steps, gram, counts = state
        dtype, n = z.dtype, k % steps.shape[1]
        z, fz = z.to(steps.dtype), fz.to(steps.dtype)
        g = fz - z
        if n == 0:  # a new memory: H = I
            s, counts = g, torch.zeros_like(counts)
        else:
            # With H_j the product of the first j factors, H_(j+1) g = H_j g + c_j s_(j+1), where
            # c_j = s_j . H_j g / |s_j|^2 = (s_j . g + sum_(i<j) c_i s_j . s_(i+1)) / |s_j|^2.
            # That is a lower triangular system for c; slots not in use get a right side of 0.
            known = gram[:, :n, :n]
            squares = known.diagonal(dim1=1, dim2=2).clamp_min(torch.finfo(z.dtype).tiny)
            system = torch.tril(-known.roll(-1, dims=2), -1) + torch.diag_embed(squares)
            right = (counts[:, :n] * dots(steps[:, :n], g))[:, :, None]
            c = torch.linalg.solve_triangular(system, right, upper=False)[:, :, 0]
            # The last factor contains the new step s = s_n itself:
            # s = g + sum_(j<n-1) c_j s_(j+1) + c_(n-1) s, which is solved for s.
            s = (g + combine(c[:, :-1], steps[:, 1:n])) / (1 - c[:, -1:])
            # A sample whose step is not finite takes a plain step and clears its memory.
            usable = torch.isfinite(s).all(1, keepdim=True)
            s, counts = torch.where(usable, s, g), counts * usable

        # Store the step and its inner products with itself and those before.
        steps, counts = put(steps, n, s), put(counts, n, torch.ones_like(counts[:, 0]))
        products = torch.zeros_like(counts)
        products[:, : n + 1] = counts[:, : n + 1] * dots(steps[:, : n + 1], s)
        return (z + s).to(dtype), (steps, put(gram, n, products), counts)
