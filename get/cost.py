"""What a model costs: parameters, multiply-accumulates, bytes, images per second."""

import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters, frozen ones (GET's position table) included."""
    return sum(p.numel() for p in model.parameters())


@torch.no_grad()
def count_macs(call: Callable[[], object]) -> int:
    """Return the multiply-accumulates of everything `call` does (matmul, convolution, attention).

    See `Macs`, which counts backward passes as well.
    """
    with Macs() as work:
        call()
    return work.total


@torch.no_grad()
def images_per_second(call: Callable[[], object], images: int, seconds: float = 2.0) -> float:
    """Return the best rate seen over repeated calls.

    The best, not the mean: other work on the machine can only slow a call down.

    Args:
        call: Makes `images` images and waits for them.
        images: Images a call.
        seconds: How long to repeat, at least twice after one call for warming up.
    """
    call()
    best, spent, calls = float("inf"), 0.0, 0
    while spent < seconds or calls < 2:
        began = time.perf_counter()
        call()
        took = time.perf_counter() - began
        best, spent, calls = min(best, took), spent + took, calls + 1
    return images / best


class Macs(TorchDispatchMode):
    """Counts multiply-accumulates by torch's own table, which has two operations for each.

    Unlike `FlopCounterMode` it hooks into no module, which gradients of gradients do not bear.

    Attributes:
        total: So far.
    """

    def __init__(self) -> None:
        """Nothing counted yet."""
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation and count its work."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if (flops := flop_registry.get(func._overloadpacket)) is not None:
            self.total += flops(*args, **kwargs, out_val=result) // 2
        return result


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors made while it is active, exactly and on any device.

    A storage counts once, from the operation that makes it until its last tensor is gone, forward
    and backward pass alike; what a kernel uses inside itself does not. Deterministic, unlike the
    resident memory of a process.

    Attributes:
        now: Bytes alive.
        peak: The most bytes that were alive at once.
    """

    def __init__(self) -> None:
        """Nothing counted yet."""
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation and count the storages it has made."""
        known = {storage._cdata for storage in _storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            key, size = storage._cdata, storage.nbytes()
            if key not in known and key not in self._seen:
                self._seen.add(key)
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, key, size)
        return result

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def _storages(tree: object) -> Iterator[torch.UntypedStorage]:
    return (x.untyped_storage() for x in tree_iter(tree) if isinstance(x, Tensor))
