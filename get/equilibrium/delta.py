"""Linear layers that follow the changes of their inputs instead of starting again (DeltaDEQ).

In a fixed-point iteration most inputs of a layer soon stop changing, some much earlier than others
(heterogeneous convergence; DeltaDEQ, NeurIPS 2024). `DeltaMemory` keeps the last input and output
of every layer, and recomputes only what small changes cannot explain. A map opts in by calling its
layers through an `Apply`; `Block` in `get/models/layers.py` shows how.
"""

from collections.abc import Callable
from math import isfinite
from typing import Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

Apply: TypeAlias = Callable[..., Tensor]
"""Called as apply(module, x, *inputs) in the place of module(x, *inputs)."""

Unit: TypeAlias = Literal["element", "token", "sample"]


def direct(module: nn.Module, x: Tensor, *inputs: Tensor | None) -> Tensor:
    """Call a module, as usual."""
    return module(x, *inputs)


class DeltaMemory:
    """Calls modules, but skips what changes of at most `threshold` would contribute.

    The rule is that of delta networks (arXiv:1612.05571): a remembered input is replaced where it
    has changed by more than the threshold, and nowhere else. The remembered input therefore stays
    within the threshold of the true one, and the output of a linear layer within
    threshold * |W|_inf (largest row sum of |W|) of the exact one, after any number of evaluations.

    Pass one instance as `carry` to `fixed_point` and use it in the map. It works without gradients
    only. The counts go on over several solves.

    Attributes:
        threshold: Largest change that is ignored, in the units of the layers' inputs; 0 ignores
            none.
        unit: What is skipped together. "element": single inputs of a linear layer, the finest and
            the rule of the paper; it saves multiply-accumulates but no time, because the matrix
            products are whole. "token": a token whose inputs have all changed by at most the
            threshold; it takes no part in the product. "sample": likewise a sample, through
            attention too.
        macs: Multiply-accumulates of linear layers that the rule needs, by number of the evaluation
            in its solve.
        dense_macs: What the same calls need without it.
        idle_macs: Multiply-accumulates that were made but not needed, because a factor is 0.
    """

    def __init__(self, threshold: float, unit: Unit = "token") -> None:
        """Start with an empty memory.

        Raises:
            ValueError: If the threshold is negative or not finite, or there is no such unit.
        """
        if not (isfinite(threshold) and threshold >= 0) or unit not in get_args(Unit):
            raise ValueError(
                "expected a threshold of 0 or more and a unit of "
                f"{get_args(Unit)}, got {threshold} and {unit!r}"
            )
        self.threshold = threshold
        self.unit: Unit = unit
        self.macs: list[int] = []
        self.dense_macs: list[int] = []
        self.idle_macs = 0
        self._evaluation = -1
        self._full: Tensor | bool = True
        self._inputs: dict[nn.Module, Tensor] = {}
        self._outputs: dict[nn.Module, Tensor] = {}

    def start(self) -> None:
        """Forget inputs and outputs: a solve begins."""
        self._evaluation, self._full = -1, True
        self._inputs.clear()
        self._outputs.clear()

    def next(self, full: Bool[Tensor, " rows"] | bool) -> None:
        """Begin an evaluation; samples in `full` are computed as if nothing were remembered."""
        self._evaluation, self._full = self._evaluation + 1, full
        if self._evaluation == len(self.macs):
            self.macs.append(0)
            self.dense_macs.append(0)

    def take(self, rows: Int[Tensor, " some"]) -> None:
        """Keep what is remembered of these samples."""
        for memory in (self._inputs, self._outputs):
            memory.update({module: x.index_select(0, rows) for module, x in memory.items()})

    def __call__(
        self, module: nn.Module, x: Float[Tensor, "batch *rest"], *inputs: Tensor | None
    ) -> Float[Tensor, "batch *rest_out"]:
        """Return module(x, *inputs), up to what the threshold allows.

        Args:
            module: A linear layer, a module that treats tokens independently of each other, or
                with `inputs` one that mixes the tokens of a sample. What the unit does not let
                skip as a whole is called as `module(x, *inputs, apply=self)`.
            x: Batch first, features last.
            inputs: Further inputs of the samples, which do not change during a solve.
        """
        if torch.is_grad_enabled():
            raise ValueError(
                "expected no gradients with a DeltaMemory; call the map under torch.no_grad()"
            )
        layer = module if isinstance(module, nn.Linear) else None
        if layer is None and (self.unit == "element" or (inputs and self.unit == "token")):
            return module(x, *inputs, apply=self)
        cost = _weights(module)
        places = x.numel() // x.shape[-1]
        known = self._inputs.get(module)
        if known is None or self._full is True:
            y = module(x, *inputs)
            self._inputs[module], self._outputs[module] = x, y
            self._count(cost * places, cost * places)
            return y
        if layer is not None and self.unit == "element":
            return self._by_element(layer, x, known, cost)
        return self._by_group(module, x, known, inputs, cost)

    def _by_element(self, module: nn.Linear, x: Tensor, known: Tensor, cost: int) -> Tensor:
        """Add the weights times the changes of single inputs."""
        change = x - known
        moved = change.abs() > self.threshold
        y = self._outputs[module] + F.linear(change * moved, module.weight)
        known = torch.where(moved, x, known)
        needed = int(moved.sum()) * module.out_features
        dense = made = cost * (x.numel() // x.shape[-1])
        if isinstance(self._full, Tensor) and (rows := self._full.nonzero()[:, 0]).numel():
            y[rows], known[rows] = module(x[rows]), x[rows]
            needed += int((~moved[rows]).sum()) * module.out_features
            made += cost * (x[rows].numel() // x.shape[-1])
        self._inputs[module], self._outputs[module] = known, y
        self._count(needed, dense)
        self.idle_macs += made - needed
        return y

    def _by_group(
        self,
        module: nn.Module,
        x: Tensor,
        known: Tensor,
        inputs: tuple[Tensor | None, ...],
        cost: int,
    ) -> Tensor:
        """Call the module for the tokens or samples that have changed."""
        moved = (x - known).abs().amax(-1)
        if self.unit == "sample":
            moved = moved.view(len(x), -1).amax(1)
        moved = moved > self.threshold
        if isinstance(self._full, Tensor):
            moved = moved | self._full.view(-1, *[1] * (moved.dim() - 1))
        rows = moved.flatten().nonzero()[:, 0]
        group = 0 if self.unit == "sample" else x.dim() - 2
        old = self._outputs[module]
        fresh = x.flatten(0, group).index_select(0, rows)
        others = [None if u is None else u.index_select(0, rows) for u in inputs]
        y = old.flatten(0, group).index_copy(0, rows, module(fresh, *others)).view_as(old)
        known = known.flatten(0, group).index_copy(0, rows, fresh).view_as(known)
        self._inputs[module], self._outputs[module] = known, y
        self._count(cost * (fresh.numel() // x.shape[-1]), cost * (x.numel() // x.shape[-1]))
        return y

    def _count(self, macs: int, dense: int) -> None:
        self.macs[self._evaluation] += macs
        self.dense_macs[self._evaluation] += dense


def _weights(module: nn.Module) -> int:
    """Return the multiply-accumulates of a module's linear layers for one token."""
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))
