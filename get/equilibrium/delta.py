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
            the rule of the paper. It saves time on a CPU where the layer is wide and few inputs
            have changed; otherwise the product is whole, with zeros in it. "token": a token whose
            inputs have all changed by at most the threshold; it takes no part in the product.
            "sample": likewise a sample, through attention too.
        macs: Multiply-accumulates of linear layers that the rule needs, by number of the evaluation
            in its solve.
        dense_macs: What the same calls need without it.
        surplus_macs: Multiply-accumulates that torch's table of operations counts for these calls
            beyond `macs`: those with a factor 0, less those of an operation it does not have.
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
        self.surplus_macs = 0
        self._evaluation = -1
        self._full: Tensor | bool = True
        self._inputs: dict[nn.Module, Tensor] = {}
        self._outputs: dict[nn.Module, Tensor] = {}
        self._columns: dict[nn.Linear, tuple[int, Tensor]] = {}  # weights, an input's in a row

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

        Returns:
            The memory itself, which the next evaluation changes in place: use it before, and copy
            what is to be kept. (`fixed_point` refuses a map that returns it as its state.)
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
            self._inputs[module], self._outputs[module] = x.clone(), y
            self._count(cost * places, cost * places)
            return y
        if layer is not None and self.unit == "element":
            return self._by_element(layer, x, known, cost * places)
        return self._by_group(module, x, known, inputs, cost)

    def _by_element(self, layer: nn.Linear, x: Tensor, known: Tensor, dense: int) -> Tensor:
        """Add the weights times the changes of single inputs."""
        old, change = self._outputs[layer], x - known
        moved = change.abs() > self.threshold
        kept = int(moved.count_nonzero())
        needed, made = kept * layer.out_features, dense
        if not kept:
            y, made = old, 0
        elif _sparse_pays(layer, kept / x.numel(), x):
            chosen = moved.flatten().nonzero()[:, 0]
            values = change.flatten().index_select(0, chosen)
            y, made = self._sparse(layer, chosen, values, len(x.flatten(0, -2))), 0
            y = y.view_as(old).add_(old)
            known.flatten().index_add_(0, chosen, values)
        else:
            change.mul_(moved)
            y = torch.addmm(old.flatten(0, -2), change.flatten(0, -2), layer.weight.T).view_as(old)
            known.add_(change)  # not x: so the output is always that of what is known
        if isinstance(self._full, Tensor) and (rows := self._full.nonzero()[:, 0]).numel():
            whole = dense // len(x) * len(rows)
            y = y.index_copy(0, rows, layer(x[rows]))
            known.index_copy_(0, rows, x[rows])
            needed += whole - int(moved[rows].count_nonzero()) * layer.out_features
            made += whole
        self._outputs[layer] = y
        self._count(needed, dense)
        self.surplus_macs += made - needed
        return y

    def _sparse(self, layer: nn.Linear, chosen: Tensor, values: Tensor, rows: int) -> Tensor:
        """Return the product of the weights with rows of few values, at their flat places."""
        version = 0 if layer.weight.is_inference() else layer.weight._version
        known = self._columns.get(layer)
        if known is None or known[0] != version:
            known = self._columns[layer] = version, layer.weight.detach().T.contiguous()
        width = layer.in_features
        starts = torch.searchsorted(chosen, torch.arange(0, rows * width, width))
        return F.embedding_bag(
            chosen % width, known[1], starts, mode="sum", per_sample_weights=values
        )

    def _by_group(
        self,
        module: nn.Module,
        x: Tensor,
        known: Tensor,
        inputs: tuple[Tensor | None, ...],
        cost: int,
    ) -> Tensor:
        """Call the module for the tokens or samples that have changed."""
        features = (-2, -1) if self.unit == "sample" and x.dim() > 2 else (-1,)
        moved = (x - known).abs_().amax(features) > self.threshold
        if isinstance(self._full, Tensor):
            moved |= self._full.view(-1, *[1] * (moved.dim() - 1))
        rows, last = moved.flatten().nonzero()[:, 0], moved.dim() - 1
        fresh = x.flatten(0, last).index_select(0, rows)
        others = [None if u is None else u.index_select(0, rows) for u in inputs]
        y = self._outputs[module]
        y.flatten(0, last).index_copy_(0, rows, module(fresh, *others))
        known.flatten(0, last).index_copy_(0, rows, fresh)
        self._count(cost * (fresh.numel() // x.shape[-1]), cost * (x.numel() // x.shape[-1]))
        return y

    def _count(self, macs: int, dense: int) -> None:
        self.macs[self._evaluation] += macs
        self.dense_macs[self._evaluation] += dense


def _weights(module: nn.Module) -> int:
    """Return the multiply-accumulates of a module's linear layers for one token."""
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))


def _sparse_pays(layer: nn.Linear, share: float, x: Tensor) -> bool:
    """Return whether adding up single columns beats the whole product, as measured on CPUs.

    Finding the columns costs as much as about 25 outputs of an input. Products with one vector wait
    for memory, so there each weight that is not read saves time.
    """
    single = x.numel() == layer.in_features
    usable = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    return usable and share < (0.8 if single else 0.3) - 25 / layer.out_features
