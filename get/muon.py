"""Muon: momentum with orthogonal update matrices, for the weight matrices inside a network.

torch.optim.Muon does the same for one matrix at a time in bfloat16, which costs a small GET on a
CPU as much time as its gradients. Here matrices of one shape are processed together, in bfloat16 on
GPUs only, and matrices that are stacked in one parameter (queries, keys and values) separately.
The kernel of a convolution is the matrix that maps a patch of its input to one pixel of its output.
Processes that train together share the matrices out: each makes its part of the directions.
"""

from collections.abc import Iterable
from typing import Literal

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from get.errors import InputError

# Quintic of the Newton-Schulz iteration with the steepest slope at 0 (K. Jordan et al., Muon,
# 2024): singular values end near 1, between 0.7 and 1.2, not at 1.
A, B, C = 3.4445, -4.7750, 2.0315
STEPS = 5

Scaling = Literal["spectral", "match_rms_adamw"]


class Muon(Optimizer):
    """W <- (1 - lr weight_decay) W - lr c orthogonal(u) for every matrix W.

    u = (1 - momentum) g + momentum m is Nesterov's momentum, m the running mean of the gradients g.
    c is sqrt(max(1, rows / columns)) with the scaling "spectral" (K. Jordan), and
    0.2 sqrt(max(rows, columns)) with "match_rms_adamw", whose steps are as long as AdamW's, so that
    it takes AdamW's learning rates (arXiv:2502.16982). `stacked` of a parameter group is the number
    of matrices stacked along the rows of each of its parameters.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        scaling: Scaling = "spectral",
        processes: dist.ProcessGroup | None = None,
    ) -> None:
        """Take matrices or kernels, or groups `{"params": ..., "stacked": n}` of them.

        Args:
            params: What is trained.
            lr: Learning rate.
            momentum: Of the running mean.
            weight_decay: Decoupled, as AdamW's.
            scaling: See the class.
            processes: Those that hold the same weights and gradients, and share the work.

        Raises:
            InputError: If a parameter is no matrix or kernel, or no stack of `stacked` equal ones.
        """
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "stacked": 1}
        super().__init__(params, defaults)
        self.scaling, self.processes = scaling, processes
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
                stack = torch.stack([direction for _, direction in pairs])
                directions = shared(stack, self.processes) if self.processes else orthogonal(stack)
                if self.scaling == "spectral":
                    size = max(1, rows / columns) ** 0.5
                else:
                    size = 0.2 * max(rows, columns) ** 0.5
                parts = [part for part, _ in pairs]
                if group["weight_decay"]:
                    torch._foreach_mul_(parts, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(parts, list(directions.unbind()), alpha=-group["lr"] * size)


def shared(
    stack: Float[Tensor, "matrices rows columns"], processes: dist.ProcessGroup
) -> Float[Tensor, "matrices rows columns"]:
    """Return `orthogonal(stack)`, of which each process has made a part."""
    world, rank = processes.size(), processes.rank()
    each = -(-len(stack) // world)
    mine = stack.new_zeros(each, *stack.shape[1:])
    own = stack[rank * each : (rank + 1) * each]
    if len(own):
        mine[: len(own)] = orthogonal(own)
    parts = [torch.empty_like(mine) for _ in range(world)]
    dist.all_gather(parts, mine, group=processes)
    return torch.cat(parts)[: len(stack)]


def orthogonal(g: Float[Tensor, "*batch rows columns"]) -> Float[Tensor, "*batch rows columns"]:
    """Return approximately U V^T of g = U S V^T, by five Newton-Schulz steps.

    A step is x <- A x + B (x x^T) x + C (x x^T)^2 x; the first x is g / |g|_F.
    """
    x = g.bfloat16() if g.is_cuda else g
    x = x.mT if g.shape[-2] > g.shape[-1] else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(STEPS):
        s = x @ x.mT
        x = A * x + (B * s + C * s @ s) @ x
    return (x.mT if g.shape[-2] > g.shape[-1] else x).to(g.dtype)
