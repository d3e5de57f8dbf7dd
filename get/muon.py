"""Muon: momentum with orthogonal update matrices, for the weight matrices inside a network.

torch.optim.Muon does the same for one matrix at a time in bfloat16, which costs a small GET on a
CPU as much time as its gradients. Here matrices of one shape are processed together, in their own
precision, and matrices that are stacked in one parameter (queries, keys and values) separately. The
kernel of a convolution is the matrix that maps a patch of its input to one pixel of its output.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from get.errors import InputError

# Quintic of the Newton-Schulz iteration with the steepest slope at 0 (K. Jordan et al., Muon,
# 2024): singular values end near 1, between 0.7 and 1.2, not at 1.
A, B, C = 3.4445, -4.7750, 2.0315
STEPS = 5


class Muon(Optimizer):
    """W <- W - lr sqrt(max(1, rows / columns)) orthogonal(u) for every matrix W.

    u = (1 - momentum) g + momentum m is Nesterov's momentum, m the running mean of the gradients g.
    `stacked` of a parameter group is the number of matrices stacked along the rows of each of its
    parameters.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict],
        lr: float = 0.02,
        momentum: float = 0.95,
    ) -> None:
        """Take matrices or kernels, or groups `{"params": ..., "stacked": n}` of them.

        Raises:
            InputError: If a parameter is no matrix or kernel, or no stack of `stacked` equal ones.
        """
        super().__init__(params, {"lr": lr, "momentum": momentum, "stacked": 1})
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim not in (2, 4) or len(p) % group["stacked"]:
                    raise InputError(
                        f"expected a matrix of {group['stacked']} equal parts, got a parameter of "
                        f"shape {tuple(p.shape)}; leave it to another optimiser"
                    )

    @torch.no_grad()
    def step(self) -> None:  # pyrefly: ignore[bad-override]  no closure
        """Make one step; parameters without a gradient do not change."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            # Nesterov's momentum: m <- momentum m + (1 - momentum) g, then u as above.
            means = [self.state[p].setdefault("mean", torch.zeros_like(p)) for p in params]
            gradients = [p.grad for p in params]
            torch._foreach_lerp_(means, gradients, 1 - group["momentum"])
            ahead = torch._foreach_lerp(gradients, means, group["momentum"])
            # Take stacks apart and put matrices of one shape together.
            parts_by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
            for p, u in zip(params, ahead, strict=True):
                for part, direction in zip(
                    p.view(len(p), -1).chunk(group["stacked"]),
                    u.flatten(1).chunk(group["stacked"]),
                    strict=True,
                ):
                    parts_by_shape.setdefault(part.shape, []).append((part, direction))
            # Each `part` is a view of its parameter, so adding to it changes the parameter.
            for (rows, columns), pairs in parts_by_shape.items():
                directions = orthogonal(torch.stack([direction for _, direction in pairs]))
                size = group["lr"] * max(1, rows / columns) ** 0.5
                parts = [part for part, _ in pairs]
                torch._foreach_add_(parts, list(directions.unbind()), alpha=-size)


def orthogonal(g: Float[Tensor, "*batch rows columns"]) -> Float[Tensor, "*batch rows columns"]:
    """Return approximately U V^T of g = U S V^T, by five Newton-Schulz steps.

    A step is x <- A x + B (x x^T) x + C (x x^T)^2 x; the first x is g / |g|_F.
    """
    x = g.mT if g.shape[-2] > g.shape[-1] else g
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(STEPS):
        s = x @ x.mT
        x = A * x + (B * s + C * s @ s) @ x
    return x.mT if g.shape[-2] > g.shape[-1] else x
